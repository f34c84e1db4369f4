from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Event, Idempotency, Queue, RetryPolicy, Service, Topic
from smartpipe.filter_policy import FilterPolicy
from smartpipe.names import Naming
from smartpipe.topology.checks import find_short_memories
from smartpipe.topology.derive import DEAD_LETTER_RETENTION_SECONDS, derive
from tests.support.events import OrderPlaced, Paid, UserLeft, UserSignedUp

if TYPE_CHECKING:
    from collections.abc import Callable

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")
USERS = "arn:aws:sns:eu-west-1:123456789012:staging-users"
ORDERS = "arn:aws:sns:eu-west-1:123456789012:staging-orders"
MAILER = "arn:aws:sqs:eu-west-1:123456789012:staging-mailer"


DELIVERED = {
    "RawMessageDelivery": "true",
    "FilterPolicyScope": "MessageAttributes",
    "RedrivePolicy": {"deadLetterTargetArn": f"{MAILER}-dlq"},
}


async def handle(_: Event) -> None: ...


def mailer() -> Service:
    service = Service("mailer", retry=RetryPolicy(attempts=5))
    for event in (UserSignedUp, UserLeft, OrderPlaced):
        service.subscribe(event)(handle)
    return service


def test_a_service_needs_its_topics_queue_dead_letter_queue_and_filtered_raw_subscriptions() -> None:
    topology = derive([mailer()], NAMING)

    assert list(topology.topics) == [USERS, ORDERS]
    assert list(topology.queues) == [f"{MAILER}-dlq", MAILER]
    assert topology.queues[f"{MAILER}-dlq"]["MessageRetentionPeriod"] == "1209600"
    assert topology.queues[MAILER]["RedrivePolicy"] == {"deadLetterTargetArn": f"{MAILER}-dlq", "maxReceiveCount": 15}
    assert topology.subscriptions == {
        (USERS, MAILER): {**DELIVERED, "FilterPolicy": {"type": ["member.signed_up", "user.left"]}},
        (ORDERS, MAILER): {**DELIVERED, "FilterPolicy": {"type": ["order.placed"]}},
    }


def test_only_sns_only_these_topics_and_only_this_account_may_send_to_the_queue() -> None:
    [statement] = derive([mailer()], NAMING).queues[MAILER]["Policy"]["Statement"]

    assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
    assert statement["Action"] == "sqs:SendMessage"
    assert statement["Resource"] == MAILER
    assert statement["Condition"] == {
        "ArnEquals": {"aws:SourceArn": [ORDERS, USERS]},
        "StringEquals": {"aws:SourceAccount": "123456789012"},
    }


@pytest.mark.parametrize(("attempts", "expected"), [(1, 10), (3, 10), (5, 15), (400, 1_000)])
def test_fault_22_the_backstop_is_well_above_the_attempts(attempts: int, expected: int) -> None:
    service = Service("s", retry=RetryPolicy(attempts=attempts))
    service.subscribe(UserSignedUp)(handle)

    queue = derive([service], NAMING).queues[NAMING.queue_arn("s")]

    assert queue["RedrivePolicy"]["maxReceiveCount"] == expected


def test_every_contradiction_is_reported_together() -> None:
    too_few = Service("x" * 70, queue=Queue("x" * 70, max_receive_count=2), retry=RetryPolicy(attempts=5))
    rival = Service("rival", queue=Queue("mailer"))
    for service in (too_few, rival):
        service.subscribe(UserSignedUp)(handle)

    with pytest.raises(ConfigError) as caught:
        derive([mailer(), too_few, rival], NAMING)

    assert len(caught.value.problems) == 4  # the rival claims the dead-letter queue too
    assert any("82 characters" in problem for problem in caught.value.problems)
    assert any("max_receive_count=2" in problem for problem in caught.value.problems)
    assert any("queue 'mailer' is claimed by two services" in problem for problem in caught.value.problems)


def test_a_topic_with_a_size_limit_sets_it() -> None:
    big = Topic("big", limit_bytes=1_048_576)

    class Huge(Event, topic=big, type="huge", version="1.0"):
        pass

    service = Service("s")
    service.subscribe(Huge)(handle)

    topology = derive([service], NAMING)

    assert topology.topics[NAMING.topic_arn("big")]["MaximumMessageSize"] == "1048576"
    assert (
        topology.queues[NAMING.queue_arn("s")]["MaximumMessageSize"] == "1048576"
    )  # an old queue may have a limit of 256 KiB


def test_a_queue_with_the_name_of_a_dead_letter_queue_and_a_topic_with_two_declarations_are_refused() -> None:
    class Elsewhere(Event, topic=Topic("users", limit_bytes=500_000), type="elsewhere", version="1.0"):
        pass

    first, second = Service("x"), Service("x-dlq")
    first.subscribe(UserSignedUp)(handle)
    second.subscribe(Elsewhere)(handle)

    with pytest.raises(ConfigError) as caught:
        derive([first, second], NAMING)

    assert len(caught.value.problems) == 2
    assert "queue 'x-dlq' is claimed by two services" in str(caught.value)
    assert "topic 'users' is declared twice" in str(caught.value)


def served(queue: Queue, *events: type[Event]) -> Service:
    service = Service("mailer", queue=queue)
    for event in events or (UserSignedUp,):
        service.subscribe(event)(handle)
    return service


def test_all_resources_have_tags_that_name_their_owner() -> None:
    topology = derive([served(Queue("mailer", tags={"team": "growth"}))], NAMING._replace(application="shop"))

    own = {"smartpipe:application": "shop", "smartpipe:prefix": "staging-"}
    assert topology.topics[USERS]["Tags"] == own
    for arn in (MAILER, f"{MAILER}-dlq"):
        assert topology.queues[arn]["Tags"] == {"team": "growth", **own, "smartpipe:service": "mailer"}


def test_a_dead_letter_queue_accepts_only_messages_of_its_queue_and_undeliverable_ones() -> None:
    topology = derive([mailer()], NAMING)

    dead_letters = topology.queues[f"{MAILER}-dlq"]
    assert dead_letters["RedriveAllowPolicy"] == {"redrivePermission": "byQueue", "sourceQueueArns": [MAILER]}
    [statement] = dead_letters["Policy"]["Statement"]
    assert statement["Resource"] == f"{MAILER}-dlq"
    assert statement["Condition"]["ArnEquals"]["aws:SourceArn"] == [ORDERS, USERS]


def test_queues_are_encrypted_by_sqs_unless_a_key_is_named() -> None:
    plain = derive([served(Queue("mailer"))], NAMING).queues[MAILER]
    keyed = derive([served(Queue("mailer", kms_key="alias/shop"))], NAMING).queues

    assert (plain["SqsManagedSseEnabled"], plain["KmsMasterKeyId"]) == ("true", "")
    assert {keyed[arn]["KmsMasterKeyId"] for arn in keyed} == {"alias/shop"}
    assert "SqsManagedSseEnabled" not in keyed[MAILER]


def test_fault_10_a_queue_under_sqs_own_kms_key_is_refused_because_sns_cannot_use_it() -> None:
    with pytest.raises(ConfigError, match="SNS cannot deliver to a queue under alias/aws/sqs") as caught:
        derive([served(Queue("mailer", kms_key="alias/aws/sqs"))], NAMING)

    assert "SSE-SQS" in str(caught.value)


def test_a_filter_policy_of_a_queue_without_subscriptions_is_refused() -> None:
    policy = FilterPolicy({"country": ["ch"]})
    raw = Service("raw", queue=Queue("raw", filter_policy=policy))

    @raw.subscribe_raw(dict)
    async def take(row: dict[str, Any]) -> None: ...

    for service in (served(Queue("mailer", direct=True, filter_policy=policy)), raw):
        with pytest.raises(ConfigError, match=r"filter_policy filters what SNS delivers, and this queue has no sub"):
            derive([service], NAMING)


def test_high_throughput_counts_by_group_on_topics_and_queues() -> None:
    class Booked(
        Event, topic=Topic("book", fifo=True, high_throughput=True), type="topology.booked", version="1.0", key="to"
    ):
        to: str

    topology = derive([served(Queue("mailer", fifo=True, high_throughput=True), Booked)], NAMING)

    queue = topology.queues[f"{MAILER}.fifo"]
    assert (queue["DeduplicationScope"], queue["FifoThroughputLimit"]) == ("messageGroup", "perMessageGroupId")
    assert topology.topics[NAMING.topic_arn("book.fifo")]["FifoThroughputScope"] == "MessageGroup"


def test_a_direct_queue_has_no_subscription_and_admits_no_topic() -> None:
    topology = derive([served(Queue("mailer", direct=True))], NAMING)

    assert topology.subscriptions == {}
    assert topology.queues[MAILER]["Policy"]["Statement"] == []


def test_fault_47_a_filter_policy_has_its_scope_first_and_the_types_with_its_conditions() -> None:
    body = FilterPolicy({"data": {"country": ["ch"]}}, scope="MessageBody")

    [subscription] = derive([served(Queue("mailer", filter_policy=body))], NAMING).subscriptions.values()

    assert list(subscription)[1:3] == ["FilterPolicyScope", "FilterPolicy"]
    assert subscription["FilterPolicyScope"] == "MessageBody"
    assert subscription["FilterPolicy"] == {"type": ["member.signed_up"], "data": {"country": ["ch"]}}


def test_fault_47_types_and_conditions_together_stay_within_the_limits_of_sns() -> None:
    many = FilterPolicy({"tenant": [str(number) for number in range(100)]})

    with pytest.raises(ConfigError, match="200 combinations of values"):
        derive([served(Queue("mailer", filter_policy=many), UserSignedUp, UserLeft)], NAMING)


THEIR_TOPIC = "arn:aws:sns:eu-central-1:999999999999:orders"


def test_a_topic_of_another_account_is_subscribed_to_and_never_created() -> None:
    class Shipped(Event, topic=Topic(arn=THEIR_TOPIC), type="topology.shipped", version="1.0"):
        pass

    topology = derive([served(Queue("mailer"), Shipped)], NAMING)

    assert topology.external == {THEIR_TOPIC}
    assert list(topology.subscriptions) == [(THEIR_TOPIC, MAILER)]
    assert (
        "RedrivePolicy" not in topology.subscriptions[THEIR_TOPIC, MAILER]
    )  # it would have to be in the topic's account
    [statement] = topology.queues[MAILER]["Policy"]["Statement"]
    assert statement["Condition"]["StringEquals"] == {"aws:SourceAccount": "999999999999"}


def test_an_existing_queue_declared_by_its_arn_gets_no_prefix() -> None:
    theirs = "arn:aws:sqs:eu-west-1:999999999999:theirs"

    topology = derive([served(Queue(theirs, existing=True, dead_letter="graveyard"))], NAMING)

    dead_letters = "arn:aws:sqs:eu-west-1:999999999999:graveyard"
    assert topology.external == {theirs, dead_letters}
    assert topology.queues[theirs]["RedrivePolicy"]["deadLetterTargetArn"] == dead_letters


def test_a_service_that_only_publishes_needs_its_topics() -> None:
    topology = derive([Service("api", publishes=[UserSignedUp, Paid])], NAMING)

    assert list(topology.topics) == [USERS, NAMING.topic_arn("ledger.fifo")]
    assert topology.queues == {}
    assert topology.subscriptions == {}


@pytest.mark.parametrize(
    ("declare", "sentence"),
    [
        (lambda: Topic("a b"), "may have only letters"),
        (lambda: Topic("x", arn=THEIR_TOPIC), "with an arn it needs no name"),
        (lambda: Topic(arn="orders"), "is not the ARN of a topic"),
        (lambda: Topic(arn=THEIR_TOPIC, kms_key="k"), "only its owner can set"),
        (lambda: Topic("x", high_throughput=True), "which only FIFO has"),
        (lambda: Topic("x", tags={"aws:team": "x"}), "keys that begin with 'aws:' are reserved"),
        (lambda: Topic("x", tags={"smartpipe:service": "x"}), "keys that begin with 'smartpipe:' are reserved"),
        (lambda: Topic("x", tags={"a#b": "x"}), "letters, digits, spaces"),
        (lambda: Topic("x", tags={str(number): "" for number in range(48)}), "so use at most 47"),
        (lambda: Topic("x", kms_key=" "), "is empty; leave it out for no key"),
        (lambda: Queue("arn:aws:sqs:eu-west-1:999999999999:q"), "add existing=True"),
        (lambda: Queue("arn:aws:sns:eu-west-1:999999999999:q", existing=True), "is not the ARN of a queue"),
        (lambda: Queue("q", dead_letter="d"), "dead_letter= is for existing queues"),
        (lambda: Queue("q", existing=True, tags={"a": "b"}), "is external"),
        (lambda: Queue("q", existing=True, kms_key="k"), "is external"),
        (lambda: Queue("q", existing=True, direct=True), "is external"),
        (lambda: Queue("q", existing=True, filter_policy=FilterPolicy({"a": ["b"]})), "is external"),
        (lambda: Queue("q", existing=True, fifo=True, high_throughput=True), "is external"),
        (lambda: Topic(arn=f"{THEIR_TOPIC}.fifo", high_throughput=True), "only its owner can set"),
        (lambda: Topic(arn=THEIR_TOPIC, tags={"a": "b"}), "only its owner can set"),
        (lambda: Queue("q", high_throughput=True), "which only FIFO has"),
        (lambda: Service("s", publishes=["users"]), "must be an event class that declares a type"),  # type: ignore[list-item]
        (lambda: Service("s", publishes=[Event]), "must be an event class that declares a type"),
        (lambda: Service("s", publishes=UserLeft), "is not a list: write publishes="),  # type: ignore[arg-type]
        (lambda: Topic(arn="arn:aws:sns:eu-west-1:999999999999:*"), "is not the ARN of a topic"),
    ],
)
def test_declarations_that_aws_would_refuse_are_refused_immediately(
    declare: Callable[[], object], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        declare()


def test_a_queue_that_dead_letters_after_one_delivery_warns_in_the_line_of_its_declaration() -> None:
    with pytest.warns(UserWarning, match="with max_receive_count=1, SQS dead-letters") as caught:
        Queue("q", max_receive_count=1)

    assert caught[0].filename == __file__


def test_two_services_with_one_name_are_refused_and_a_repeated_service_counts_once() -> None:
    one, other = served(Queue("mailer")), served(Queue("mailer"), UserLeft)

    assert len(derive([one, one], NAMING).queues) == 2
    with pytest.raises(ConfigError) as caught:
        derive([one, other], NAMING)

    assert "two services are called 'mailer'" in str(caught.value)
    assert "queue 'mailer' is claimed by two services" in str(caught.value)


def test_a_dead_letter_queue_has_the_size_limit_of_its_queue() -> None:
    class Vast(Event, topic=Topic("vast", limit_bytes=1_000_000), type="topology.vast", version="1.0"):
        pass

    topology = derive([served(Queue("mailer"), Vast)], NAMING)

    assert {queue["MaximumMessageSize"] for queue in topology.queues.values()} == {"1048576"}


DAY = 86_400


@pytest.mark.parametrize(
    ("queue", "idempotent", "needed"),
    [
        (Queue("q"), True, None),
        (Queue("q", retention_seconds=14 * DAY), True, 28 * DAY),
        (Queue("q", retention_seconds=14 * DAY), Idempotency(ttl_seconds=28 * DAY), None),
        (Queue("q"), Idempotency(ttl_seconds=7 * DAY), 18 * DAY),
        (Queue("q.fifo", fifo=True), Idempotency(ttl_seconds=17.9 * DAY), 18 * DAY),
        (Queue("q"), Idempotency(ttl_seconds=18 * DAY), None),
        (Queue("q"), Idempotency(key="name", ttl_seconds=3_600), None),
        (Queue("q", existing=True, dead_letter="d"), Idempotency(ttl_seconds=3_600), None),
        (Queue("q"), False, None),
    ],
)
def test_a_plan_warns_of_handlers_that_forget_an_event_before_it_can_no_longer_be_redriven(
    queue: Queue, idempotent: bool | Idempotency, needed: int | None
) -> None:
    service = Service("s", queue=queue)
    if queue.fifo:
        service.subscribe(Paid, idempotent=idempotent)(handle_paid)
    else:
        service.subscribe(UserLeft, idempotent=idempotent)(handle_leaving)
    service.subscribe(UserSignedUp, queue=Queue("other"))(handle)

    sentences = list(find_short_memories([service]))

    assert len(sentences) == (0 if needed is None else 1)
    assert all(f"ttl_seconds={needed}" in sentence and "redriven" in sentence for sentence in sentences)


async def handle_paid(_: Paid) -> None: ...


async def handle_leaving(_: UserLeft) -> None: ...


def test_the_default_memory_outlasts_the_default_retention_of_queue_and_dead_letter_queue() -> None:
    assert Idempotency().ttl_seconds > Queue("q").retention_seconds + DEAD_LETTER_RETENTION_SECONDS


@pytest.mark.parametrize("key", ["alias/shop\n", " alias/shop", "alias/\x00", "alias/caf\u00e9"])
@pytest.mark.parametrize("kind", [Topic, Queue])
def test_a_key_with_a_character_that_no_request_may_have_is_refused(kind: type[Topic | Queue], key: str) -> None:
    with pytest.raises(ConfigError, match="kms_key="):
        kind("x", kms_key=key)
