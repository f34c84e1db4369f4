"""Plans: the declared topology, the deployed one, and the changes between them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smartpipe import ConfigError, Event, Queue, Service, Topic
from smartpipe.names import Naming
from smartpipe.topology.changes import Change, pending_changes
from smartpipe.topology.checks import find_errors, find_warnings
from smartpipe.topology.derive import derive
from smartpipe.topology.destroy import describe_full_queues, plan_destroy
from smartpipe.topology.plan import group_into_stages, plan
from smartpipe.topology.policy import POLICY_SID, build_statement, merge_statements
from smartpipe.topology.resources import Topology
from tests.support.events import OrderPlaced, UserLeft, UserSignedUp

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")
USERS = NAMING.topic_arn("users")
ORDERS = NAMING.topic_arn("orders")
MAILER = NAMING.queue_arn("mailer")
DEAD = f"{MAILER}-dlq"
NOTHING = Topology({})


async def handle(_: Event) -> None: ...


def mailer(*events: type[Event], queue: Queue | None = None) -> Service:
    service = Service("mailer", queue=queue)
    for event in events or (UserSignedUp, UserLeft, OrderPlaced):
        service.subscribe(event)(handle)
    return service


def wanted(*events: type[Event], queue: Queue | None = None) -> Topology:
    return derive([mailer(*events, queue=queue)], NAMING)


def deployed(desired: Topology) -> Topology:
    """Return the deployed topology after an apply, where policies are text."""
    queues = {arn: {**found, "Policy": json.dumps(found["Policy"])} for arn, found in desired.queues.items()}
    topics = {arn: dict(found) for arn, found in desired.topics.items()}
    return Topology({"topic": topics, "queue": queues, "subscription": dict(desired.subscriptions)})


def with_queue(actual: Topology, arn: str = MAILER, **attributes: Any) -> Topology:
    return actual.replace(queue={**actual.queues, arn: {**actual.queues[arn], **attributes}})


def lines(changes: list[Change]) -> list[str]:
    return [str(change) for change in changes]


def test_a_statement_with_the_principal_of_the_wrong_region_is_updated() -> None:
    far = Topic(arn="arn:aws:sns:me-south-1:999999999999:parcels")

    class Sent(Event, topic=far, type="plan.sent", version="1.0"):
        pass

    desired = wanted(UserSignedUp, Sent)
    [ours] = desired.queues[MAILER]["Policy"]["Statement"]
    old = json.dumps({"Version": "2012-10-17", "Statement": [{**ours, "Principal": {"Service": "sns.amazonaws.com"}}]})

    changes = pending_changes(plan(desired, with_queue(deployed(desired), Policy=old)))

    path = "Policy.Statement.SmartpipeAllowSns.Principal.Service"
    after = '["sns.amazonaws.com", "sns.me-south-1.amazonaws.com"]'
    assert lines(changes) == [f"update queue staging-mailer ({path}: sns.amazonaws.com → {after})"]
    assert json.loads(changes[0].attributes["Policy"])["Statement"] == [ours]


def test_the_statement_for_a_key_names_the_principal_of_another_region() -> None:
    class Sent(Event, topic=Topic(arn="arn:aws:sns:me-south-1:999999999999:keyed"), type="plan.keyed", version="1.0"):
        pass

    desired = wanted(Sent, queue=Queue("mailer", kms_key="alias/shop"))

    [note] = find_warnings(desired, deployed(desired))

    assert '"Principal": {"Service": "sns.me-south-1.amazonaws.com"}' in note


def test_queues_and_their_policies_are_created_before_subscriptions() -> None:
    changes = plan(wanted(), NOTHING)

    assert lines(changes) == [
        "create queue staging-mailer-dlq",
        "create queue staging-mailer",
        "create topic staging-users",
        "create topic staging-orders",
        "create subscription staging-users → staging-mailer",
        "create subscription staging-orders → staging-mailer",
    ]
    assert [[change.name for change in stage] for stage in group_into_stages(changes)] == [
        ["staging-mailer-dlq"],
        ["staging-mailer", "staging-users", "staging-orders"],
        ["staging-users → staging-mailer", "staging-orders → staging-mailer"],
    ]


def test_deployed_resources_as_declared_are_unchanged() -> None:
    changes = plan(wanted(), deployed(wanted()))

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
        (MAILER, "ReceiveMessageWaitTimeSeconds", "7", None),  # not declared, so not changed
        (MAILER, "DelaySeconds", ABSENT, None),  # AWS's default is the wanted value
        (DEAD, "RedriveAllowPolicy", ABSENT, None),
    ],
)
def test_a_manual_change_is_shown_with_the_old_and_the_new_value(
    arn: str, attribute: str, present: Any, line: str | None
) -> None:
    actual = with_queue(deployed(wanted()), arn, **{attribute: present})
    if present is ABSENT:
        del actual.queues[arn][attribute]

    changes = pending_changes(plan(wanted(), actual))

    assert lines(changes) == ([] if line is None else [line])


def test_a_changed_tag_is_updated_and_tags_of_others_stay() -> None:
    tags = {**wanted().queues[MAILER]["Tags"], "smartpipe:prefix": "", "cost": "42"}

    [change] = pending_changes(plan(wanted(), with_queue(deployed(wanted()), Tags=tags)))

    assert str(change) == 'update queue staging-mailer (Tags.smartpipe:prefix: "" → staging-)'
    assert change.attributes == {"Tags": {"smartpipe:prefix": "staging-"}}


def test_a_deleted_subscription_and_a_changed_filter_are_named() -> None:
    actual = deployed(wanted())
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


def test_the_order_of_a_filter_does_not_matter() -> None:
    actual = deployed(wanted())
    policy = {"type": ["user.left", "member.signed_up"]}
    actual.subscriptions[USERS, MAILER] = {**actual.subscriptions[USERS, MAILER], "FilterPolicy": policy}

    assert pending_changes(plan(wanted(), actual)) == []


FOREIGN = {"Sid": "theirs", "Effect": "Allow", "Principal": {"AWS": "x"}, "Action": "sqs:*", "Resource": MAILER}


@pytest.mark.parametrize("ours", [None, build_statement(MAILER, [USERS])], ids=["none of ours", "a stale one of ours"])
def test_policy_statements_of_others_are_kept_and_only_ours_differs(ours: dict[str, Any] | None) -> None:
    theirs = {"Version": "2012-10-17", "Id": "kept", "Statement": [FOREIGN]}
    text = merge_statements(json.dumps(theirs), ours)

    [change] = pending_changes(plan(wanted(), with_queue(deployed(wanted()), Policy=text)))

    policy = json.loads(change.attributes["Policy"])
    assert policy["Id"] == "kept"
    assert [s["Sid"] for s in policy["Statement"]] == ["theirs", POLICY_SID]
    assert json.dumps(FOREIGN) in change.attributes["Policy"]
    if ours:
        assert str(change).endswith(f"(Policy.Statement.{POLICY_SID}.Condition.ArnEquals.aws:SourceArn: + {ORDERS})")


def test_a_policy_with_one_statement_outside_a_list_is_understood() -> None:
    text = json.dumps({"Version": "2012-10-17", "Statement": FOREIGN})

    [change] = pending_changes(plan(wanted(), with_queue(deployed(wanted()), Policy=text)))

    assert [s["Sid"] for s in json.loads(change.attributes["Policy"])["Statement"]] == ["theirs", POLICY_SID]


def test_an_unwanted_subscription_is_deleted_after_new_ones_exist_and_its_topic_is_excluded_last() -> None:
    before, after = wanted(UserSignedUp), wanted(OrderPlaced)

    changes = pending_changes(plan(after, deployed(before)))

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
    assert json.loads(opened)["Statement"] == [build_statement(MAILER, [USERS, ORDERS])]
    assert json.loads(shut)["Statement"] == [build_statement(MAILER, [ORDERS])]
    assert [len(stage) for stage in group_into_stages(changes)] == [2, 1, 1, 1, 2]


def test_a_plan_without_tags_deletes_an_unwanted_subscription_too() -> None:
    after = wanted(OrderPlaced)
    queues = {arn: {name: value for name, value in one.items() if name != "Tags"} for arn, one in after.queues.items()}

    changes = pending_changes(plan(after.replace(queue=queues), deployed(wanted(UserSignedUp, OrderPlaced))))

    assert [str(change).partition(" (")[0] for change in changes] == [
        "delete subscription staging-users → staging-mailer",
        "update queue staging-mailer-dlq",
        "update queue staging-mailer",
    ]


def test_a_subscription_of_our_queue_that_others_made_stays() -> None:
    theirs = "arn:aws:sns:eu-west-1:123456789012:theirs"
    actual = deployed(wanted())
    actual.subscriptions[theirs, MAILER] = {}
    actual.subscriptions[USERS, "https://example.com"] = {}

    changes = plan(wanted(), actual)

    assert pending_changes(changes) == []
    assert [str(change) for change in changes if change.action == "external"] == [
        "external subscription staging-users → https://example.com (not declared by these TARGETs)"
    ]


def test_a_subscription_of_another_applications_queue_stays_although_its_policy_looks_like_ours() -> None:
    theirs = NAMING.queue_arn("theirs")
    actual = deployed(wanted())
    policy = json.dumps({"Statement": [build_statement(theirs, [USERS])]})
    actual = actual.replace(queue={**actual.queues, theirs: {"Policy": policy}})
    actual.subscriptions[USERS, theirs] = {}

    changes = plan(wanted(), actual)

    assert pending_changes(changes) == []
    assert [change.name for change in changes if change.action == "external"] == ["staging-users → staging-theirs"]


def test_a_tagged_resource_without_a_declaration_is_orphaned_and_stays() -> None:
    actual = deployed(wanted())
    old = NAMING.queue_arn("old")
    actual.queues[old] = {"Tags": {"smartpipe:service": "oldie"}}

    changes = plan(wanted(), actual)

    assert pending_changes(changes) == []
    assert str(changes[-1]) == "orphaned queue staging-old (no TARGET declares it; its tags name service oldie)"


def test_a_topic_of_another_application_stays_deployed() -> None:
    actual = deployed(wanted())
    actual.topics[USERS] = {"Tags": {"smartpipe:application": "billing"}, "KmsMasterKeyId": "theirs"}

    changes = plan(wanted(), actual)

    assert pending_changes(changes) == []
    assert "external topic staging-users (application billing manages it)" in lines(changes)


class Shipped(Event, topic=Topic(arn="arn:aws:sns:eu-west-1:999999999999:parcels"), type="plan.shipped", version="1.0"):
    pass


THEIR_QUEUE = Queue("theirs", existing=True)


def test_external_resources_are_never_changed() -> None:
    desired = wanted(Shipped, queue=THEIR_QUEUE)
    queue, topic = NAMING.queue_arn("theirs"), "arn:aws:sns:eu-west-1:999999999999:parcels"
    redrive = {"deadLetterTargetArn": f"{queue}-dlq", "maxReceiveCount": 3}
    queues = {queue: {"RedrivePolicy": redrive, "VisibilityTimeout": "1"}, f"{queue}-dlq": {}}
    actual = Topology({"topic": {topic: {}}, "queue": queues})

    changes = plan(desired, actual)

    assert {change.action for change in changes} == {"external"}
    assert find_errors(desired, actual) == []
    assert "missing: the queue's owner has to subscribe it" in lines(changes)[-1]


@pytest.mark.parametrize(
    ("queue", "sentence"),
    [
        (None, "is declared existing=True and does not exist"),
        ({}, "its dead-letter queue is missing, not staging-theirs-dlq; ask its owner to add it"),
        (
            {"RedrivePolicy": {"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:123456789012:graves"}},
            'declare Queue(..., dead_letter="graves")',
        ),
    ],
)
def test_an_existing_queue_that_is_not_as_expected_is_an_error(queue: dict[str, Any] | None, sentence: str) -> None:
    arn = NAMING.queue_arn("theirs")
    found = {f"{arn}-dlq": dict[str, Any](), **({} if queue is None else {arn: queue})}

    [error] = find_errors(wanted(queue=THEIR_QUEUE), Topology({"queue": found}))

    assert sentence in error


def test_all_errors_of_a_plan_are_reported_together() -> None:
    class Booked(Event, topic=Topic("book", fifo=True), type="plan.booked", version="1.0", key="to"):
        to: str

    desired = derive([mailer(), Service("api", publishes=[Booked, Shipped])], NAMING)
    actual = with_queue(deployed(desired), Tags={"smartpipe:application": "billing"}, Policy="x" * 9_000)
    actual.topics[NAMING.topic_arn("book.fifo")]["FifoThroughputScope"] = "MessageGroup"
    del actual.topics["arn:aws:sns:eu-west-1:999999999999:parcels"]
    long = json.dumps({"Statement": [{"Sid": "theirs", "Resource": "x" * 8_000}]})

    errors = find_errors(desired, with_queue(actual, Policy=long))

    assert len(errors) == 4
    for sentence in (
        "two services claim one queue; rename one, set SMARTPIPE_APPLICATION, or declare it existing=True",
        "bytes with the statements of others; SQS accepts 8,192",
        "AWS cannot turn off high throughput",
        "is declared by its ARN and does not exist",
    ):
        assert any(sentence in one for one in errors)


def test_fault_49_a_short_retention_of_a_dead_letter_queue_is_a_warning() -> None:
    desired = wanted(queue=Queue("mailer", retention_seconds=1_209_600))

    [note] = find_warnings(desired, deployed(desired))

    assert "SQS deletes late dead-letter messages immediately" in note


def test_fault_49_a_short_retention_in_an_external_dead_letter_queue_is_a_warning() -> None:
    arn = NAMING.queue_arn("theirs")
    found = {arn: {"MessageRetentionPeriod": "345600"}, f"{arn}-dlq": {"MessageRetentionPeriod": "60"}}

    [note] = find_warnings(wanted(queue=THEIR_QUEUE), Topology({"queue": found}))

    assert "keeps messages for 60 s" in note


def test_fault_49_a_dead_letter_queue_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="is the name of a FIFO queue: add fifo=True"):
        Queue("theirs", existing=True, dead_letter="graves.fifo")


def test_fault_49_a_folded_policy_is_a_warning() -> None:
    service = Service("mailer")
    for number in range(60):
        name = "a-very-long-name-" * 8 + str(number)
        event = type(f"Event{number}", (Event,), {}, topic=Topic(name), type=f"plan.e{number}", version="1.0")
        service.subscribe(event)(handle)

    [note] = find_warnings(derive([service], NAMING), NOTHING)[1:]

    assert "too many topics for a policy of 8,192 bytes, so the policy allows all topics of their account" in note
    assert note.endswith("*")


def test_fault_10_the_statement_that_a_queues_key_needs_is_printed() -> None:
    [note] = find_warnings(wanted(queue=Queue("mailer", kms_key="alias/shop")), NOTHING)

    assert "under key alias/shop only if" in note
    assert json.loads(note.partition("has this statement: ")[2])["Sid"] == "SmartpipeAllowSnsToEncrypt"


def test_a_resource_without_tags_is_adopted_with_a_warning() -> None:
    actual = deployed(wanted())
    actual.topics[USERS] = {**actual.topics[USERS], "Tags": {}}

    [note] = find_warnings(wanted(), with_queue(actual, Tags={}))[:1]

    assert "queue staging-mailer exists without tags of smartpipe: apply adds the tags of this application" in note


def test_an_open_statement_of_others_is_a_warning() -> None:
    text = merge_statements(json.dumps({"Statement": [{"Sid": "open", "Effect": "Allow", "Principal": "*"}]}), None)

    [note] = find_warnings(wanted(), with_queue(deployed(wanted()), Policy=text))

    assert "statement 'open', which smartpipe did not write, allows everyone" in note


def test_destroying_deletes_subscriptions_first_and_dead_letter_queues_last() -> None:
    changes = plan_destroy(wanted(), deployed(wanted()), NAMING)

    assert [[change.name for change in stage] for stage in group_into_stages(changes)] == [
        ["staging-users → staging-mailer", "staging-orders → staging-mailer"],
        ["staging-users", "staging-orders"],
        ["staging-mailer"],
        ["staging-mailer-dlq"],
    ]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, "it has no tags of smartpipe"),
        ({"smartpipe:application": "billing", "smartpipe:prefix": "staging-"}, "its tags name application billing"),
        ({"smartpipe:application": "smartpipe", "smartpipe:prefix": ""}, "its tags name application smartpipe"),
    ],
)
def test_destroying_keeps_resources_without_the_tags_of_this_application_and_prefix(
    tags: dict[str, str], reason: str
) -> None:
    changes = plan_destroy(wanted(), with_queue(deployed(wanted()), Tags=tags), NAMING)

    kept = {change.name: change.reason for change in changes if change.action == "external" and change.kind == "queue"}
    assert kept == {
        "staging-mailer": reason,
        "staging-mailer-dlq": "queues that are kept use it as their dead-letter queue: staging-mailer",
    }
    assert not any(change.kind == "queue" for change in pending_changes(changes))


def test_destroying_keeps_a_topic_that_others_subscribe_to() -> None:
    actual = deployed(wanted())
    actual.subscriptions[USERS, NAMING.queue_arn("friends")] = {}

    changes = plan_destroy(wanted(), actual, NAMING)

    [kept] = [change for change in changes if change.action == "external"]
    assert str(kept) == "external topic staging-users (it has other subscribers: staging-friends)"
    assert "delete subscription staging-users → staging-friends" not in lines(changes)
    assert "delete subscription staging-users → staging-mailer" in lines(changes)


def kept_by_destroying(desired: Topology, actual: Topology, **options: Any) -> dict[str, str]:
    changes = plan_destroy(desired, actual, NAMING, **options)
    kept = {change.name: change.reason for change in changes if change.action == "external"}
    assert not kept.keys() & {change.name for change in pending_changes(changes)}
    return kept


@pytest.mark.parametrize("tags", [{}, {"smartpipe:application": "smartpipe", "smartpipe:prefix": "staging-"}])
@pytest.mark.parametrize("options", [{}, {"orphaned": True}, {"even_if_not_empty": True}])
def test_destroying_always_keeps_tables_and_buckets(tags: dict[str, str], options: dict[str, bool]) -> None:
    found: dict[str, Any] = {
        "table": {NAMING.table_arn("claims"): {"Tags": tags}},
        "bucket": {NAMING.bucket_arn("bodies"): {"Tags": tags}},
    }
    desired, actual = wanted().replace(**found), deployed(wanted()).replace(**found)

    assert kept_by_destroying(desired, actual, **options) == {
        "claims": "services and environments may share it, and it holds claims",
        "bodies": "environments may share it, and messages may point to it",
    }


def test_destroying_keeps_a_queue_of_another_service_and_what_it_uses() -> None:
    tags = {**wanted().queues[MAILER]["Tags"], "smartpipe:service": "alpha"}
    actual = with_queue(deployed(wanted()), Tags=tags)
    actual.subscriptions[NAMING.topic_arn("audit"), MAILER] = {}

    kept = kept_by_destroying(wanted(), actual)

    assert kept["staging-mailer"] == "its tags name service alpha"
    assert kept["staging-mailer-dlq"] == "queues that are kept use it as their dead-letter queue: staging-mailer"
    assert kept["staging-users"] == "it has other subscribers: staging-mailer"


@pytest.mark.parametrize("options", [{}, {"orphaned": True}, {"even_if_not_empty": True}])
def test_destroying_keeps_a_dead_letter_queue_that_other_queues_use(options: dict[str, bool]) -> None:
    theirs = "arn:aws:sqs:eu-west-1:123456789012:billing"
    actual = with_queue(deployed(wanted()), DEAD, DeadLetterSources=[MAILER, theirs])

    kept = kept_by_destroying(wanted(), actual, **options)

    assert kept == {"staging-mailer-dlq": "queues that are kept use it as their dead-letter queue: billing"}


def test_destroying_keeps_a_queue_that_is_another_ones_dead_letter_queue_with_its_own_dead_letter_queue() -> None:
    theirs = "arn:aws:sqs:eu-west-1:123456789012:billing"

    kept = kept_by_destroying(wanted(), with_queue(deployed(wanted()), DeadLetterSources=[theirs]))

    assert kept["staging-mailer"] == "queues that are kept use it as their dead-letter queue: billing"
    assert kept["staging-mailer-dlq"] == "queues that are kept use it as their dead-letter queue: staging-mailer"


def test_destroying_keeps_a_dead_letter_queue_if_iam_refuses_to_list_its_sources() -> None:
    kept = kept_by_destroying(wanted(), with_queue(deployed(wanted()), DEAD, DeadLetterSources=None))

    assert list(kept) == ["staging-mailer-dlq"]
    assert "IAM refused sqs:ListDeadLetterSourceQueues" in kept["staging-mailer-dlq"]


def test_destroying_keeps_topics_while_other_services_of_the_application_may_publish_to_them() -> None:
    actual = deployed(wanted(UserSignedUp))
    billing = NAMING.queue_arn("billing")
    seen = actual.replace(queue={**actual.queues, billing: {"Tags": wanted().queues[MAILER]["Tags"]}})
    reason = "other services of the application may publish to it, and they still exist: queue staging-billing"

    assert kept_by_destroying(wanted(UserSignedUp), seen) == {"staging-users": reason}
    assert kept_by_destroying(wanted(UserSignedUp), actual, orphans=[billing]) == {"staging-users": reason}
    assert kept_by_destroying(wanted(UserSignedUp), actual, orphans=[NAMING.topic_arn("old")]) == {}
    assert kept_by_destroying(wanted(UserSignedUp), seen, orphaned=True, orphans=[billing]) == {}


def test_destroying_keeps_topics_if_other_services_of_the_application_are_unknown() -> None:
    kept = kept_by_destroying(wanted(UserSignedUp), deployed(wanted(UserSignedUp)), orphans=None)

    assert list(kept) == ["staging-users"]
    assert "AWS did not list them: see the note" in kept["staging-users"]


def test_deletions_name_the_known_users_so_that_new_ones_are_noticed() -> None:
    going = {
        change.name: change.before for change in pending_changes(plan_destroy(wanted(), deployed(wanted()), NAMING))
    }

    assert going["staging-users"] == {"Subscribers": [MAILER]}
    assert going["staging-mailer-dlq"]["DeadLetterSources"] == [MAILER]


def test_destroying_deletes_orphans_only_on_request_and_never_external_resources() -> None:
    desired = wanted(Shipped)
    actual = deployed(desired)
    actual.queues[NAMING.queue_arn("old")] = {"Tags": wanted().queues[MAILER]["Tags"]}

    spared = plan_destroy(desired, actual, NAMING)
    asked = plan_destroy(desired, actual, NAMING, orphaned=True)

    assert "delete queue staging-old" not in lines(spared)
    assert "delete queue staging-old" in lines(asked)
    assert "delete topic parcels" not in lines(asked)


def test_queues_that_hold_messages_are_named_with_the_number() -> None:
    actual = with_queue(deployed(wanted()), ApproximateNumberOfMessages="2", ApproximateNumberOfMessagesDelayed="1")
    actual = with_queue(actual, DEAD, ApproximateNumberOfMessagesNotVisible="1")

    assert describe_full_queues(plan_destroy(wanted(), actual, NAMING), actual) == [
        "queue staging-mailer holds about 3 messages",
        "queue staging-mailer-dlq holds about 1 message",
    ]


@pytest.mark.parametrize("arn", [MAILER, DEAD])
def test_the_size_limit_of_a_queue_is_raised_to_that_of_its_topics(arn: str) -> None:
    changes = pending_changes(plan(wanted(), with_queue(deployed(wanted()), arn, MaximumMessageSize="1024")))

    assert [(change.arns, change.attributes) for change in changes] == [((arn,), {"MaximumMessageSize": "262144"})]
    assert pending_changes(plan(wanted(), with_queue(deployed(wanted()), arn, MaximumMessageSize="262144"))) == []


def test_a_queue_of_another_service_of_the_same_application_is_an_error() -> None:
    tags = {**wanted().queues[MAILER]["Tags"], "smartpipe:service": "alpha"}

    [error] = find_errors(wanted(), with_queue(deployed(wanted()), Tags=tags))

    assert "belongs to service 'alpha', and service 'mailer' declares it too" in error
    assert "remove the queue's tag smartpipe:service first" in error


@pytest.mark.parametrize("theirs", ["mail", ""])
def test_a_queue_of_an_environment_with_an_ambiguous_prefix_is_an_error(theirs: str) -> None:
    tags = {**wanted().queues[MAILER]["Tags"], "smartpipe:prefix": theirs}

    [error] = find_errors(wanted(), with_queue(deployed(wanted()), Tags=tags))

    assert f"belongs to the environment with SMARTPIPE_PREFIX={theirs!r}" in error
    assert "end each prefix with a hyphen" in error


def test_a_topic_of_an_environment_with_an_ambiguous_prefix_is_an_error() -> None:
    actual = deployed(wanted())
    tags = {**actual.topics[USERS]["Tags"], "smartpipe:prefix": "us"}
    actual.topics[USERS] = {**actual.topics[USERS], "Tags": tags}

    [error] = find_errors(wanted(), actual)

    assert "topic" in error
    assert "SMARTPIPE_PREFIX='us'" in error


def test_a_queue_in_an_unexpected_account_is_an_error() -> None:
    theirs = MAILER.replace("123456789012", "999999999999")

    [error] = find_errors(wanted(), with_queue(deployed(wanted()), QueueArn=theirs))

    assert "check SMARTPIPE_ACCOUNT_ID" in error


def test_too_many_statements_in_a_policy_are_an_error() -> None:
    text = json.dumps({"Statement": [{"Sid": str(number)} for number in range(20)]})

    [error] = find_errors(wanted(), with_queue(deployed(wanted()), Policy=text))

    assert "its policy would have 21 statements; SQS accepts 20" in error


def test_low_limits_of_an_existing_queue_are_warnings() -> None:
    arn = NAMING.queue_arn("theirs")
    redrive = {"deadLetterTargetArn": f"{arn}-dlq", "maxReceiveCount": 1}
    found = {arn: {"RedrivePolicy": redrive, "MaximumMessageSize": "1024"}, f"{arn}-dlq": {}}

    early, small = find_warnings(wanted(queue=THEIR_QUEUE), Topology({"queue": found}))

    assert "SQS moves a message to the dead-letter queue after 1 deliveries, without a reason" in early
    assert "accepts messages of up to 1,024 bytes; SNS drops longer ones" in small


def test_the_deletion_of_a_queue_names_the_number_of_its_messages() -> None:
    actual = with_queue(deployed(wanted()), ApproximateNumberOfMessages="2")

    seen = {change.arns: change.before for change in plan_destroy(wanted(), actual, NAMING) if change.kind == "queue"}
    forced = plan_destroy(wanted(), actual, NAMING, even_if_not_empty=True)

    assert (seen[(MAILER,)]["Messages"], seen[(DEAD,)]["Messages"]) == (2, 0)
    assert not any("Messages" in change.before for change in forced)


def test_a_value_that_only_begins_like_json_is_shown_as_it_is() -> None:
    change = Change("update", "topic", (USERS,), {"DisplayName": "{new} users"}, {"DisplayName": "{users"})

    assert str(change) == "update topic staging-users (DisplayName: {users → {new} users)"
