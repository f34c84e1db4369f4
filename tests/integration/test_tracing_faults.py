"""Traces that find no room, or are none: the context goes in the body, and what cannot be one is ignored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smartpipe import Delivery, Event, Publisher, Service, Topic
from smartpipe.envelope import encode, wrap
from smartpipe.testing import provision, working
from tests.support.queues import Queues
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.proxy import FaultProxy

parcels = Topic("parcels")
NINE = {f"label{number}": "fragile" for number in range(9)}
CONTEXT = ("traceparent", "correlationid", "causationid")


class Packed(Event, topic=parcels, type="parcel.packed", version="1.0"):
    number: int


class Shipped(Event, topic=parcels, type="crate.shipped", version="1.0"):
    number: int


def is_trace(traceparent: str) -> bool:
    """By the text of W3C's Trace Context, not by our patterns."""
    version, trace, span, flags = traceparent.split("-")
    lengths = [len(part) for part in (version, trace, span, flags)]
    return lengths == [2, 32, 16, 2] and 0 not in (int(trace, 16), int(span, 16)) and version == "00"


def services(seen: list[Delivery]) -> tuple[Service, Service]:
    """One that takes what was packed and ships it, and one whose queue is only looked into."""
    shipping, tracking = Service("shipping", publishes=[Shipped]), Service("tracking")

    @shipping.subscribe(Packed)
    async def ship(event: Packed, delivery: Delivery) -> None:
        await delivery.publish(Shipped(number=event.number))
        seen.append(delivery)

    @tracking.subscribe(Shipped)
    async def track(_: Shipped) -> None: ...

    return shipping, tracking


def body_of(number: int, **context: Any) -> str:
    """Return an envelope whose context attributes are these."""
    fields = json.loads(encode(wrap(Packed(number=number), source="test")))
    return json.dumps({name: value for name, value in fields.items() if name not in CONTEXT} | context)


def wrapped(body: str) -> str:
    """Return it as SNS delivers it without raw delivery."""
    notification = {"Type": "Notification", "MessageId": "m", "TopicArn": "arn:aws:sns:us-east-1:0:parcels"}
    return json.dumps({**notification, "Message": body, "Timestamp": "2026-11-23T02:00:00.000Z"})


HUGE = "a" * 100_000
TRACEPARENTS: tuple[Any, ...] = (
    "no trace",
    "00-00000000000000000000000000000000-0000000000000000-01",
    "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
    HUGE,
    7,
    {"trace": [None]},
    None,
)
CONTEXTS = [
    *({"traceparent": value} for value in TRACEPARENTS),
    *(dict.fromkeys(CONTEXT, value) for value in (7, ["a"], {"a": 1}, True, None)),
    {"correlationid": HUGE},
    {"causationid": HUGE},
]


async def test_fault_51_a_trace_goes_in_the_body_where_it_takes_no_attribute_from_the_user(
    fast_proxy: FaultProxy,
) -> None:
    seen = list[Delivery]()
    shipping, tracking = services(seen)
    await provision(shipping, tracking)
    async with Publisher("test") as publisher:
        await publisher.publish(Packed(number=1), attributes=NINE)
    async with working(shipping):
        await until(lambda: seen)

    [call] = [call for call in fast_proxy.calls if call.operation == "PublishBatch" and "label0" in str(call.fields)]
    names = [value for name, value in call.fields.items() if name.endswith(".Name")]
    body = json.loads(call.entries[0]["Message"])
    assert sorted(names) == sorted([*NINE, "type"])
    assert is_trace(body["traceparent"])
    assert seen[0].envelope.traceparent == body["traceparent"]


@pytest.mark.parametrize("form", ["raw", "wrapped"])
async def test_fault_51_a_context_that_is_none_is_ignored_and_what_follows_has_a_trace_of_its_own(
    fast_proxy: FaultProxy, form: str
) -> None:
    seen = list[Delivery]()
    shipping, tracking = services(seen)
    await provision(shipping, tracking)
    queues = Queues(boto3.client("sqs", endpoint_url=fast_proxy._upstream))
    bodies = [body_of(number, **context) for number, context in enumerate(CONTEXTS)]
    queues.send("shipping", *(bodies if form == "raw" else map(wrapped, bodies)))
    async with working(shipping) as worker:
        await until(lambda: worker.consumers[0].counters.handled == len(CONTEXTS))

    followed = [json.loads(message["Body"]) for message in queues.take("tracking")]
    traces = [fields["traceparent"] for fields in followed]
    assert sorted(fields["data"]["number"] for fields in followed) == list(range(len(CONTEXTS)))
    assert all(map(is_trace, traces))
    assert len({trace[3:35] for trace in traces}) == len(CONTEXTS)
    assert [delivery.envelope.traceparent for delivery in seen] == [None] * len(CONTEXTS)
    assert {fields["causationid"] for fields in followed} == {delivery.event_id for delivery in seen}
    assert {fields["correlationid"] for fields in followed} == {delivery.event_id for delivery in seen}
