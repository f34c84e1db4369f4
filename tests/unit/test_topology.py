from __future__ import annotations

import pytest

from smartpipe import ConfigError, Event, Queue, RetryPolicy, Service, Topic
from smartpipe.topology.derive import POLICY_SID, derive
from smartpipe.topology.model import Topology
from smartpipe.topology.naming import Naming
from smartpipe.topology.plan import Change, plan
from tests.support.events import OrderPlaced, UserLeft, UserSignedUp

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")
USERS = "arn:aws:sns:eu-west-1:123456789012:staging-users"
ORDERS = "arn:aws:sns:eu-west-1:123456789012:staging-orders"
MAILER = "arn:aws:sqs:eu-west-1:123456789012:staging-mailer"


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
        (USERS, MAILER): {
            "RawMessageDelivery": "true",
            "FilterPolicy": {"type": ["member.signed_up", "user.left"]},
        },
        (ORDERS, MAILER): {"RawMessageDelivery": "true", "FilterPolicy": {"type": ["order.placed"]}},
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


def test_a_topic_with_a_limit_of_its_own_asks_for_it() -> None:
    big = Topic("big", limit_bytes=1_048_576)

    class Huge(Event, topic=big, type="huge", version="1.0"):
        pass

    service = Service("s")
    service.subscribe(Huge)(handle)

    assert derive([service], NAMING).topics == {NAMING.topic_arn("big"): {"MaximumMessageSize": "1048576"}}


NOTHING = Topology({}, {}, {})


def test_from_nothing_queues_and_their_policies_come_before_subscriptions() -> None:
    changes = plan(derive([mailer()], NAMING), NOTHING)

    assert [str(change) for change in changes] == [
        "create queue staging-mailer-dlq",
        "create queue staging-mailer",
        "create topic staging-users",
        "create topic staging-orders",
        "create subscription staging-users → staging-mailer",
        "create subscription staging-orders → staging-mailer",
    ]


def test_what_is_in_place_needs_no_change() -> None:
    desired = derive([mailer()], NAMING)

    assert plan(desired, desired) == []


def test_a_difference_is_shown_as_old_and_new_and_nothing_else_is_touched() -> None:
    desired = derive([mailer()], NAMING)
    actual = Topology(
        desired.topics,
        {**desired.queues, MAILER: {**desired.queues[MAILER], "VisibilityTimeout": "5", "KmsMasterKeyId": "k"}},
        desired.subscriptions,
    )

    [change] = plan(desired, actual)

    assert change == Change("update", "queue", (MAILER,), {"VisibilityTimeout": "30"}, {"VisibilityTimeout": "5"})
    assert str(change) == "update queue staging-mailer (VisibilityTimeout: 5 → 30)"


FOREIGN = {"Sid": "theirs", "Effect": "Allow", "Principal": {"AWS": "x"}, "Action": "sqs:*", "Resource": MAILER}


@pytest.mark.parametrize("ours_is_there", [True, False])
def test_policy_statements_of_others_are_kept(ours_is_there: bool) -> None:
    desired = derive([mailer()], NAMING)
    policy = desired.queues[MAILER]["Policy"]
    stale = {**policy["Statement"][0], "Condition": {}}
    present = {**policy, "Id": "kept", "Statement": [FOREIGN, stale] if ours_is_there else [FOREIGN]}
    actual = Topology(
        desired.topics, {**desired.queues, MAILER: {**desired.queues[MAILER], "Policy": present}}, desired.subscriptions
    )

    [change] = plan(desired, actual)

    assert change.attributes["Policy"]["Id"] == "kept"
    assert [s["Sid"] for s in change.attributes["Policy"]["Statement"]] == ["theirs", POLICY_SID]
    assert change.attributes["Policy"]["Statement"] == [FOREIGN, policy["Statement"][0]]


def test_a_policy_with_our_statement_anywhere_in_it_is_in_place() -> None:
    desired = derive([mailer()], NAMING)
    policy = desired.queues[MAILER]["Policy"]
    present = {**policy, "Statement": [*policy["Statement"], FOREIGN]}
    actual = Topology(
        desired.topics, {**desired.queues, MAILER: {**desired.queues[MAILER], "Policy": present}}, desired.subscriptions
    )

    assert plan(desired, actual) == []


def test_a_policy_with_its_one_statement_outside_of_a_list_is_understood() -> None:
    desired = derive([mailer()], NAMING)
    present = {"Version": "2012-10-17", "Statement": FOREIGN}
    actual = Topology(
        desired.topics, {**desired.queues, MAILER: {**desired.queues[MAILER], "Policy": present}}, desired.subscriptions
    )

    [change] = plan(desired, actual)

    assert [s["Sid"] for s in change.attributes["Policy"]["Statement"]] == ["theirs", POLICY_SID]


def test_a_queue_that_is_anothers_dead_letter_queue_and_a_topic_of_two_minds_are_refused() -> None:
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
