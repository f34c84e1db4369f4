"""Topologies on real brokers: plan, apply, drift, destroy, and what goes wrong meanwhile."""

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
from smartpipe.topology.aws.read import MAX_CALLS
from smartpipe.topology.aws.verify import verify
from smartpipe.transports.open import open_aws_transport
from tests.support.events import ADA, OrderPlaced, Paid, UserLeft, UserSignedUp
from tests.support.proxy import Fault, FaultProxy, allowed_by
from tests.support.topologies import destroy, left_to_do, provisioner, survey
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
    """The environment's broker, by way of a proxy."""
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


async def test_after_an_apply_nothing_is_left_to_do_whatever_the_settings() -> None:
    first = await provision(*EVERY_SETTING)

    assert len(first) == 14
    assert await left_to_do(*EVERY_SETTING) == []


async def test_a_topology_that_was_destroyed_is_gone_and_can_be_made_again() -> None:
    await provision(*EVERY_SETTING)

    gone = await destroy(*EVERY_SETTING)

    assert len(gone) == 14
    assert len(await left_to_do(*EVERY_SETTING)) == 14


def _set_queue(queues: Queues, **attributes: Any) -> None:
    sqs: Any = boto3.client("sqs")
    sqs.set_queue_attributes(QueueUrl=queues.url("mailer"), Attributes=attributes)


def _subscription(topic: str = "users") -> tuple[Any, str]:
    sns: Any = boto3.client("sns")
    arn = next(one["TopicArn"] for one in _topics(sns) if one["TopicArn"].endswith(physical(topic)))
    return sns, sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"][0]["SubscriptionArn"]


def _topics(sns: Any) -> list[dict[str, str]]:
    return [one for page in sns.get_paginator("list_topics").paginate() for one in page["Topics"]]


def _unsubscribe(_: Queues) -> None:
    sns, arn = _subscription()
    sns.unsubscribe(SubscriptionArn=arn)


def _filter_otherwise(_: Queues) -> None:
    sns, arn = _subscription()
    sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName="FilterPolicy", AttributeValue='{"type": ["x"]}')


def _wrap(_: Queues) -> None:
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
        (_filter_otherwise, "FilterPolicy.type: + member.signed_up, − x"),  # noqa: RUF001 - a minus sign
        (_wrap, "RawMessageDelivery: false → true"),
        (_untag, "Tags.smartpipe:service: nothing → mailer"),
        (_delete_dead_letters, "create queue"),
    ],
    ids=["attribute", "retention", "policy", "unsubscribed", "filter", "not raw", "tags", "dead-letter queue"],
)
async def test_what_somebody_changed_by_hand_is_named_and_put_right(
    queues: Queues, meddle: Callable[[Queues], None], said: str
) -> None:
    service = serving("mailer")
    await provision(service)
    meddle(queues)

    [change] = await left_to_do(service)

    assert said in change
    assert await provision(service) == [change]
    assert await left_to_do(service) == []


async def test_fault_36_statements_of_others_survive_every_apply_to_the_byte(queues: Queues) -> None:
    service = serving("mailer")
    await provision(service)
    theirs = '{"Sid" :  "theirs","Effect":"Allow","Principal":{"AWS":"123456789012"},"Action":"sqs:*","Resource":"*"}'
    _set_queue(queues, Policy='{"Version":"2012-10-17", "Statement": [' + theirs + "]}")
    before = _policy(queues)  # moto writes it anew

    await provision(service)

    found = _policy(queues)
    assert before.partition("[")[2].rpartition("]")[0].strip() in found
    assert [one["Sid"] for one in json.loads(found)["Statement"]] == ["theirs", "SmartpipeAllowSns"]


def _policy(queues: Queues) -> str:
    found = boto3.client("sqs").get_queue_attributes(QueueUrl=queues.url("mailer"), AttributeNames=["Policy"])
    return found["Attributes"]["Policy"]


async def test_fault_36_a_queue_that_somebody_made_meanwhile_is_brought_into_line(proxy: FaultProxy) -> None:
    service = serving("mailer")
    proxy.add(Fault("CreateQueue", times=2, answer=(400, "QueueNameExists", "A queue already exists with this name.")))
    async with provisioner() as found:
        planned = await found.survey([service])
        sqs = boto3.client("sqs", endpoint_url=proxy._upstream)
        for name in ("mailer", "mailer-dlq"):
            sqs.create_queue(QueueName=physical(name), Attributes={"VisibilityTimeout": "7"})
        await found.apply(planned.pending)

    assert await left_to_do(service) == []


async def test_fault_36_what_others_write_into_a_policy_meanwhile_stays(queues: Queues) -> None:
    service = serving("mailer")
    theirs = '{"Version": "2012-10-17", "Statement": [{"Sid": "theirs", "Effect": "Deny"}]}'
    async with provisioner() as found:
        planned = await found.survey([service])
        for name in ("mailer-dlq", "mailer"):
            boto3.client("sqs").create_queue(QueueName=physical(name), Attributes={"Policy": theirs})
        await found.apply(planned.pending)

    assert [one["Sid"] for one in json.loads(_policy(queues))["Statement"]] == ["theirs", "SmartpipeAllowSns"]
    assert await left_to_do(service) == []


async def test_fault_47_between_two_scopes_a_filter_is_that_of_the_types_alone(proxy: FaultProxy) -> None:
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


async def test_fault_37_a_subscription_that_is_there_with_other_attributes_is_set_right_and_read_again() -> None:
    service = serving("mailer")
    async with provisioner() as found:
        planned = await found.survey([service])
        sns: Any = boto3.client("sns")
        topic = sns.create_topic(Name=physical("users"))["TopicArn"]
        [(_, queue)] = planned.desired.subscriptions
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)  # it will be returned, silently, as it is
        await found.apply(planned.pending)

    assert await left_to_do(service) == []


async def test_fault_37_also_where_the_broker_says_so_as_aws_does(proxy: FaultProxy) -> None:
    service = serving("mailer")
    await provision(service)
    sns, arn = _subscription()
    sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName="FilterPolicy", AttributeValue='{"type": ["x"]}')
    said = "Invalid parameter: Attributes Reason: Subscription already exists with different attributes"
    proxy.add(Fault("Subscribe", answer=(400, "InvalidParameter", said)))
    async with provisioner() as found:
        everything = (await found.survey([service])).desired
        [(arns, wanted)] = everything.subscriptions.items()
        [change] = (await found.survey([service])).pending
        await found.apply([change._replace(action="create", attributes=wanted)])

    assert arns == change.arns
    assert await left_to_do(service) == []


async def test_two_at_once_make_one_topology() -> None:
    async with provisioner() as one, provisioner() as other:
        plans = await asyncio.gather(one.survey(EVERY_SETTING), other.survey(EVERY_SETTING))
        await asyncio.gather(one.apply(plans[0].pending), other.apply(plans[1].pending))

    assert await left_to_do(*EVERY_SETTING) == []


async def test_an_apply_that_ends_anywhere_is_finished_by_the_next() -> None:
    class Stopped(Exception):
        pass

    def stop(_: object) -> None:
        raise Stopped

    left = [await left_to_do(*EVERY_SETTING)]
    while left[-1]:
        async with provisioner() as found:
            planned = await found.survey(EVERY_SETTING)
            with pytest.raises(Stopped):
                await found.apply(planned.pending, stop)
        left.append(await left_to_do(*EVERY_SETTING))
        assert len(left[-1]) < len(left[-2])

    assert len(left) > 3


async def test_a_name_that_is_not_free_yet_is_waited_for(proxy: FaultProxy) -> None:
    said = "You must wait 60 seconds after deleting a queue before you can create another with the same name."
    refused = proxy.add(Fault("CreateQueue", times=2, answer=(400, "QueueDeletedRecently", said)))

    await provision(serving("mailer"))

    assert refused.hits == 2
    assert await left_to_do(serving("mailer")) == []


async def test_a_dead_letter_queue_that_is_not_to_be_seen_yet_is_waited_for(proxy: FaultProxy) -> None:
    said = "Value for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist."
    unseen = proxy.add(Fault("CreateQueue", skip=1, times=2, answer=(400, "InvalidParameterValue", said)))

    await provision(serving("mailer"))

    assert unseen.hits == 2
    assert await left_to_do(serving("mailer")) == []


async def test_what_does_not_settle_in_time_is_told(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.topology.aws.provision.REUSE_SECONDS", 0.1)
    proxy.add(Fault("CreateQueue", answer=(400, "QueueDeletedRecently", "wait 60 seconds")))

    with pytest.raises(TopologyError, match="QueueDeletedRecently"):
        await provision(serving("mailer"))


@pytest.mark.parametrize("code", ["ThrottlingException", "InternalError"])
async def test_what_aws_cannot_do_for_the_moment_is_tried_again(proxy: FaultProxy, code: str) -> None:
    for operation in ("CreateQueue", "CreateTopic", "Subscribe", "GetQueueAttributes", "GetTopicAttributes"):
        proxy.add(Fault(operation, times=1, answer=(400, code, "later")))

    await provision(serving("mailer"))

    assert await left_to_do(serving("mailer")) == []


async def test_an_answer_that_is_lost_after_aws_acted_makes_nothing_twice(proxy: FaultProxy) -> None:
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


async def test_rights_that_are_missing_are_told_together_before_anything_is_changed(proxy: FaultProxy) -> None:
    proxy.judge = allowed_by({}, "")

    with pytest.raises(TransportError) as caught:
        await provision(serving("mailer", UserSignedUp, OrderPlaced))

    said = str(caught.value)
    for action in ("sqs:GetQueueUrl", "sns:GetTopicAttributes"):
        assert f"the credentials in use may not {action} on arn:aws:" in said
    policy = json.loads(said.rpartition("ask for this policy: ")[2])
    assert sorted(action for one in policy["Statement"] for action in one["Action"]) == [
        "sns:GetTopicAttributes",
        "sqs:GetQueueUrl",
    ]
    assert not any(operation.startswith(("Create", "Set", "Subscribe")) for operation in proxy.operations())


async def test_a_right_that_is_missing_while_applying_names_action_and_resource(proxy: FaultProxy) -> None:
    proxy.add(Fault("Subscribe", answer=(403, "AuthorizationError", "not authorized")))

    with pytest.raises(TopologyError, match="may not sns:Subscribe on arn:aws:sns:") as caught:
        await provision(serving("mailer"))

    assert '"Action": ["sns:Subscribe"]' in caught.value.problems[-1]


async def test_a_right_that_is_missing_is_named_by_aws_own_words_where_it_has_them(proxy: FaultProxy) -> None:
    said = "User: x is not authorized to perform: sqs:tagqueue on resource: arn with an explicit deny"
    proxy.add(Fault("CreateQueue", answer=(403, "AccessDenied", said)))

    with pytest.raises(TopologyError, match=r"may not sqs:tagqueue on arn:aws:sqs:.*explicit deny"):
        await provision(serving("mailer"))


async def test_a_read_that_is_refused_while_applying_is_no_obstacle_where_it_is_not_needed(proxy: FaultProxy) -> None:
    service = serving("mailer")
    async with provisioner() as found:
        planned = await found.survey([service])
        proxy.add(Fault("ListTagsForResource", answer=(403, "AuthorizationError", "no")))
        await found.apply(planned.pending)
        proxy.faults.clear()

    assert await left_to_do(service) == []


async def test_messages_that_come_while_a_queue_is_being_destroyed_are_not_lost(queues: Queues) -> None:
    service = serving("mailer")
    await provision(service)
    async with provisioner() as found:
        going = (await found.survey([service])).destruction()
        queues.send("mailer", "precious")
        with pytest.raises(TopologyError, match="holds about 1 messages by now, and is not deleted"):
            await found.apply(going)

    assert queues.depth("mailer") == (1, 0)


async def test_a_topic_that_gets_a_subscriber_while_it_is_being_destroyed_is_kept() -> None:
    sqs = boto3.client("sqs")
    await provision(serving("mailer"))
    theirs = sqs.create_queue(QueueName=physical("theirs"))["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=theirs, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    async with provisioner() as found:
        going = (await found.survey([serving("mailer")], destroying=True)).destruction()
        sns, subscription = _subscription()
        topic = sns.get_subscription_attributes(SubscriptionArn=subscription)["Attributes"]["TopicArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        with pytest.raises(TopologyError, match=f"has new subscribers .{physical('theirs')}., and is not deleted"):
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
        going = (await found.survey([serving("mailer")], destroying=True)).destruction()
        sqs.create_queue(QueueName=physical("theirs"), Attributes={"RedrivePolicy": redrive})
        with pytest.raises(TopologyError, match=f"is the dead-letter queue of {physical('theirs')} by now"):
            await found.apply(going)
    await provision(serving("mailer"))
    gone = await destroy(serving("mailer"))

    reason = f"queues that stay use it as their dead-letter queue: {physical('theirs')}"
    assert f"foreign queue {physical('mailer-dlq')} ({reason})" in gone
    assert f"delete queue {physical('mailer')}" in gone
    assert sqs.get_queue_url(QueueName=physical("mailer-dlq"))["QueueUrl"] == url


async def test_a_dead_letter_queue_is_kept_where_the_right_to_see_who_uses_it_is_missing(
    broker: EmbeddedBroker, proxy: FaultProxy
) -> None:
    await provision(serving("mailer"))
    proxy.add(Fault("ListDeadLetterSourceQueues", answer=(403, "AccessDenied", "no")))

    async with provisioner() as found:
        seen = await found.survey([serving("mailer")], destroying=True)
        await found.apply(seen.destruction())

    kept = [change for change in seen.destruction() if change.action == "foreign"]
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

    reason = f"other services of the application may publish to it, and are still there: queue {physical('other')}"
    assert f"foreign topic {physical('users')} ({reason})" in spared
    assert f"delete queue {physical('mailer')}" in spared
    assert f"delete topic {physical('users')}" in together


async def test_what_nobody_declares_any_more_is_shown_and_goes_only_when_asked(broker: EmbeddedBroker) -> None:
    if broker.backend == "moto":
        pytest.skip("moto's tagging API knows neither queues nor topics")
    old, new = serving("old", UserLeft), serving("new", UserLeft)
    await provision(old, new)

    seen = [change for change in (await survey(new)).changes if change.action == "orphaned"]
    spared = await destroy(new)
    asked = await destroy(new, orphaned=True)

    assert [change.name for change in seen] == [physical("old-dlq"), physical("old")]
    assert "it was service old's" in seen[1].reason
    assert f"delete queue {physical('old')}" not in spared
    assert f"delete queue {physical('old')}" in asked


async def test_a_worker_whose_topic_is_no_longer_declared_needs_no_right_to_look_at_it(proxy: FaultProxy) -> None:
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


async def test_what_others_made_and_may_not_be_looked_at_is_a_note(broker: EmbeddedBroker, proxy: FaultProxy) -> None:
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

    found = await survey(serving("new", UserLeft))

    assert found.pending == []
    assert sum("is declared by no TARGET, and may not be looked at" in note for note in found.notes) == 2


@pytest.mark.parametrize("answer", [(403, "AccessDeniedException", "no"), (500, "InternalFailure", "no")])
async def test_without_the_tagging_api_a_plan_says_what_it_did_not_look_for(
    proxy: FaultProxy, answer: tuple[int, str, str]
) -> None:
    proxy.add(Fault("GetResources", answer=answer))

    found = await survey(serving("mailer"))

    assert "whether something is left that no TARGET declares is not known" in found.notes[-1]
    assert not found.knows_orphans


async def test_workers_use_a_queue_of_another_team_and_change_nothing_of_it(queues: Queues) -> None:
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


async def test_a_topic_by_its_arn_is_published_and_subscribed_to_and_never_changed() -> None:
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


async def test_a_workers_start_reports_a_policy_that_names_the_principal_of_the_wrong_region() -> None:
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
        [difference] = await verify(service, transport)
    finally:
        await transport.aclose()

    assert "Principal.Service: sns.amazonaws.com → sns.me-south-1.amazonaws.com" in difference


async def test_a_topic_or_queue_of_somebody_else_that_is_not_there_is_told_and_nothing_is_made() -> None:
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
    """Each with an event of its own on a topic of its own, and one that it takes from its neighbour."""
    events = [
        type(f"Many{number}", (Event,), {}, topic=Topic(f"topic-{number}"), type=f"many.e{number}", version="1.0")
        for number in range(count)
    ]
    return [serving(f"service-{number}", events[number], events[number - 1]) for number in range(count)]


async def test_a_plan_makes_no_more_calls_than_it_needs_and_not_all_at_once(proxy: FaultProxy) -> None:
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
