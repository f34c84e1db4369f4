"""Both sides of the limits in checks of a topology, in its derivation and in its exports."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smartpipe import Event, FilterPolicy, Queue, RetryPolicy, Service, Topic
from smartpipe.names import Naming
from smartpipe.topology.checks import find_errors, find_warnings
from smartpipe.topology.derive import derive
from smartpipe.topology.export.graph import LONGEST_LINE
from smartpipe.topology.export.pictures import draw_mermaid
from smartpipe.topology.export.portable import make_unique
from smartpipe.topology.policy import POLICY_LIMIT_BYTES
from smartpipe.topology.resources import Topology
from smartpipe.topology.table_and_bucket import TableAndBucket
from tests.support import exported

NAMING = Naming("aws", "eu-west-1", "123456789012")
MAILER, THEIRS = NAMING.queue_arn("mailer"), NAMING.queue_arn("theirs")
ADOPTED = "exists without tags of smartpipe: apply adds the tags of this application, and then destroy would delete it"


ORDERED = Topic("ordered", fifo=True)


class Long(Event, topic=Topic("long", limit_bytes=1_048_576), type="limits.long", version="1.0"):
    """An event of a topic with a higher limit."""


class Ordered(Event, topic=ORDERED, type="limits.ordered", version="1.0", key="to"):
    to: str


def queue_of(*events: type[Event], **options: Any) -> Topology:
    service = exported.subscribed(Service("mailer", **options), *events)
    return derive([service], NAMING, TableAndBucket("claims"))


@pytest.mark.parametrize(("count", "warned"), [(9, True), (10, False), (11, False), (None, False)])
def test_a_queue_of_others_should_deliver_as_often_as_the_retry_policies_need(count: int | None, warned: bool) -> None:
    desired = queue_of(exported.AccountOpened, queue=Queue("theirs", existing=True))
    redrive = {"RedrivePolicy": {"maxReceiveCount": count}} if count else {}

    notes = find_warnings(desired, Topology({"queue": {THEIRS: redrive}}))

    assert any("SQS moves a message to the dead-letter queue after 9 deliveries" in note for note in notes) == warned


def test_a_dead_letter_queue_of_others_that_does_not_exist_is_an_error_if_its_queue_uses_it() -> None:
    desired = queue_of(exported.AccountOpened, queue=Queue("theirs", existing=True))
    dead = f"{THEIRS}-dlq"
    used = {"RedrivePolicy": {"deadLetterTargetArn": dead}}

    [error] = find_errors(desired, Topology({"queue": {THEIRS: used}}))
    assert error.startswith(f"queue {dead} is declared existing=True and does not exist")
    [error] = find_errors(desired, Topology({"queue": {THEIRS: {}}}))
    assert error == f"queue theirs: its dead-letter queue is missing, not theirs-dlq; ask its owner to add it"  # noqa: F541


@pytest.mark.parametrize("tags", [{}, {"smartpipe:application": "smartpipe"}])
def test_a_topic_without_tags_is_adopted_with_a_warning(tags: dict[str, str]) -> None:
    desired = queue_of(exported.AccountOpened)
    [topic] = desired.topics

    notes = find_warnings(desired, Topology({"topic": {topic: {"Tags": tags}}}))

    assert notes == ([] if tags else [f'topic accounts {ADOPTED}; declare it Topic(arn="...") to leave it alone'])


@pytest.mark.parametrize(("more", "fails"), [(0, False), (2, False), (3, True)])
def test_a_policy_may_be_as_long_as_sqs_accepts(more: int, fails: bool) -> None:
    desired = queue_of(exported.AccountOpened)
    ours = json.dumps(desired.queues[MAILER]["Policy"]["Statement"][0])
    text = '{"Statement": [{"Sid": "%s"}, ' + ours + "]}"
    text %= "x" * (POLICY_LIMIT_BYTES - len(text) + 2 + more)
    assert len(text) == POLICY_LIMIT_BYTES + more

    errors = find_errors(desired, Topology({"queue": {MAILER: {"Policy": text}}}))

    shorter = 8_192 + more - len("ArnEquals") + len("ArnLike")  # a policy that is too long has patterns of topics
    assert [f"its policy would have {shorter:,} bytes" in error for error in errors] == [True] * fails


def test_a_table_with_another_key_is_an_error_of_the_plan() -> None:
    service = Service("mailer")
    service.subscribe(exported.AccountOpened, idempotent=True)(exported.handle)
    desired = derive([service], NAMING, TableAndBucket("claims"))
    [table] = desired.of("table")

    [error] = find_errors(desired, Topology({"table": {table: {"KeySchema": []}}}))

    assert error.startswith("DynamoDB table 'claims' is not one of claims")
    assert find_errors(desired, Topology({})) == []


@pytest.mark.parametrize(
    ("events", "size"),
    [((exported.AccountOpened,), None), ((Long,), "1048576"), ((Long, exported.AccountOpened), "1048576")],
)
def test_a_queue_accepts_the_longest_messages_of_all_its_topics(events: Any, size: str | None) -> None:
    assert queue_of(*events).queues[MAILER].get("MaximumMessageSize") == size


@pytest.mark.parametrize(("fifo", "event"), [(False, exported.AccountOpened), (True, Ordered)])
def test_a_queue_of_others_is_expected_to_be_of_the_declared_kind(fifo: bool, event: type[Event]) -> None:
    desired = queue_of(event, queue=Queue("theirs", existing=True, fifo=fifo))

    kinds = {arn.rpartition(":")[2]: queue.get("FifoQueue") for arn, queue in desired.queues.items()}
    end, kind = (".fifo", "true") if fifo else ("", None)
    assert kinds == {f"theirs{end}": kind, f"theirs-dlq{end}": kind}


def test_an_id_is_cut_only_beyond_its_limit_and_its_hash_is_within_the_limit() -> None:
    whole, cut, twice = "a" * 20, "b" * 21, "same"

    found = make_unique({1: whole, 2: cut, 3: twice, 4: twice}, longest=20)

    assert found[1] == whole
    assert found[2].startswith("b" * 12)
    assert [len(found[key]) for key in (2, 3, 4)] == [20, 12, 12]
    assert found[3].startswith(twice)
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("more", [0, 1])
def test_a_condition_of_a_picture_is_cut_only_beyond_its_limit(more: int) -> None:
    value = "x" * (LONGEST_LINE - len('tenant: [""]') + more)
    policy = FilterPolicy({"tenant": [value]})
    service = exported.subscribed(
        Service("mailer", queue=Queue("mailer", filter_policy=policy)), exported.AccountOpened
    )

    assert ("…" in draw_mermaid([service])) == bool(more)


@pytest.mark.parametrize(
    ("policies", "halts"), [(("dead-letter",), False), (("halt",), True), (("dead-letter", "halt"), True)]
)
def test_a_queue_of_a_picture_halts_if_one_of_its_handlers_does(policies: tuple[Any, ...], halts: bool) -> None:
    service = Service("mailer", queue=Queue("mailer", fifo=True))
    for number, on_exhausted in enumerate(policies):
        event = type(
            f"Halting{number}",
            (Ordered,),
            {},
            topic=ORDERED,
            type=f"limits.h{number}",
            version="1.0",
            key="to",
        )
        service.subscribe(event, retry=RetryPolicy(attempts=2, on_exhausted=on_exhausted))(exported.handle)

    assert ("halts its group after the last attempt" in draw_mermaid([service])) == halts
