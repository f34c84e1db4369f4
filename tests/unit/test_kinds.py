"""The kinds of resources: their ARNs, the stages of their changes, what a deletion remembers, and their differences."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Service
from smartpipe.names import Naming
from smartpipe.tags import SERVICE
from smartpipe.topology.changes import pending_changes
from smartpipe.topology.derive import derive
from smartpipe.topology.kinds import (
    BUCKET,
    KINDS,
    MESSAGES,
    QUEUE,
    SOURCES,
    SUBSCRIBERS,
    SUBSCRIPTION,
    TABLE,
    TOPIC,
    Stage,
    kind_of,
    kinds_in_plan_order,
)
from smartpipe.topology.plan import plan
from smartpipe.topology.policy import build_statement, find_our_statement, merge_statements, read_statements
from smartpipe.topology.resources import TAGS, Topology
from smartpipe.topology.table_and_bucket import TableAndBucket, create_table_arguments
from tests.support import exported

if TYPE_CHECKING:
    from smartpipe.topology.changes import Action
    from smartpipe.topology.kinds import ResourceKind

NAMING = Naming("aws", "eu-west-1", "123456789012")
A_TOPIC, A_QUEUE = NAMING.topic_arn("users"), NAMING.queue_arn("mailer")
OTHER_QUEUE, DEAD = NAMING.queue_arn("audit"), NAMING.queue_arn("mailer-dlq")


@pytest.mark.parametrize(
    ("arn", "kind"),
    [
        (A_TOPIC, TOPIC),
        (A_QUEUE, QUEUE),
        (NAMING.table_arn("claims"), TABLE),
        (NAMING.bucket_arn("bodies"), BUCKET),
    ],
)
def test_an_arn_has_one_kind(arn: str, kind: ResourceKind) -> None:
    assert kind_of(arn) is kind
    assert [one for one in KINDS.values() if one.matches(arn)] == [kind]


@pytest.mark.parametrize("arn", ["arn:aws:dynamodb:eu-west-1:1:stream/x", "arn:aws:lambda:eu-west-1:1:function:x"])
def test_an_arn_of_another_kind_is_an_error(arn: str) -> None:
    with pytest.raises(LookupError, match=f"no kind of resource has ARNs like {arn}"):
        kind_of(arn)


def test_only_topics_and_queues_can_be_orphans() -> None:
    assert [kind.name for kind in KINDS.values() if kind.finds_orphans] == ["topic", "queue"]


def test_dead_letter_queues_come_before_other_resources_and_subscriptions_last() -> None:
    names = [kind.name for kind in kinds_in_plan_order()]

    assert names[0] == "queue"
    assert names[-1] == "subscription"


@pytest.mark.parametrize(
    ("kind", "action", "attributes", "stage"),
    [
        (QUEUE, "create", {}, Stage.DEAD_LETTER_QUEUES),
        (QUEUE, "update", {"RedrivePolicy": {}}, Stage.RESOURCES),
        (QUEUE, "delete", {}, Stage.DELETE_DEAD_LETTER_QUEUES),
        (QUEUE, "delete", {"RedrivePolicy": {}}, Stage.DELETE_QUEUES),
        (TOPIC, "create", {}, Stage.RESOURCES),
        (TOPIC, "delete", {}, Stage.DELETE_RESOURCES),
        (TABLE, "update", {}, Stage.RESOURCES),
        (SUBSCRIPTION, "create", {}, Stage.SUBSCRIBE),
        (SUBSCRIPTION, "delete", {}, Stage.UNSUBSCRIBE),
    ],
)
def test_a_change_has_its_stage(kind: ResourceKind, action: Action, attributes: dict[str, Any], stage: Stage) -> None:
    assert kind.choose_stage(action, attributes) is stage


def test_the_stages_leave_no_gap_in_delivery() -> None:
    assert sorted(Stage) == [
        Stage.DEAD_LETTER_QUEUES,
        Stage.RESOURCES,
        Stage.SUBSCRIBE,
        Stage.UNSUBSCRIBE,
        Stage.NARROW_POLICIES,
        Stage.DELETE_RESOURCES,
        Stage.DELETE_QUEUES,
        Stage.DELETE_DEAD_LETTER_QUEUES,
    ]


def test_the_deletion_of_a_topic_remembers_its_own_subscribers() -> None:
    other = NAMING.topic_arn("orders")
    actual = Topology({"subscription": {(A_TOPIC, A_QUEUE): {}, (other, OTHER_QUEUE): {}, (A_TOPIC, DEAD): {}}})

    assert TOPIC.describe_before_delete(A_TOPIC, actual) == {SUBSCRIBERS: [A_QUEUE, DEAD]}


def test_the_deletion_of_a_queue_remembers_its_messages_and_the_queues_that_use_it() -> None:
    redrive = {"RedrivePolicy": {"deadLetterTargetArn": DEAD}}
    counted = {"ApproximateNumberOfMessages": "1", "ApproximateNumberOfMessagesNotVisible": "2"}
    actual = Topology({"queue": {A_QUEUE: redrive | counted, OTHER_QUEUE: {}, DEAD: {}}})

    assert QUEUE.describe_before_delete(A_QUEUE, actual) == {**redrive, MESSAGES: 3}
    assert QUEUE.describe_before_delete(DEAD, actual) == {MESSAGES: 0, SOURCES: [A_QUEUE]}
    assert QUEUE.describe_before_delete(OTHER_QUEUE, actual) == {MESSAGES: 0}


def service(*, idempotent: bool) -> Service:
    found = Service("idempotent" if idempotent else "plain")
    found.subscribe(exported.AccountOpened, idempotent=idempotent)(exported.handle)
    return found


@pytest.mark.parametrize(
    ("idempotent", "tables"), [((False,), 0), ((True,), 1), ((True, False), 1), ((False, True), 1), ((), 0)]
)
def test_a_table_is_needed_if_any_service_is_idempotent(idempotent: tuple[bool, ...], tables: int) -> None:
    services = [service(idempotent=one) for one in idempotent]

    assert len(derive(services, NAMING, TableAndBucket("claims")).of("table")) == tables
    assert derive(services, NAMING).of("table") == {}


def test_a_table_with_another_key_is_an_error() -> None:
    arn = NAMING.table_arn("claims")
    key = create_table_arguments("claims")["KeySchema"]

    assert list(TABLE.find_errors(arn, {"KeySchema": key})) == []
    [error] = TABLE.find_errors(arn, {"KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}]})
    assert error.startswith("DynamoDB table 'claims' is not one of claims: its key must be the string 'claim'")


def deployed_as(desired: Topology) -> Topology:
    """Return the deployed topology after an apply, where policies are text."""
    queues = {arn: {**found, "Policy": json.dumps(found["Policy"])} for arn, found in desired.queues.items()}
    return desired.replace(queue=queues)


def test_an_attribute_that_a_broker_lacks_does_not_hide_the_difference_of_another() -> None:
    desired = derive([exported.mailer()], NAMING)
    actual = deployed_as(desired)
    attributes = {**actual.queues[DEAD], TAGS: {**actual.queues[DEAD][TAGS], SERVICE: "other"}}
    assert list(attributes).index("RedriveAllowPolicy") < list(attributes).index(TAGS)
    del attributes["RedriveAllowPolicy"]

    [change] = pending_changes(plan(desired, actual.replace(queue={**actual.queues, DEAD: attributes})))

    assert (change.arns, change.attributes, change.before) == (
        (DEAD,),
        {TAGS: {SERVICE: "mailer"}},
        {TAGS: {SERVICE: "other"}},
    )


def test_a_subscription_of_others_does_not_hide_one_that_is_not_wanted_any_more() -> None:
    desired = derive([exported.mailer()], NAMING)
    [(topic, queue)] = desired.subscriptions
    old = NAMING.topic_arn("old")
    actual = deployed_as(desired)
    policy = merge_statements(None, build_statement(queue, [topic, old]))
    subscriptions = {(topic, "mail@example.org"): {}, **desired.subscriptions, (old, queue): {}}
    queues = {**actual.queues, queue: {**actual.queues[queue], "Policy": policy}}

    changes = pending_changes(plan(desired, actual.replace(queue=queues, subscription=subscriptions)))

    deletion = next(number for number, change in enumerate(changes) if change.action == "delete")
    assert changes[deletion].arns == (old, queue)
    assert {change.arns: list(change.attributes) for change in changes[deletion + 1 :]} == {
        (queue,): ["Policy"],
        (DEAD,): ["Policy"],
    }


@pytest.mark.parametrize("text", ['{"Statement": "x"}', '{"Statement": 5}', "[]", "{}", "", "no JSON", '{"a": 1'])
def test_a_text_that_is_not_a_policy_is_replaced(text: str) -> None:
    ours = build_statement(A_QUEUE, [A_TOPIC])

    assert read_statements(text) == []
    assert find_our_statement(text) is None
    assert json.loads(merge_statements(text, ours))["Statement"] == [ours]
    assert merge_statements(text, None) == ""
