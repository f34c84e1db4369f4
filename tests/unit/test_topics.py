"""The declarations of topics and queues, and the limits of AWS."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from smartpipe import ConfigError, FilterPolicy, Queue, Topic

TOPIC_ARN = "arn:aws:sns:eu-west-1:123456789012:orders"
QUEUE_ARN = "arn:aws:sqs:eu-west-1:123456789012:orders"


def errors_of(declare: Any, *arguments: Any, **options: Any) -> list[str]:
    try:
        declare(*arguments, **options)
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("kind", "name", "low", "high"),
    [
        (Topic, "limit_bytes", 1_024, 1_048_576),
        (Queue, "visibility_timeout_seconds", 1, 43_200),
        (Queue, "retention_seconds", 60, 1_209_600),
        (Queue, "max_receive_count", 2, 1_000),
        (Queue, "delay_seconds", 0, 900),
    ],
)
def test_a_value_may_be_at_either_end_of_its_range_and_no_further(kind: Any, name: str, low: int, high: int) -> None:
    assert errors_of(kind, "orders", **{name: low}) == errors_of(kind, "orders", **{name: high}) == []
    below = low - 2 if name == "max_receive_count" else low - 1  # one receive is allowed, with a warning
    for value in (below, high + 1):
        [error] = errors_of(kind, "orders", **{name: value})
        assert f"'orders': {name}={value} is outside of " in error


def test_the_defaults_are_those_of_aws() -> None:
    queue, topic = Queue("orders"), Topic("orders")

    assert (queue.visibility_timeout_seconds, queue.retention_seconds, queue.delay_seconds) == (30, 4 * 86_400, 0)
    assert queue.max_receive_count is None
    assert (topic.limit_bytes, queue.limit_bytes) == (256 * 1024, 1024 * 1024)
    for declared in (queue, topic):
        assert (declared.fifo, declared.kms_key, declared.high_throughput, declared.tags) == (False, None, False, {})
    assert (queue.existing, queue.direct, queue.dead_letter, queue.filter_policy) == (False, False, None, None)
    assert not topic.external
    assert Topic(arn=TOPIC_ARN).external


@pytest.mark.parametrize(("kind", "name", "fifo", "allowed"), [
    (Topic, "x" * 256, False, True), (Topic, "x" * 257, False, False),
    (Topic, "x" * 251, True, True), (Topic, "x" * 252, True, False),
    (Queue, "x" * 76, False, True), (Queue, "x" * 77, False, False),
    (Queue, "x" * 71, True, True), (Queue, "x" * 72, True, False),
])  # fmt: skip
def test_a_name_has_room_for_its_suffixes(kind: Any, name: str, fifo: bool, allowed: bool) -> None:
    assert (
        errors_of(kind, name, fifo=fifo) == []
        if allowed
        else "AWS allows at most" in errors_of(kind, name, fifo=fifo)[0]
    )


def test_the_name_of_an_existing_queue_needs_no_room_for_a_suffix() -> None:
    assert errors_of(Queue, "x" * 80, existing=True, dead_letter="graves") == []
    assert errors_of(Queue, QUEUE_ARN.replace("orders", "x" * 80), existing=True) == []
    assert "AWS allows at most 80" in errors_of(Queue, "x" * 81, existing=True, dead_letter="graves")[0]
    assert "AWS allows at most 80" in errors_of(Queue, "orders", existing=True, dead_letter="x" * 81)[0]


def test_a_queue_that_moves_each_message_after_one_receive_is_warned_about_at_its_declaration() -> None:
    with pytest.warns(UserWarning, match="max_receive_count=1") as caught:
        Queue("orders", max_receive_count=1)

    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Queue("orders", max_receive_count=2)


@pytest.mark.parametrize(("queue", "expected"), [
    (Queue("orders"), "orders-dlq"),
    (Queue("orders", fifo=True), "orders-dlq.fifo"),
    (Queue("orders", existing=True, dead_letter="graves"), "graves"),
    (Queue("orders", fifo=True, existing=True, dead_letter="graves"), "graves.fifo"),
    (Queue(QUEUE_ARN, existing=True), f"{QUEUE_ARN}-dlq"),
    (Queue(QUEUE_ARN, existing=True, dead_letter="graves"), "arn:aws:sqs:eu-west-1:123456789012:graves"),
    (Queue("orders", existing=True, dead_letter=f"{QUEUE_ARN}-graves"), f"{QUEUE_ARN}-graves"),
    (Queue(QUEUE_ARN, existing=True, dead_letter=f"{QUEUE_ARN}-graves"), f"{QUEUE_ARN}-graves"),
])  # fmt: skip
def test_a_dead_letter_queue_is_in_the_account_of_its_queue(queue: Queue, expected: str) -> None:
    assert queue.dead_letter_name == expected


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"arn": "arn:aws:sqs:eu-west-1:123456789012:orders"}, "is not the ARN of a topic"),
    ({"arn": "orders"}, "is not the ARN of a topic"),
    ({"arn": ""}, "is not the ARN of a topic"),
    ({"arn": "arn:aws:sns:eu-west-1:12345678901:orders"}, "is not the ARN of a topic"),
    ({"arn": TOPIC_ARN, "name": "orders"}, "with an arn it needs no name"),
    ({"arn": TOPIC_ARN, "tags": {"a": "b"}}, "only its owner can set its tags, key and throughput"),
    ({"arn": TOPIC_ARN, "kms_key": "alias/a"}, "only its owner can set its tags, key and throughput"),
    ({"arn": f"{TOPIC_ARN}.fifo", "high_throughput": True}, "only its owner can set its tags, key and throughput"),
])  # fmt: skip
def test_an_external_topic_is_declared_by_its_arn_alone(arguments: dict[str, Any], sentence: str) -> None:
    [error] = errors_of(Topic, **arguments)

    assert sentence in error


@pytest.mark.parametrize(("name", "arguments", "sentence"), [
    (TOPIC_ARN, {"existing": True}, "is not the ARN of a queue"),
    ("arn:aws:sqs:eu-west-1:1:orders", {"existing": True}, "is not the ARN of a queue"),
    (QUEUE_ARN, {}, "an ARN names a queue that exists; add existing=True"),
    ("orders", {"existing": True, "filter_policy": FilterPolicy({"a": ["b"]})}, "is external: only its owner"),
    ("orders", {"existing": True, "kms_key": "alias/a"}, "is external: only its owner"),
    ("orders", {"existing": True, "tags": {"a": "b"}}, "is external: only its owner"),
    ("orders", {"existing": True, "high_throughput": True, "fifo": True}, "is external: only its owner"),
    ("orders", {"existing": True, "direct": True}, "is external: only its owner"),
    ("orders", {"dead_letter": "graves"}, "dead_letter= is for existing queues"),
    ("orders", {"existing": True, "dead_letter": "gr aves"}, "may have only letters"),
    ("orders", {"high_throughput": True}, "high_throughput applies to groups"),
    ("orders", {"kms_key": " "}, "kms_key=' ' is empty"),
    ("orders", {"kms_key": ""}, "kms_key='' is empty"),
    ("orders", {"kms_key": "alias/\u00e4"}, "kms_key='alias/"),
    ("orders", {"tags": {"aws:a": "b"}}, "are reserved"),
])  # fmt: skip
def test_a_queue_that_aws_would_refuse_is_refused_with_one_sentence(
    name: str, arguments: dict[str, Any], sentence: str
) -> None:
    [error] = errors_of(Queue, name, **arguments)

    assert sentence in error


@pytest.mark.parametrize("kind", [Topic, Queue])
def test_a_declaration_with_all_of_its_options_is_accepted(kind: Any) -> None:
    declared = kind("orders", fifo=True, kms_key="alias/shop", high_throughput=True, tags={"team": "shop"})

    assert declared.name == "orders.fifo"
    assert len({declared, kind("orders", fifo=True)}) == 2
    assert hash(declared) == hash(kind("orders", fifo=True))


@pytest.mark.parametrize(("tags", "errors"), [
    ({"k" * 128: "v" * 256}, 0),
    ({"k" * 129: "v"}, 1),
    ({"k": "v" * 257}, 1),
    ({"": "v"}, 1),
    ({"k": ""}, 0),
    ({"k;": "v"}, 1),
    ({"k": "v;"}, 1),
    ({"k": 5}, 1),
    ({5: "v"}, 1),
    ({"a . : / = + - @ _": "a . : / = + - @ _"}, 0),
    ({"AWS:a": "v"}, 1),
    ({"smartpipe:a": "v"}, 1),
    ({"a": "aws:v"}, 0),
    ({f"k{number}": "v" for number in range(47)}, 0),
    ({f"k{number}": "v" for number in range(48)}, 1),
])  # fmt: skip
def test_tags_keep_to_the_limits_of_aws(tags: dict[str, str], errors: int) -> None:
    assert len(errors_of(Queue, "orders", tags=tags)) == len(errors_of(Topic, "orders", tags=tags)) == errors
