"""Topologies on real brokers: plan, apply, drift, destroy, and failures in between."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smartpipe import EmbeddedBroker, Event, FilterPolicy, Publisher, Queue, Service, Topic, TopologyError
from smartpipe.errors import TransportError
from smartpipe.testing import provision, working
from smartpipe.topology.aws.calls import MAX_CALLS
from smartpipe.topology.aws.verify import verify
from smartpipe.transports.open import open_aws_transport
from tests.support.events import ADA, OrderPlaced, Paid, UserLeft, UserSignedUp
from tests.support.proxy import Fault, FaultProxy, allowed_by
from tests.support.topics import find_topic_arn
from tests.support.topologies import compare, destroy, left_to_do, provisioner
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.queues import Queues

pytestmark = pytest.mark.usefixtures("broker")


def serving(name: str, *events: type[Event], queue: Queue | None = None) -> Service:
    service = Service(name, queue=queue)

    async def handle(_: Event) -> None: ...

    for event in events or (UserSignedUp,):
        service.subscribe(event)(handle)
    return service


@pytest.fixture
def proxy(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The environment's broker behind a proxy."""
    with FaultProxy(broker.endpoint_url) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint_url)
        yield found


def physical(name: str) -> str:
    return os.environ["SMARTPIPE_PREFIX"] + name


EVERY_SETTING = (
    serving(
        "mailer",
        UserSignedUp,
        queue=Queue(
            "mailer",
            delay_seconds=1,
            retention_seconds=600,
            kms_key="alias/shop",
            tags={"team": "growth"},
            filter_policy=FilterPolicy({"tenant": ["acme", {"prefix": "a"}]}),
        ),
    ),
    serving(
        "bodies",
        UserLeft,
        queue=Queue("bodies", filter_policy=FilterPolicy({"data": {"name": ["Bob"]}}, "MessageBody")),
    ),
    serving("ledger", Paid, queue=Queue("ledger", fifo=True, high_throughput=True)),
    serving("direct", OrderPlaced, queue=Queue("direct", direct=True)),
    Service("api", publishes=[UserSignedUp, Queue("direct")]),
)


async def test_after_an_apply_nothing_is_left_to_change() -> None:
    first = await provision(*EVERY_SETTING)

    assert len(first) == 14
    assert await left_to_do(*EVERY_SETTING) == []


async def test_a_destroyed_topology_is_gone_and_can_be_created_again() -> None:
    await provision(*EVERY_SETTING)

    gone = await destroy(*EVERY_SETTING)

    assert len(gone) == 14
    assert len(await left_to_do(*EVERY_SETTING)) == 14


def _set_queue(queues: Queues, **attributes: Any) -> None:
    sqs: Any = boto3.client("sqs")
    sqs.set_queue_attributes(QueueUrl=queues.url("mailer"), Attributes=attributes)


def _subscription(topic: str = "users") -> tuple[Any, str]:
    sns: Any = boto3.client("sns")
    return sns, sns.list_subscriptions_by_topic(TopicArn=find_topic_arn(topic))["Subscriptions"][0]["SubscriptionArn"]


def _unsubscribe(_: Queues) -> None:
    sns, arn = _subscription()
    sns.unsubscribe(SubscriptionArn=arn)


def _change_filter(_: Queues) -> None:
    sns, arn = _subscription()
    sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName="FilterPolicy", AttributeValue='{"type": ["x"]}')


def _disable_raw_delivery(_: Queues) -> None:
    sns, arn = _subscription()
    sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName="RawMessageDelivery", AttributeValue="false")


def _untag(queues: Queues) -> None:
    boto3.client("sqs").untag_queue(QueueUrl=queues.url("mailer"), TagKeys=["smartpipe:service"])


def _delete_dead_letters(queues: Queues) -> None:
    boto3.client("sqs").delete_queue(QueueUrl=queues.url("mailer-dlq"))


SHUT = '{"Version": "2012-10-17", "Statement": [{"Sid": "SmartpipeAllowSns", "Effect": "Deny"}]}'


@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (lambda queues: _set_queue(queues, VisibilityTimeout="7"), "VisibilityTimeout: 7 → 30"),
        (lambda queues: _set_queue(queues, MessageRetentionPeriod="60"), "MessageRetentionPeriod: 60 → 345600"),
        (lambda queues: _set_queue(queues, Policy=SHUT), "Policy.Statement.SmartpipeAllowSns.Effect: Deny → Allow"),
        (_unsubscribe, "create subscription"),
        (_change_filter, "FilterPolicy.type: + member.signed_up, − x"),  # noqa: RUF001 - a minus sign
        (_disable_raw_delivery, "RawMessageDelivery: false → true"),
        (_untag, "Tags.smartpipe:service: nothing → mailer"),
        (_delete_dead_letters, "create queue"),
    ],
    ids=["attribute", "retention", "policy", "unsubscribed", "filter", "not raw", "tags", "dead-letter queue"],
)
async def test_a_manual_change_is_named_and_reverted(
    queues: Queues, meddle: Callable[[Queues], None], said: str
) -> None:
    service = serving("mailer")
    await provision(service)
    meddle(queues)

    [change] = await left_to_do(service)

    assert said in change
    assert await provision(service) == [change]
    assert await left_to_do(service) == []


async def test_fault_36_statements_of_others_stay_byte_for_byte(queues: Queues) -> None:
    service = serving("mailer")
    await provision(service)
    theirs = '{"Sid" :  "theirs","Effect":"Allow","Principal":{"AWS":"123456789012"},"Action":"sqs:*","Resource":"*"}'
    _set_queue(queues, Policy='{"Version":"2012-10-17", "Statement": [' + theirs + "]}")
    before = _policy(queues)  # moto formats it again

    await provision(service)

    found = _policy(queues)
    assert before.partition("[")[2].rpartition("]")[0].strip() in found
    assert [one["Sid"] for one in json.loads(found)["Statement"]] == ["theirs", "SmartpipeAllowSns"]


def _policy(queues: Queues) -> str:
    found = boto3.client("sqs").get_queue_attributes(QueueUrl=queues.url("mailer"), AttributeNames=["Policy"])
    return found["Attributes"]["Policy"]


async def test_fault_36_a_queue_that_others_created_meanwhile_is_updated(proxy: FaultProxy) -> None:
    service = serving("mailer")
    proxy.add(Fault("CreateQueue", times=2, answer=(400, "QueueNameExists", "A queue already exists with this name.")))
    async with provisioner() as found:
        planned = await found.compare([service])
        sqs = boto3.client("sqs", endpoint_url=proxy._upstream)
        for name in ("mailer", "mailer-dlq"):
            sqs.create_queue(QueueName=physical(name), Attributes={"VisibilityTimeout": "7"})
        await found.apply(planned.pending)

    assert await left_to_do(service) == []


async def test_fault_36_statements_that_others_add_meanwhile_stay(queues: Queues) -> None:
    service = serving("mailer")
    theirs = '{"Version": "2012-10-17", "Statement": [{"Sid": "theirs", "Effect": "Deny"}]}'
    async with provisioner() as found:
        planned = await found.compare([service])
        for name in ("mailer-dlq", "mailer"):
            boto3.client("sqs").create_queue(QueueName=physical(name), Attributes={"Policy": theirs})
        await found.apply(planned.pending)

    assert [one["Sid"] for one in json.loads(_policy(queues))["Statement"]] == ["theirs", "SmartpipeAllowSns"]
    assert await left_to_do(service) == []


async def test_fault_47_while_the_scope_changes_the_filter_has_the_types_alone(proxy: FaultProxy) -> None:
    body = FilterPolicy({"data": {"name": ["Bob"]}}, "MessageBody")
    await provision(serving("mailer", queue=Queue("mailer", filter_policy=body)))
    attributes = FilterPolicy({"tenant": ["acme"]})
    proxy.calls.clear()

    await provision(serving("mailer", queue=Queue("mailer", filter_policy=attributes)))

    types = {"type": ["member.signed_up"]}
    calls = [call.fields for call in proxy.calls if call.operation == "SetSubscriptionAttributes"]
    assert [(one["AttributeName"], one["AttributeValue"]) for one in calls] == [
        ("FilterPolicy", json.dumps(types)),
        ("FilterPolicyScope", "MessageAttributes"),
        ("FilterPolicy", json.dumps({**types, "tenant": ["acme"]})),
    ]


async def test_fault_37_an_existing_subscription_with_other_attributes_is_updated() -> None:
    service = serving("mailer")
    async with provisioner() as found:
        planned = await found.compare([service])
        sns: Any = boto3.client("sns")
        topic = sns.create_topic(Name=physical("users"))["TopicArn"]
        [(_, queue)] = planned.desired.subscriptions
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)  # SNS will return it unchanged, without an error
        await found.apply(planned.pending)

    assert await left_to_do(service) == []


async def test_fault_37_an_existing_subscription_is_updated_also_if_the_broker_refuses_it_as_aws_does(
    proxy: FaultProxy,
) -> None:
    service = serving("mailer")
    await provision(service)
    sns, arn = _subscription()
    sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName="FilterPolicy", AttributeValue='{"type": ["x"]}')
    said = "Invalid parameter: Attributes Reason: Subscription already exists with different attributes"
    proxy.add(Fault("Subscribe", answer=(400, "InvalidParameter", said)))
    async with provisioner() as found:
        everything = (await found.compare([service])).desired
        [(arns, wanted)] = everything.subscriptions.items()
        [change] = (await found.compare([service])).pending
        await found.apply([change._replace(action="create", attributes=wanted)])

    assert arns == change.arns
    assert await left_to_do(service) == []


async def test_two_concurrent_applies_make_one_topology() -> None:
    async with provisioner() as one, provisioner() as other:
        plans = await asyncio.gather(one.compare(EVERY_SETTING), other.compare(EVERY_SETTING))
        await asyncio.gather(one.apply(plans[0].pending), other.apply(plans[1].pending))

    assert await left_to_do(*EVERY_SETTING) == []


async def test_an_apply_that_stops_anywhere_is_finished_by_the_next() -> None:
    class Stopped(Exception):
        pass

    def stop(_: object) -> None:
        raise Stopped

    left = [await left_to_do(*EVERY_SETTING)]
    while left[-1]:
        async with provisioner() as found:
            planned = await found.compare(EVERY_SETTING)
            with pytest.raises(Stopped):
                await found.apply(planned.pending, stop)
        left.append(await left_to_do(*EVERY_SETTING))
        assert len(left[-1]) < len(left[-2])

    assert len(left) > 3


async def test_an_apply_waits_for_a_name_that_is_not_free_yet(proxy: FaultProxy) -> None:
    said = "You must wait 60 seconds after deleting a queue before you can create another with the same name."
    refused = proxy.add(Fault("CreateQueue", times=2, answer=(400, "QueueDeletedRecently", said)))

    await provision(serving("mailer"))

    assert refused.hits == 2
    assert await left_to_do(serving("mailer")) == []


async def test_an_apply_waits_for_a_new_dead_letter_queue(proxy: FaultProxy) -> None:
    said = "Value for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist."
    unseen = proxy.add(Fault("CreateQueue", skip=1, times=2, answer=(400, "InvalidParameterValue", said)))

    await provision(serving("mailer"))

    assert unseen.hits == 2
    assert await left_to_do(serving("mailer")) == []


async def test_an_apply_that_waits_too_long_fails(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.topology.aws.provision.REUSE_SECONDS", 0.1)
    proxy.add(Fault("CreateQueue", answer=(400, "QueueDeletedRecently", "wait 60 seconds")))

    with pytest.raises(TopologyError, match="QueueDeletedRecently"):
        await provision(serving("mailer"))


@pytest.mark.parametrize("code", ["ThrottlingException", "InternalError"])
async def test_temporary_failures_are_retried(proxy: FaultProxy, code: str) -> None:
    for operation in ("CreateQueue", "CreateTopic", "Subscribe", "GetQueueAttributes", "GetTopicAttributes"):
        proxy.add(Fault(operation, times=1, answer=(400, code, "later")))

    await provision(serving("mailer"))

    assert await left_to_do(serving("mailer")) == []


async def test_a_lost_response_creates_no_resource_twice(proxy: FaultProxy) -> None:
    for operation in ("CreateQueue", "CreateTopic", "Subscribe", "SetSubscriptionAttributes"):
        proxy.add(Fault(operation, times=1, drop="reply"))

    await provision(serving("mailer"))

    assert await left_to_do(serving("mailer")) == []


async def test_handlers_that_move_to_another_topic_leave_no_subscription_behind() -> None:
    before, after = serving("mailer", UserSignedUp), serving("mailer", OrderPlaced)
    await provision(before)

    changes = await provision(after)

    assert sum(change.startswith("delete subscription") for change in changes) == 1
    assert await left_to_do(after) == []
    _, kept = _subscription("orders")
    assert kept


async def test_missing_permissions_are_reported_together_before_any_change(proxy: FaultProxy) -> None:
    proxy.judge = allowed_by({}, "")

    with pytest.raises(TransportError) as caught:
        await provision(serving("mailer", UserSignedUp, OrderPlaced))

    said = str(caught.value)
    for action in ("sqs:GetQueueUrl", "sns:GetTopicAttributes"):
        assert f"your credentials may not call {action} on arn:aws:" in said
    policy = json.loads(said.rpartition("ask for this policy: ")[2])
    assert sorted(action for one in policy["Statement"] for action in one["Action"]) == [
        "sns:GetTopicAttributes",
        "sqs:GetQueueUrl",
    ]
    assert not any(operation.startswith(("Create", "Set", "Subscribe")) for operation in proxy.operations())


async def test_a_permission_that_is_missing_while_applying_is_reported_with_action_and_resource(
    proxy: FaultProxy,
) -> None:
    proxy.add(Fault("Subscribe", answer=(403, "AuthorizationError", "not authorized")))

    with pytest.raises(TopologyError, match="may not call sns:Subscribe on arn:aws:sns:") as caught:
        await provision(serving("mailer"))

    assert '"Action": ["sns:Subscribe"]' in caught.value.problems[-1]


async def test_a_missing_permission_is_the_one_that_the_error_of_aws_names(proxy: FaultProxy) -> None:
    said = "User: x is not authorized to perform: sqs:tagqueue on resource: arn with an explicit deny"
    proxy.add(Fault("CreateQueue", answer=(403, "AccessDenied", said)))

    with pytest.raises(TopologyError, match=r"may not call sqs:tagqueue on arn:aws:sqs:.*explicit deny"):
        await provision(serving("mailer"))


async def test_an_apply_continues_if_iam_refuses_an_unneeded_read(proxy: FaultProxy) -> None:
    service = serving("mailer")
    async with provisioner() as found:
        planned = await found.compare([service])
        proxy.add(Fault("ListTagsForResource", answer=(403, "AuthorizationError", "no")))
        await found.apply(planned.pending)
        proxy.faults.clear()

    assert await left_to_do(service) == []


async def test_messages_that_arrive_before_a_deletion_are_not_lost(queues: Queues) -> None:
    service = serving("mailer")
    await provision(service)
    async with provisioner() as found:
        going = (await found.compare([service])).plan_destroy()
        queues.send("mailer", "precious")
        with pytest.raises(TopologyError, match="now holds about 1 messages and was not deleted"):
            await found.apply(going)

    assert queues.depth("mailer") == (1, 0)


async def test_a_topic_with_a_new_subscriber_is_kept() -> None:
    sqs = boto3.client("sqs")
    await provision(serving("mailer"))
    theirs = sqs.create_queue(QueueName=physical("theirs"))["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=theirs, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    async with provisioner() as found:
        going = (await found.compare([serving("mailer")], destroying=True)).plan_destroy()
        sns, subscription = _subscription()
        topic = sns.get_subscription_attributes(SubscriptionArn=subscription)["Attributes"]["TopicArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        with pytest.raises(TopologyError, match=f"has new subscribers .{physical('theirs')}. and was not deleted"):
            await found.apply(going)

    assert [one["Endpoint"] for one in sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]] == [arn]


async def test_a_dead_letter_queue_that_another_application_uses_is_kept(broker: EmbeddedBroker) -> None:
    if broker.backend != "moto":
        pytest.skip("ministack has no ListDeadLetterSourceQueues")
    await provision(serving("mailer"))
    sqs: Any = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=physical("mailer-dlq"))["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedriveAllowPolicy": '{"redrivePermission":"allowAll"}'})
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "5"})

    async with provisioner() as found:
        going = (await found.compare([serving("mailer")], destroying=True)).plan_destroy()
        sqs.create_queue(QueueName=physical("theirs"), Attributes={"RedrivePolicy": redrive})
        with pytest.raises(TopologyError, match=f"is now the dead-letter queue of {physical('theirs')}"):
            await found.apply(going)
    await provision(serving("mailer"))
    gone = await destroy(serving("mailer"))

    reason = f"queues that are kept use it as their dead-letter queue: {physical('theirs')}"
    assert f"external queue {physical('mailer-dlq')} ({reason})" in gone
    assert f"delete queue {physical('mailer')}" in gone
    assert sqs.get_queue_url(QueueName=physical("mailer-dlq"))["QueueUrl"] == url


async def test_a_dead_letter_queue_is_kept_if_the_permission_to_list_its_sources_is_missing(
    broker: EmbeddedBroker, proxy: FaultProxy
) -> None:
    await provision(serving("mailer"))
    proxy.add(Fault("ListDeadLetterSourceQueues", answer=(403, "AccessDenied", "no")))

    async with provisioner() as found:
        seen = await found.compare([serving("mailer")], destroying=True)
        await found.apply(seen.plan_destroy())

    kept = [change for change in seen.plan_destroy() if change.action == "external"]
    assert {change.name for change in kept} == {physical("mailer"), physical("mailer-dlq"), physical("users")}
    assert any("sqs:ListDeadLetterSourceQueues" in note for note in seen.notes)


async def test_a_topic_is_kept_while_another_service_of_the_application_may_publish_to_it(
    broker: EmbeddedBroker,
) -> None:
    if broker.backend == "moto":
        pytest.skip("moto's tagging API knows neither queues nor topics")
    mailer, other = serving("mailer", UserSignedUp), serving("other", OrderPlaced)
    await provision(mailer, other)

    spared = await destroy(mailer)
    together = await destroy(mailer, other)

    reason = f"other services of the application may publish to it, and they still exist: queue {physical('other')}"
    assert f"external topic {physical('users')} ({reason})" in spared
    assert f"delete queue {physical('mailer')}" in spared
    assert f"delete topic {physical('users')}" in together


async def test_orphaned_resources_are_shown_and_deleted_only_on_request(broker: EmbeddedBroker) -> None:
    if broker.backend == "moto":
        pytest.skip("moto's tagging API knows neither queues nor topics")
    old, new = serving("old", UserLeft), serving("new", UserLeft)
    await provision(old, new)

    seen = [change for change in (await compare(new)).changes if change.action == "orphaned"]
    spared = await destroy(new)
    asked = await destroy(new, orphaned=True)

    assert [change.name for change in seen] == [physical("old-dlq"), physical("old")]
    assert "its tags name service old" in seen[1].reason
    assert f"delete queue {physical('old')}" not in spared
    assert f"delete queue {physical('old')}" in asked


async def test_a_worker_needs_no_permission_to_read_a_topic_that_it_no_longer_declares(proxy: FaultProxy) -> None:
    before, after = serving("mailer", UserSignedUp), serving("mailer", OrderPlaced)
    await provision(before)
    await provision(serving("mailer", UserSignedUp, OrderPlaced))
    proxy.add(
        Fault(
            "ListSubscriptionsByTopic",
            answer=(403, "AuthorizationError", "no"),
            when=lambda call: call.fields["TopicArn"].endswith("users"),
        )
    )

    async with working(after) as worker:
        assert worker.ready


async def test_an_orphaned_resource_that_cannot_be_read_is_a_note(broker: EmbeddedBroker, proxy: FaultProxy) -> None:
    if broker.backend == "moto":
        pytest.skip("moto's tagging API knows neither queues nor topics")
    await provision(serving("old"), serving("new", UserLeft))
    proxy.add(
        Fault(
            "GetQueueUrl",
            answer=(403, "AccessDenied", "no"),
            when=lambda call: "old" in call.fields["QueueName"],
        )
    )

    found = await compare(serving("new", UserLeft))

    assert found.pending == []
    assert sum("is not declared by any TARGET, and cannot be read" in note for note in found.notes) == 2


@pytest.mark.parametrize("answer", [(403, "AccessDeniedException", "no"), (500, "InternalFailure", "no")])
async def test_without_the_tagging_api_a_plan_has_a_note_about_orphans(
    proxy: FaultProxy, answer: tuple[int, str, str]
) -> None:
    proxy.add(Fault("GetResources", answer=answer))

    found = await compare(serving("mailer"))

    assert "AWS did not list the resources that no TARGET declares" in found.notes[-1]
    assert not found.knows_orphans


async def test_workers_use_a_queue_of_another_team_and_do_not_change_it(queues: Queues) -> None:
    sqs = boto3.client("sqs")
    graves = sqs.create_queue(QueueName=physical("graves"))["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=graves, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "5"})
    attributes: Any = {"VisibilityTimeout": "13", "RedrivePolicy": redrive}
    url = sqs.create_queue(QueueName=physical("theirs"), Attributes=attributes)["QueueUrl"]
    before = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    service = Service("guest", queue=Queue("theirs", existing=True, dead_letter="graves"))
    seen: list[Event] = []

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    assert [line.split()[:2] for line in await provision(service)] == [["create", "topic"]]
    async with Publisher("test") as publisher:
        await publisher.publish(ADA, queue=service.queue)
    async with working(service):
        await until(lambda: seen)

    after = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert {name: before[name] for name in before if "Approximate" not in name} == {
        name: value for name, value in after.items() if "Approximate" not in name
    }
    assert await destroy(service) != []
    assert queues.depth("theirs") == (0, 0)


async def test_a_topic_declared_by_its_arn_is_used_and_never_changed() -> None:
    sns = boto3.client("sns")
    arn = sns.create_topic(Name=physical("theirs"))["TopicArn"]

    class Shipped(Event, topic=Topic(arn=arn), type="integration.shipped", version="1.0"):
        pass

    service = Service("mailer")
    seen: list[Event] = []

    @service.subscribe(Shipped)
    async def handle(event: Shipped) -> None:
        seen.append(event)

    await provision(service)
    async with Publisher("test") as publisher:
        await publisher.publish(Shipped())
    async with working(service):
        await until(lambda: seen)

    assert await left_to_do(service) == []
    assert sns.list_tags_for_resource(ResourceArn=arn)["Tags"] == []
    await destroy(service)
    assert sns.get_topic_attributes(TopicArn=arn)


async def test_a_starting_worker_reports_a_policy_with_the_principal_of_the_wrong_region() -> None:
    arn = boto3.client("sns", region_name="me-south-1").create_topic(Name=physical("far"))["TopicArn"]

    class Shipped(Event, topic=Topic(arn=arn), type="integration.shipped_far", version="1.0"):
        pass

    service = serving("mailer", Shipped)
    await provision(service)
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=physical("mailer"))["QueueUrl"]
    text = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"]["Policy"]
    assert '"sns.me-south-1.amazonaws.com"' in text
    before = text.replace("sns.me-south-1.amazonaws.com", "sns.amazonaws.com")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": before})

    transport = open_aws_transport()
    try:
        [difference] = await verify(service, transport.session)
    finally:
        await transport.aclose()

    assert "Principal.Service: sns.amazonaws.com → sns.me-south-1.amazonaws.com" in difference


async def test_a_missing_external_topic_or_queue_is_an_error_and_is_not_created() -> None:
    missing = f"arn:aws:sns:us-east-1:123456789012:{physical('nowhere')}"

    class Vanished(Event, topic=Topic(arn=missing), type="integration.vanished", version="1.0"):
        pass

    first = serving("mailer", Vanished)
    second = serving("guest", queue=Queue("nowhere", existing=True))

    with pytest.raises(TopologyError) as caught:
        await provision(first, second)

    assert len(caught.value.problems) == 2
    assert missing in str(caught.value)


def many_services(count: int) -> list[Service]:
    """Return services that each handle an event on their own topic, and an event of their neighbour."""
    events = [
        type(f"Many{number}", (Event,), {}, topic=Topic(f"topic-{number}"), type=f"many.e{number}", version="1.0")
        for number in range(count)
    ]
    return [serving(f"service-{number}", events[number], events[number - 1]) for number in range(count)]


async def test_a_plan_makes_few_calls_and_limits_their_concurrency(proxy: FaultProxy) -> None:
    services = many_services(8)
    await provision(*services)
    proxy.calls.clear()

    assert await left_to_do(*services) == []

    counts = {name: proxy.operations().count(name) for name in set(proxy.operations())}
    assert counts == {
        "GetCallerIdentity": 1,
        "GetResources": 1,
        "GetQueueUrl": 16,  # eight queues with their dead-letter queues
        "GetQueueAttributes": 16,
        "ListQueueTags": 16,
        "GetTopicAttributes": 8,
        "ListTagsForResource": 8,
        "ListSubscriptionsByTopic": 8,
        "GetSubscriptionAttributes": 16,
    }
    assert 1 < proxy.peak_concurrency <= MAX_CALLS
