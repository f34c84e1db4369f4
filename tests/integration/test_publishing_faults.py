"""Publishers whose calls to SNS and SQS fail on the wire: between their clients and a broker stands a proxy."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
import pytest

from smartpipe import ConfigError, Event, Publisher, PublishError, Queue, Service, Topic
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.testing import provision, working
from smartpipe.transports.aws.configuration import client_options
from tests.support.answers import Refused, failing, silent_about
from tests.support.events import OrderPlaced, Paid
from tests.support.proxy import Fault
from tests.support.queues import Queues
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.support.calls import Call
    from tests.support.proxy import FaultProxy

    Publish = Callable[..., Awaitable[list[str]]]

LEDGER = Queue("accounts", fifo=True)


class Way(NamedTuple):
    """One way to a queue: the call that takes events there, and the queue where they arrive."""

    operation: str
    events: Sequence[Event]
    arrives: str
    queue: Queue | None = None

    @property
    def fifo(self) -> bool:
        return self.arrives.endswith(".fifo")


ORDERS = [OrderPlaced(order_id=str(number)) for number in range(10)]
PAYMENTS = [Paid(account=str(number)) for number in range(10)]
WAYS = {
    "topic": Way("PublishBatch", ORDERS, "shop"),
    "queue": Way("SendMessageBatch", ORDERS, "shop", Queue("shop")),
    "fifo-topic": Way("PublishBatch", PAYMENTS, "accounts.fifo"),
    "fifo-queue": Way("SendMessageBatch", PAYMENTS, "accounts.fifo", LEDGER),
}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def only(*ways: str) -> pytest.MarkDecorator:
    """Not every test needs every way."""
    return pytest.mark.parametrize("way", ways, indirect=True)


@pytest.fixture
def fast_proxy(fast_proxy: FaultProxy) -> FaultProxy:
    """Also with all topics and queues."""
    return provisioned(fast_proxy)


@pytest.fixture
def each_proxy(each_proxy: FaultProxy) -> FaultProxy:
    """Also with all topics and queues."""
    return provisioned(each_proxy)


def provisioned(proxy: FaultProxy) -> FaultProxy:
    asyncio.run(provision(*services()))
    proxy.calls.clear()
    return proxy


@pytest.fixture(params=["direct", "botocore", "blocking"])
def publish(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publish events with either publisher; return their ids."""

    async def with_asyncio(events: Sequence[Event], queue: Queue | None = None, **options: Any) -> list[str]:
        async with Publisher("test", **options) as publisher:
            return (await publisher.publish_many(events, queue=queue)).event_ids

    def with_blocking(events: Sequence[Event], queue: Queue | None = None, **options: Any) -> list[str]:
        with BlockingPublisher("test", **options) as publisher:
            return publisher.publish_many(events, queue=queue).event_ids

    async def in_a_thread(*args: Any, **options: Any) -> list[str]:
        return await asyncio.to_thread(with_blocking, *args, **options)

    if request.param != "blocking":
        monkeypatch.setenv("SMARTPIPE_TRANSPORT", request.param)
    return in_a_thread if request.param == "blocking" else with_asyncio


def services() -> tuple[Service, Service]:
    shop, accounts = Service("shop"), Service("accounts", queue=LEDGER)

    @shop.subscribe(OrderPlaced)
    async def ordered(_: OrderPlaced) -> None: ...

    @accounts.subscribe(Paid)
    async def paid(_: Paid) -> None: ...

    return shop, accounts


def arrived(proxy: FaultProxy, queue: str) -> Counter[str]:
    """Take what is in *queue*, past the proxy: how often each event's id is there."""
    queues = Queues(boto3.client("sqs", endpoint_url=proxy._upstream))
    return Counter(json.loads(message["Body"])["id"] for message in queues.take(queue))


def batches(proxy: FaultProxy, operation: str) -> list[list[dict[str, Any]]]:
    """What was sent, request by request: for each entry its event's id, group and deduplication id."""
    return [sent(call) for call in proxy.calls if call.operation == operation]


def sent(call: Call) -> list[dict[str, Any]]:
    return [
        {
            "id": json.loads(entry.get("Message") or entry["MessageBody"])["id"],
            "group": entry.get("MessageGroupId"),
            "dedup": entry.get("MessageDeduplicationId"),
        }
        for entry in call.entries
    ]


async def test_fault_04_only_entries_of_a_batch_with_a_temporary_failure_are_sent_again(
    fast_proxy: FaultProxy, publish: Publish, way: Way
) -> None:
    refused = {
        1: Refused("InternalError", sender_fault=False),
        4: Refused("RequestThrottled", sender_fault=True),
        7: Refused("InvalidParameterValue", sender_fault=True),
    }
    fast_proxy.add(Fault(way.operation, times=1, rewrite=failing(refused)))

    with pytest.raises(PublishError) as caught:
        await publish(way.events, way.queue)

    [failure] = caught.value.failures
    first, again = batches(fast_proxy, way.operation)
    assert (failure.event, failure.code, failure.retryable) == (way.events[7], "InvalidParameterValue", False)
    assert failure.event_id == first[7]["id"]
    assert again == [first[1], first[4]]
    assert all((entry["dedup"] == entry["id"]) is way.fifo for entry in first)
    if way.fifo:  # the proxy's lie, after the broker took them all, makes no second message
        assert arrived(fast_proxy, way.arrives) == Counter(entry["id"] for entry in first)


@pytest.mark.parametrize("code", ["InvalidMessageContents", "InvalidParameter"])
async def test_fault_04_an_entry_that_is_invalid_is_sent_once_whatever_its_fault_flag_says(
    fast_proxy: FaultProxy, publish: Publish, way: Way, code: str
) -> None:
    fast_proxy.add(Fault(way.operation, rewrite=failing({2: Refused(code, sender_fault=False)})))

    with pytest.raises(PublishError) as caught:
        await publish(way.events, way.queue)

    [failure] = caught.value.failures
    assert (failure.event, failure.code, failure.retryable) == (way.events[2], code, False)
    assert len(batches(fast_proxy, way.operation)) == 1


@only("topic", "queue")
async def test_fault_26_an_entry_that_the_response_does_not_mention_is_sent_again(
    fast_proxy: FaultProxy, publish: Publish, way: Way
) -> None:
    fast_proxy.add(Fault(way.operation, times=1, rewrite=silent_about(3, 9)))

    await publish(way.events, way.queue)

    first, again = batches(fast_proxy, way.operation)
    assert again == [first[3], first[9]]


@only("topic", "fifo-topic")
async def test_fault_12_a_lost_response_leads_to_one_message_on_fifo_and_two_on_standard_topics(
    each_proxy: FaultProxy, publish: Publish, way: Way
) -> None:
    each_proxy.add(Fault(way.operation, times=1, drop="reply"))

    ids = await publish(way.events[:1], way.queue)

    first, again = batches(each_proxy, way.operation)
    assert again == first
    assert arrived(each_proxy, way.arrives) == {ids[0]: 1 if way.fifo else 2}


@only("queue", "fifo-queue")
async def test_fault_12_so_does_a_response_that_breaks_off(fast_proxy: FaultProxy, publish: Publish, way: Way) -> None:
    fast_proxy.add(Fault(way.operation, times=1, truncate=True))

    ids = await publish(way.events, way.queue)

    assert arrived(fast_proxy, way.arrives) == dict.fromkeys(ids, 1 if way.fifo else 2)


async def test_fault_12_two_messages_of_one_event_are_handled_once_by_an_idempotent_handler(
    fast_proxy: FaultProxy,
) -> None:
    service, effects = Service("shop"), list[str]()

    @service.subscribe(OrderPlaced, idempotent=True, concurrency=1)
    async def handle(event: OrderPlaced) -> None:
        effects.append(event.order_id)

    fast_proxy.add(Fault("PublishBatch", times=1, drop="reply"))
    async with Publisher("test") as publisher:
        await publisher.publish(OrderPlaced(order_id="7"))
    async with working(service, idempotency_url="memory://") as worker:
        await until(lambda: worker.consumers[0].counters.handled == 2)

    assert effects == ["7"]
    assert worker.consumers[0].counters.deduplicated == 1


async def test_fault_17_a_throttled_send_is_retried(fast_proxy: FaultProxy, publish: Publish) -> None:
    await refused_twice(fast_proxy, publish, "queue", (400, "RequestThrottled"))


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("queue", 400, "KmsThrottled"),
        ("topic", 429, "Throttled"),
        ("topic", 400, "KMSThrottling"),
    ],
)
async def test_fault_18_throttles_that_botocore_does_not_know_are_retried_too(
    fast_proxy: FaultProxy, publish: Publish, kind: str, status: int, code: str
) -> None:
    await refused_twice(fast_proxy, publish, kind, (status, code))


async def test_fault_19_an_expired_token_is_retried_until_it_is_renewed(
    fast_proxy: FaultProxy, publish: Publish
) -> None:
    await refused_twice(fast_proxy, publish, "topic", (403, "ExpiredToken"))


async def refused_twice(fast_proxy: FaultProxy, publish: Publish, kind: str, answer: tuple[int, str]) -> None:
    """Publish while the first two calls are answered so."""
    way = WAYS[kind]
    fast_proxy.add(Fault(way.operation, times=2, answer=(*answer, "not now")))

    ids = await publish(way.events, way.queue)

    assert len(batches(fast_proxy, way.operation)) == 3
    assert arrived(fast_proxy, way.arrives) == Counter(ids)


@only("topic", "fifo-queue")
async def test_fault_35_a_publish_without_a_response_is_given_up_and_retried(
    fast_proxy: FaultProxy, publish: Publish, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = partial(client_options, read_timeout_seconds=0.5)
    monkeypatch.setattr("smartpipe.transports.aws.session.CALL_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr("smartpipe.transports.aws.blocking_session.client_options", impatient)
    monkeypatch.setattr("smartpipe.transports.aws.direct.sns.CALL_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr("smartpipe.transports.aws.direct.sqs.CALL_TIMEOUT_SECONDS", 0.5)
    stalled = fast_proxy.add(Fault(way.operation, times=1, delay_seconds=600))

    ids = await publish(way.events, way.queue)

    assert stalled.hits == 1
    assert set(arrived(fast_proxy, way.arrives)) == set(ids)


@pytest.mark.parametrize(("kind", "code"), [("queue", "InvalidSignatureException"), ("topic", "SignatureDoesNotMatch")])
async def test_fault_53_a_wrong_clock_is_reported_with_both_times(
    fast_proxy: FaultProxy, publish: Publish, kind: str, code: str
) -> None:
    way, theirs = WAYS[kind], datetime.now(UTC) + timedelta(minutes=10)
    said = f"Signature expired: 20261123T020000Z is now earlier than {theirs:%Y%m%dT%H%M%SZ}"
    headers = {"Date": format_datetime(theirs, usegmt=True)}
    fast_proxy.add(Fault(way.operation, answer=(403, code, said), headers=headers))

    with pytest.raises(PublishError) as caught:
        await publish(way.events[:1], way.queue)

    assert f"AWS's {theirs:%Y-%m-%d %H:%M:%S} UTC" in str(caught.value)
    assert "this machine's clock says" in str(caught.value)
    assert len(batches(fast_proxy, way.operation)) <= 2  # the direct transport tries it once by AWS's clock


@pytest.mark.parametrize("kind", ["queue", "topic"])
async def test_fault_53_the_direct_transport_signs_by_the_clock_of_aws_after_one_refusal(
    fast_proxy: FaultProxy, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    way, theirs = WAYS[kind], datetime.now(UTC) + timedelta(minutes=10)
    headers = {"Date": format_datetime(theirs, usegmt=True)}
    said = "Signature expired: 20261123T020000Z is now earlier than 20261123T021000Z"
    fast_proxy.add(Fault(way.operation, times=1, answer=(403, "InvalidSignatureException", said), headers=headers))

    async with Publisher("test") as publisher:
        ids = [await publisher.publish(event, queue=way.queue) for event in way.events[:3]]

    first, *later = (
        datetime.strptime(call.signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        for call in fast_proxy.calls
        if call.operation == way.operation
    )
    assert set(arrived(fast_proxy, way.arrives)) == set(ids)
    assert len(later) == 3
    assert all(moment - first > timedelta(minutes=9) for moment in later)
    assert "s behind AWS's clock. Requests will be signed by AWS's clock" in caplog.text


async def test_fault_58_a_queue_of_another_region_is_an_error_that_names_both_regions(
    fast_proxy: FaultProxy, publish: Publish
) -> None:
    arn = "arn:aws:sqs:ap-south-1:000000000000:shop"

    with pytest.raises(ConfigError, match=r"is in region ap-south-1, .* works in us-east-1: set AWS_REGION"):
        await publish(ORDERS, Queue(arn, existing=True))

    assert fast_proxy.operations() == []


async def test_fault_58_a_topic_of_another_region_is_reached_there(fast_proxy: FaultProxy, publish: Publish) -> None:
    far = boto3.client("sns", region_name="ap-south-1").create_topic(Name="far")["TopicArn"]

    class Moved(Event, topic=Topic(arn=far), type="moved.far", version="1.0"): ...

    await publish([Moved()])

    assert {call.region for call in fast_proxy.calls if call.operation == "PublishBatch"} == {"ap-south-1"}
