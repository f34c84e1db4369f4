"""Plans by tables: what is wanted, what is there, what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smartpipe import ConfigError, Event, Queue, Service, Topic
from smartpipe.names import Naming
from smartpipe.topology.changes import Change, pending_changes
from smartpipe.topology.checks import find_errors, find_warnings
from smartpipe.topology.derive import derive
from smartpipe.topology.destroy import destruction, holding
from smartpipe.topology.plan import plan
from smartpipe.topology.policy import POLICY_SID, merge_statements, statement
from smartpipe.topology.resources import Topology
from smartpipe.topology.stages import stages
from tests.support.events import OrderPlaced, UserLeft, UserSignedUp

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")
USERS = NAMING.topic_arn("users")
ORDERS = NAMING.topic_arn("orders")
MAILER = NAMING.queue_arn("mailer")
DEAD = f"{MAILER}-dlq"
NOTHING = Topology({}, {}, {})


async def handle(_: Event) -> None: ...


def mailer(*events: type[Event], queue: Queue | None = None) -> Service:
    service = Service("mailer", queue=queue)
    for event in events or (UserSignedUp, UserLeft, OrderPlaced):
        service.subscribe(event)(handle)
    return service


def wanted(*events: type[Event], queue: Queue | None = None) -> Topology:
    return derive([mailer(*events, queue=queue)], NAMING)


def as_it_is(desired: Topology) -> Topology:
    """What AWS would say after an apply: policies are text there."""
    queues = {arn: {**found, "Policy": json.dumps(found["Policy"])} for arn, found in desired.queues.items()}
    return Topology({arn: dict(found) for arn, found in desired.topics.items()}, queues, dict(desired.subscriptions))


def with_queue(actual: Topology, arn: str = MAILER, **attributes: Any) -> Topology:
    return actual._replace(queues={**actual.queues, arn: {**actual.queues[arn], **attributes}})


def lines(changes: list[Change]) -> list[str]:
    return [str(change) for change in changes]


def test_a_statement_that_lets_sns_in_by_another_regions_principal_is_brought_into_line() -> None:
    far = Topic(arn="arn:aws:sns:me-south-1:999999999999:parcels")

    class Sent(Event, topic=far, type="plan.sent", version="1.0"):
        pass

    desired = wanted(UserSignedUp, Sent)
    [ours] = desired.queues[MAILER]["Policy"]["Statement"]
    old = json.dumps({"Version": "2012-10-17", "Statement": [{**ours, "Principal": {"Service": "sns.amazonaws.com"}}]})

    changes = pending_changes(plan(desired, with_queue(as_it_is(desired), Policy=old)))

    path = "Policy.Statement.SmartpipeAllowSns.Principal.Service"
    after = '["sns.amazonaws.com", "sns.me-south-1.amazonaws.com"]'
    assert lines(changes) == [f"update queue staging-mailer ({path}: sns.amazonaws.com → {after})"]
    assert json.loads(changes[0].attributes["Policy"])["Statement"] == [ours]


def test_the_statement_for_a_key_names_the_principal_of_another_region() -> None:
    class Sent(Event, topic=Topic(arn="arn:aws:sns:me-south-1:999999999999:keyed"), type="plan.keyed", version="1.0"):
        pass

    desired = wanted(Sent, queue=Queue("mailer", kms_key="alias/shop"))

    [note] = find_warnings(desired, as_it_is(desired))

    assert '"Principal": {"Service": "sns.me-south-1.amazonaws.com"}' in note


def test_from_nothing_queues_and_their_policies_come_before_subscriptions() -> None:
    changes = plan(wanted(), NOTHING)

    assert lines(changes) == [
        "create queue staging-mailer-dlq",
        "create queue staging-mailer",
        "create topic staging-users",
        "create topic staging-orders",
        "create subscription staging-users → staging-mailer",
        "create subscription staging-orders → staging-mailer",
    ]
    assert [[change.name for change in stage] for stage in stages(changes)] == [
        ["staging-mailer-dlq"],
        ["staging-mailer", "staging-users", "staging-orders"],
        ["staging-users → staging-mailer", "staging-orders → staging-mailer"],
    ]


def test_what_is_in_place_is_unchanged() -> None:
    changes = plan(wanted(), as_it_is(wanted()))

    assert {change.action for change in changes} == {"unchanged"}
    assert pending_changes(changes) == []


ABSENT: Any = object()


@pytest.mark.parametrize(
    ("arn", "attribute", "present", "line"),
    [
        (MAILER, "VisibilityTimeout", "5", "update queue staging-mailer (VisibilityTimeout: 5 → 30)"),
        (MAILER, "DelaySeconds", "9", "update queue staging-mailer (DelaySeconds: 9 → 0)"),
        (MAILER, "SqsManagedSseEnabled", "false", "update queue staging-mailer (SqsManagedSseEnabled: false → true)"),
        (MAILER, "KmsMasterKeyId", "k", 'update queue staging-mailer (KmsMasterKeyId: k → "")'),
        (
            DEAD,
            "MessageRetentionPeriod",
            "60",
            "update queue staging-mailer-dlq (MessageRetentionPeriod: 60 → 1209600)",
        ),
        (
            MAILER,
            "RedrivePolicy",
            {"deadLetterTargetArn": DEAD, "maxReceiveCount": 3},
            "update queue staging-mailer (RedrivePolicy.maxReceiveCount: 3 → 24)",
        ),
        (
            DEAD,
            "RedriveAllowPolicy",
            {"redrivePermission": "allowAll"},
            (
                "update queue staging-mailer-dlq (RedriveAllowPolicy.redrivePermission: allowAll → byQueue, "
                f'RedriveAllowPolicy.sourceQueueArns: nothing → ["{MAILER}"])'
            ),
        ),
        (MAILER, "ReceiveMessageWaitTimeSeconds", "7", None),  # never declared, so never touched
        (MAILER, "DelaySeconds", ABSENT, None),  # AWS's default is what is wanted
        (DEAD, "RedriveAllowPolicy", ABSENT, None),
    ],
)
def test_what_was_changed_by_hand_is_shown_as_old_and_new(
    arn: str, attribute: str, present: Any, line: str | None
) -> None:
    actual = with_queue(as_it_is(wanted()), arn, **{attribute: present})
    if present is ABSENT:
        del actual.queues[arn][attribute]

    changes = pending_changes(plan(wanted(), actual))

    assert lines(changes) == ([] if line is None else [line])


def test_a_changed_tag_is_named_and_tags_of_others_are_left_alone() -> None:
    tags = {**wanted().queues[MAILER]["Tags"], "smartpipe:prefix": "", "cost": "42"}

    [change] = pending_changes(plan(wanted(), with_queue(as_it_is(wanted()), Tags=tags)))

    assert str(change) == 'update queue staging-mailer (Tags.smartpipe:prefix: "" → staging-)'
    assert change.attributes == {"Tags": {"smartpipe:prefix": "staging-"}}


def test_a_subscription_that_was_deleted_or_filtered_otherwise_is_named() -> None:
    actual = as_it_is(wanted())
    users = actual.subscriptions.pop((USERS, MAILER))
    actual.subscriptions[ORDERS, MAILER] = {**users, "FilterPolicy": {"type": ["x"]}, "RawMessageDelivery": "false"}

    changes = pending_changes(plan(wanted(), actual))

    assert lines(changes) == [
        "create subscription staging-users → staging-mailer",
        (
            "update subscription staging-orders → staging-mailer (RawMessageDelivery: false → true, "
            "FilterPolicy.type: + order.placed, − x)"  # noqa: RUF001 - a minus sign
        ),
    ]


def test_a_filter_in_another_order_is_the_same() -> None:
    actual = as_it_is(wanted())
    policy = {"type": ["user.left", "member.signed_up"]}
    actual.subscriptions[USERS, MAILER] = {**actual.subscriptions[USERS, MAILER], "FilterPolicy": policy}

    assert pending_changes(plan(wanted(), actual)) == []


FOREIGN = {"Sid": "theirs", "Effect": "Allow", "Principal": {"AWS": "x"}, "Action": "sqs:*", "Resource": MAILER}


@pytest.mark.parametrize("ours", [None, statement(MAILER, [USERS])], ids=["none of ours", "a stale one of ours"])
def test_policy_statements_of_others_are_kept_and_the_difference_is_ours_alone(ours: dict[str, Any] | None) -> None:
    theirs = {"Version": "2012-10-17", "Id": "kept", "Statement": [FOREIGN]}
    text = merge_statements(json.dumps(theirs), ours)

    [change] = pending_changes(plan(wanted(), with_queue(as_it_is(wanted()), Policy=text)))

    policy = json.loads(change.attributes["Policy"])
    assert policy["Id"] == "kept"
    assert [s["Sid"] for s in policy["Statement"]] == ["theirs", POLICY_SID]
    assert json.dumps(FOREIGN) in change.attributes["Policy"]
    if ours:
        assert str(change).endswith(f"(Policy.Statement.{POLICY_SID}.Condition.ArnEquals.aws:SourceArn: + {ORDERS})")


def test_a_policy_with_its_one_statement_outside_of_a_list_is_understood() -> None:
    text = json.dumps({"Version": "2012-10-17", "Statement": FOREIGN})

    [change] = pending_changes(plan(wanted(), with_queue(as_it_is(wanted()), Policy=text)))

    assert [s["Sid"] for s in json.loads(change.attributes["Policy"])["Statement"]] == ["theirs", POLICY_SID]


def test_a_subscription_that_no_handler_wants_goes_after_the_new_ones_and_its_topic_is_shut_out_last() -> None:
    before, after = wanted(UserSignedUp), wanted(OrderPlaced)

    changes = pending_changes(plan(after, as_it_is(before)))

    assert [str(change).partition(" (")[0] for change in changes] == [
        "update queue staging-mailer-dlq",
        "update queue staging-mailer",
        "create topic staging-orders",
        "create subscription staging-orders → staging-mailer",
        "delete subscription staging-users → staging-mailer",
        "update queue staging-mailer-dlq",
        "update queue staging-mailer",
    ]
    opened, shut = (change.attributes["Policy"] for change in changes if change.name == "staging-mailer")
    assert json.loads(opened)["Statement"] == [statement(MAILER, [USERS, ORDERS])]
    assert json.loads(shut)["Statement"] == [statement(MAILER, [ORDERS])]
    assert [len(stage) for stage in stages(changes)] == [2, 1, 1, 1, 2]


def test_a_subscription_of_our_queue_that_somebody_else_made_is_left_alone() -> None:
    theirs = "arn:aws:sns:eu-west-1:123456789012:theirs"
    actual = as_it_is(wanted())
    actual.subscriptions[theirs, MAILER] = {}
    actual.subscriptions[USERS, "https://example.com"] = {}

    changes = plan(wanted(), actual)

    assert pending_changes(changes) == []
    assert [str(change) for change in changes if change.action == "foreign"] == [
        "foreign subscription staging-users → https://example.com (not of these TARGETs)"
    ]


def test_what_carries_the_tags_and_nobody_declares_is_orphaned_and_stays() -> None:
    actual = as_it_is(wanted())
    old = NAMING.queue_arn("old")
    actual.queues[old] = {"Tags": {"smartpipe:service": "oldie"}}

    changes = plan(wanted(), actual)

    assert pending_changes(changes) == []
    assert str(changes[-1]) == "orphaned queue staging-old (no TARGET declares it; it was service oldie's)"


def test_a_topic_that_another_application_manages_is_left_alone() -> None:
    actual = as_it_is(wanted())
    actual.topics[USERS] = {"Tags": {"smartpipe:application": "billing"}, "KmsMasterKeyId": "theirs"}

    changes = plan(wanted(), actual)

    assert pending_changes(changes) == []
    assert "foreign topic staging-users (application billing manages it)" in lines(changes)


class Shipped(Event, topic=Topic(arn="arn:aws:sns:eu-west-1:999999999999:parcels"), type="plan.shipped", version="1.0"):
    pass


THEIR_QUEUE = Queue("theirs", existing=True)


def test_what_is_somebody_elses_is_never_changed_whatever_it_looks_like() -> None:
    desired = wanted(Shipped, queue=THEIR_QUEUE)
    queue, topic = NAMING.queue_arn("theirs"), "arn:aws:sns:eu-west-1:999999999999:parcels"
    redrive = {"deadLetterTargetArn": f"{queue}-dlq", "maxReceiveCount": 3}
    actual = Topology(
        {topic: {}}, {queue: {"RedrivePolicy": redrive, "VisibilityTimeout": "1"}, f"{queue}-dlq": {}}, {}
    )

    changes = plan(desired, actual)

    assert {change.action for change in changes} == {"foreign"}
    assert find_errors(desired, actual) == []
    assert "missing: the queue's owner has to subscribe it" in lines(changes)[-1]


@pytest.mark.parametrize(
    ("queue", "sentence"),
    [
        (None, "is declared existing=True and does not exist"),
        ({}, "its dead-letter queue is missing, not staging-theirs-dlq; its owner has to give it one"),
        (
            {"RedrivePolicy": {"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:123456789012:graves"}},
            'declare Queue(..., dead_letter="graves")',
        ),
    ],
)
def test_an_existing_queue_that_is_not_as_expected_is_a_fault(queue: dict[str, Any] | None, sentence: str) -> None:
    arn = NAMING.queue_arn("theirs")
    found = {f"{arn}-dlq": dict[str, Any](), **({} if queue is None else {arn: queue})}

    [fault] = find_errors(wanted(queue=THEIR_QUEUE), Topology({}, found, {}))

    assert sentence in fault


def test_everything_that_stands_in_the_way_is_told_together() -> None:
    class Booked(Event, topic=Topic("book", fifo=True), type="plan.booked", version="1.0", key="to"):
        to: str

    desired = derive([mailer(), Service("api", publishes=[Booked, Shipped])], NAMING)
    actual = with_queue(as_it_is(desired), Tags={"smartpipe:application": "billing"}, Policy="x" * 9_000)
    actual.topics[NAMING.topic_arn("book.fifo")]["FifoThroughputScope"] = "MessageGroup"
    del actual.topics["arn:aws:sns:eu-west-1:999999999999:parcels"]
    long = json.dumps({"Statement": [{"Sid": "theirs", "Resource": "x" * 8_000}]})

    told = find_errors(desired, with_queue(actual, Policy=long))

    assert len(told) == 4
    for sentence in (
        "two services claim one queue; rename one, set SMARTPIPE_APPLICATION, or declare it existing=True",
        "bytes with the statements of others, and SQS takes 8,192",
        "AWS never takes high throughput back",
        "is declared by its ARN and does not exist",
    ):
        assert any(sentence in one for one in told)


def test_fault_49_a_dead_letter_queue_that_keeps_no_longer_than_its_source_is_warned_of() -> None:
    desired = wanted(queue=Queue("mailer", retention_seconds=1_209_600))

    [note] = find_warnings(desired, as_it_is(desired))

    assert "late dead letters vanish at once" in note


def test_fault_49_also_of_a_queue_that_is_somebody_elses() -> None:
    arn = NAMING.queue_arn("theirs")
    found = {arn: {"MessageRetentionPeriod": "345600"}, f"{arn}-dlq": {"MessageRetentionPeriod": "60"}}

    [note] = find_warnings(wanted(queue=THEIR_QUEUE), Topology({}, found, {}))

    assert "keeps messages for 60 s" in note


def test_fault_49_a_dead_letter_queue_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="is the name of a FIFO queue: add fifo=True"):
        Queue("theirs", existing=True, dead_letter="graves.fifo")


def test_fault_49_a_folded_policy_is_told() -> None:
    service = Service("mailer")
    for number in range(60):
        name = "a-very-long-name-" * 8 + str(number)
        event = type(f"Event{number}", (Event,), {}, topic=Topic(name), type=f"plan.e{number}", version="1.0")
        service.subscribe(event)(handle)

    [note] = find_warnings(derive([service], NAMING), NOTHING)[1:]

    assert "too many topics for a policy of 8,192 bytes, so it lets in all of" in note
    assert note.endswith("* of their own account")


def test_fault_10_the_statement_that_a_queues_key_needs_is_printed() -> None:
    [note] = find_warnings(wanted(queue=Queue("mailer", kms_key="alias/shop")), NOTHING)

    assert "under key alias/shop only if" in note
    assert json.loads(note.partition("has this statement: ")[2])["Sid"] == "SmartpipeAllowSnsToEncrypt"


def test_what_is_taken_over_is_told_before() -> None:
    actual = as_it_is(wanted())
    actual.topics[USERS] = {**actual.topics[USERS], "Tags": {}}

    [note] = find_warnings(wanted(), with_queue(actual, Tags={}))[:1]

    assert "queue staging-mailer is there and carries no tags of smartpipe: apply makes it this application's" in note


def test_a_statement_of_others_that_lets_anybody_in_is_told() -> None:
    text = merge_statements(json.dumps({"Statement": [{"Sid": "open", "Effect": "Allow", "Principal": "*"}]}), None)

    [note] = find_warnings(wanted(), with_queue(as_it_is(wanted()), Policy=text))

    assert "statement 'open', which is not smartpipe's, lets anybody in" in note


def test_destroying_takes_subscriptions_first_and_dead_letter_queues_last() -> None:
    changes = destruction(wanted(), as_it_is(wanted()), NAMING)

    assert [[change.name for change in stage] for stage in stages(changes)] == [
        ["staging-users → staging-mailer", "staging-orders → staging-mailer"],
        ["staging-users", "staging-orders"],
        ["staging-mailer"],
        ["staging-mailer-dlq"],
    ]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, "it carries no tags of smartpipe"),
        ({"smartpipe:application": "billing", "smartpipe:prefix": "staging-"}, "its tags name application billing"),
        ({"smartpipe:application": "smartpipe", "smartpipe:prefix": ""}, "its tags name application smartpipe"),
    ],
)
def test_destroying_keeps_what_does_not_carry_the_tags_of_this_application_and_prefix(
    tags: dict[str, str], reason: str
) -> None:
    changes = destruction(wanted(), with_queue(as_it_is(wanted()), Tags=tags), NAMING)

    kept = {change.name: change.reason for change in changes if change.action == "foreign" and change.kind == "queue"}
    assert kept == {
        "staging-mailer": reason,
        "staging-mailer-dlq": "queues that stay use it as their dead-letter queue: staging-mailer",
    }
    assert not any(change.kind == "queue" for change in pending_changes(changes))


def test_destroying_keeps_a_topic_that_others_subscribe_to() -> None:
    actual = as_it_is(wanted())
    actual.subscriptions[USERS, NAMING.queue_arn("friends")] = {}

    changes = destruction(wanted(), actual, NAMING)

    [kept] = [change for change in changes if change.action == "foreign"]
    assert str(kept) == "foreign topic staging-users (others subscribe to it: staging-friends)"
    assert "delete subscription staging-users → staging-friends" not in lines(changes)
    assert "delete subscription staging-users → staging-mailer" in lines(changes)


def kept_by_destroying(desired: Topology, actual: Topology, **options: Any) -> dict[str, str]:
    changes = destruction(desired, actual, NAMING, **options)
    kept = {change.name: change.reason for change in changes if change.action == "foreign"}
    assert not kept.keys() & {change.name for change in pending_changes(changes)}
    return kept


@pytest.mark.parametrize("tags", [{}, {"smartpipe:application": "smartpipe", "smartpipe:prefix": "staging-"}])
@pytest.mark.parametrize("options", [{}, {"orphaned": True}, {"even_if_not_empty": True}])
def test_destroying_always_keeps_tables_and_buckets_whatever_their_tags(
    tags: dict[str, str], options: dict[str, bool]
) -> None:
    found: dict[str, Any] = {
        "tables": {NAMING.table_arn("claims"): {"Tags": tags}},
        "buckets": {NAMING.bucket_arn("bodies"): {"Tags": tags}},
    }
    desired, actual = wanted()._replace(**found), as_it_is(wanted())._replace(**found)

    assert kept_by_destroying(desired, actual, **options) == {
        "claims": "services and environments may share it, and claims are in it",
        "bodies": "environments may share it, and messages point there",
    }


def test_destroying_keeps_a_queue_of_another_service_and_what_it_uses() -> None:
    tags = {**wanted().queues[MAILER]["Tags"], "smartpipe:service": "alpha"}
    actual = with_queue(as_it_is(wanted()), Tags=tags)
    actual.subscriptions[NAMING.topic_arn("audit"), MAILER] = {}

    kept = kept_by_destroying(wanted(), actual)

    assert kept["staging-mailer"] == "its tags name service alpha"
    assert kept["staging-mailer-dlq"] == "queues that stay use it as their dead-letter queue: staging-mailer"
    assert kept["staging-users"] == "others subscribe to it: staging-mailer"


@pytest.mark.parametrize("options", [{}, {"orphaned": True}, {"even_if_not_empty": True}])
def test_destroying_keeps_a_dead_letter_queue_that_other_queues_use(options: dict[str, bool]) -> None:
    theirs = "arn:aws:sqs:eu-west-1:123456789012:billing"
    actual = with_queue(as_it_is(wanted()), DEAD, DeadLetterSources=[MAILER, theirs])

    kept = kept_by_destroying(wanted(), actual, **options)

    assert kept == {"staging-mailer-dlq": "queues that stay use it as their dead-letter queue: billing"}


def test_destroying_keeps_a_queue_that_is_another_ones_dead_letter_queue_with_its_own_dead_letter_queue() -> None:
    theirs = "arn:aws:sqs:eu-west-1:123456789012:billing"

    kept = kept_by_destroying(wanted(), with_queue(as_it_is(wanted()), DeadLetterSources=[theirs]))

    assert kept["staging-mailer"] == "queues that stay use it as their dead-letter queue: billing"
    assert kept["staging-mailer-dlq"] == "queues that stay use it as their dead-letter queue: staging-mailer"


def test_destroying_keeps_a_dead_letter_queue_of_which_sqs_does_not_say_who_uses_it() -> None:
    kept = kept_by_destroying(wanted(), with_queue(as_it_is(wanted()), DEAD, DeadLetterSources=None))

    assert list(kept) == ["staging-mailer-dlq"]
    assert "sqs:ListDeadLetterSourceQueues was refused" in kept["staging-mailer-dlq"]


def test_destroying_keeps_topics_while_other_services_of_the_application_may_publish_to_them() -> None:
    actual = as_it_is(wanted(UserSignedUp))
    billing = NAMING.queue_arn("billing")
    seen = actual._replace(queues={**actual.queues, billing: {"Tags": wanted().queues[MAILER]["Tags"]}})
    reason = "other services of the application may publish to it, and are still there: queue staging-billing"

    assert kept_by_destroying(wanted(UserSignedUp), seen) == {"staging-users": reason}
    assert kept_by_destroying(wanted(UserSignedUp), actual, orphans=[billing]) == {"staging-users": reason}
    assert kept_by_destroying(wanted(UserSignedUp), actual, orphans=[NAMING.topic_arn("old")]) == {}
    assert kept_by_destroying(wanted(UserSignedUp), seen, orphaned=True, orphans=[billing]) == {}


def test_destroying_keeps_topics_where_it_is_not_known_what_else_the_application_has() -> None:
    kept = kept_by_destroying(wanted(UserSignedUp), as_it_is(wanted(UserSignedUp)), orphans=None)

    assert list(kept) == ["staging-users"]
    assert "is not known: see the note" in kept["staging-users"]


def test_what_goes_remembers_who_used_it_so_that_newcomers_are_noticed() -> None:
    going = {
        change.name: change.before for change in pending_changes(destruction(wanted(), as_it_is(wanted()), NAMING))
    }

    assert going["staging-users"] == {"Subscribers": [MAILER]}
    assert going["staging-mailer-dlq"]["DeadLetterSources"] == [MAILER]


def test_destroying_leaves_orphans_and_what_is_given_unless_asked() -> None:
    desired = wanted(Shipped)
    actual = as_it_is(desired)
    actual.queues[NAMING.queue_arn("old")] = {"Tags": wanted().queues[MAILER]["Tags"]}

    spared = destruction(desired, actual, NAMING)
    asked = destruction(desired, actual, NAMING, orphaned=True)

    assert "delete queue staging-old" not in lines(spared)
    assert "delete queue staging-old" in lines(asked)
    assert "delete topic parcels" not in lines(asked)


def test_queues_that_hold_messages_are_named_with_how_many() -> None:
    actual = with_queue(as_it_is(wanted()), ApproximateNumberOfMessages="2", ApproximateNumberOfMessagesDelayed="1")
    actual = with_queue(actual, DEAD, ApproximateNumberOfMessagesNotVisible="1")

    assert holding(destruction(wanted(), actual, NAMING), actual) == [
        "queue staging-mailer holds about 3 messages",
        "queue staging-mailer-dlq holds about 1 message",
    ]


@pytest.mark.parametrize("arn", [MAILER, DEAD])
def test_a_queue_that_takes_less_than_its_topics_is_made_to_take_it(arn: str) -> None:
    changes = pending_changes(plan(wanted(), with_queue(as_it_is(wanted()), arn, MaximumMessageSize="1024")))

    assert [(change.arns, change.attributes) for change in changes] == [((arn,), {"MaximumMessageSize": "262144"})]
    assert pending_changes(plan(wanted(), with_queue(as_it_is(wanted()), arn, MaximumMessageSize="262144"))) == []


def test_a_queue_of_another_service_of_the_same_application_is_a_fault() -> None:
    tags = {**wanted().queues[MAILER]["Tags"], "smartpipe:service": "alpha"}

    [fault] = find_errors(wanted(), with_queue(as_it_is(wanted()), Tags=tags))

    assert "is of service 'alpha', and 'mailer' claims it" in fault
    assert "remove the queue's tag smartpipe:service first" in fault


@pytest.mark.parametrize("theirs", ["mail", ""])
def test_a_queue_of_another_environment_whose_prefix_makes_the_same_name_is_a_fault(theirs: str) -> None:
    tags = {**wanted().queues[MAILER]["Tags"], "smartpipe:prefix": theirs}

    [fault] = find_errors(wanted(), with_queue(as_it_is(wanted()), Tags=tags))

    assert f"belongs to the environment with SMARTPIPE_PREFIX={theirs!r}" in fault
    assert "end each prefix with a hyphen" in fault


def test_so_is_a_topic() -> None:
    actual = as_it_is(wanted())
    tags = {**actual.topics[USERS]["Tags"], "smartpipe:prefix": "us"}
    actual.topics[USERS] = {**actual.topics[USERS], "Tags": tags}

    [fault] = find_errors(wanted(), actual)

    assert "topic" in fault
    assert "SMARTPIPE_PREFIX='us'" in fault


def test_a_queue_of_another_account_than_was_said_is_a_fault() -> None:
    theirs = MAILER.replace("123456789012", "999999999999")

    [fault] = find_errors(wanted(), with_queue(as_it_is(wanted()), QueueArn=theirs))

    assert "is SMARTPIPE_ACCOUNT_ID right?" in fault


def test_more_statements_than_a_policy_may_have_are_a_fault() -> None:
    text = json.dumps({"Statement": [{"Sid": str(number)} for number in range(20)]})

    [fault] = find_errors(wanted(), with_queue(as_it_is(wanted()), Policy=text))

    assert "its policy would have 21 statements, and SQS takes 20" in fault


def test_an_existing_queue_that_gives_up_early_or_takes_little_is_told() -> None:
    arn = NAMING.queue_arn("theirs")
    redrive = {"deadLetterTargetArn": f"{arn}-dlq", "maxReceiveCount": 1}
    found = {arn: {"RedrivePolicy": redrive, "MaximumMessageSize": "1024"}, f"{arn}-dlq": {}}

    early, small = find_warnings(wanted(queue=THEIR_QUEUE), Topology({}, found, {}))

    assert "SQS dead-letters after 1 deliveries, without a reason" in early
    assert "takes messages of 1,024 bytes; SNS drops what is longer" in small


def test_a_queue_that_goes_remembers_how_many_messages_it_was_seen_with() -> None:
    actual = with_queue(as_it_is(wanted()), ApproximateNumberOfMessages="2")

    seen = {change.arns: change.before for change in destruction(wanted(), actual, NAMING) if change.kind == "queue"}
    forced = destruction(wanted(), actual, NAMING, even_if_not_empty=True)

    assert (seen[(MAILER,)]["Messages"], seen[(DEAD,)]["Messages"]) == (2, 0)
    assert not any("Messages" in change.before for change in forced)
