"""The context of a published event: what the caller passes, what OpenTelemetry knows, and what consumers accept."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from base64 import b64decode
from contextlib import contextmanager
from contextvars import Context
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

import smartpipe.blocking
from smartpipe import Batch, BatchDelivery, ConfigError, Delivery, Publisher, PublishError, Service
from smartpipe.envelope import encode, read_traceparent, wrap
from smartpipe.envelope.decode import Decoder
from smartpipe.envelope.traceparent import is_undecided
from smartpipe.outbox import Outbox
from smartpipe.outbox.rows import document_of
from smartpipe.publisher.prepare import PreparedEvent, Publication, prepare, read_options
from smartpipe.testing import MemoryBroker
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
WHEN = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=timezone(timedelta(hours=5, minutes=30)))
CONTEXT: dict[str, Any] = {
    "event_id": 'request "7\\8"/ü',
    "time": WHEN,
    "traceparent": TRACEPARENT,
    "correlation_id": 'chain "é"',
    "causation_id": "command-1",
}
BY_MANY = {name: value for name, value in CONTEXT.items() if name != "event_id"}
decoder = Decoder([UserSignedUp, UserLeft])


def check(body: str, *, id_given: bool = True) -> None:
    """Check that consumers read the context as it was passed."""
    envelope = decoder.decode(body)
    assert (envelope.id == CONTEXT["event_id"]) == id_given
    assert envelope.time == WHEN
    assert envelope.traceparent == TRACEPARENT
    assert envelope.correlation_id == CONTEXT["correlation_id"]
    assert envelope.causation_id == CONTEXT["causation_id"]
    assert json.loads(body)["time"] == "2026-02-02T22:35:06.000789Z"


def body_of(**options: Any) -> str:
    return prepare(Publication(ADA, *read_options(**options)), source="test").message.body


async def test_the_asyncio_publisher_takes_it() -> None:
    transport = FakeTransport()
    async with Publisher("test", transport=transport) as publisher:
        assert await publisher.publish(ADA, **CONTEXT) == CONTEXT["event_id"]
        await publisher.publish_many([ADA, ADA], **BY_MANY)

    [one, *many] = [message.body for message in transport.entries("publish")]
    check(one)
    assert len({json.loads(body)["id"] for body in many}) == 2
    for body in many:
        check(body, id_given=False)


def test_the_blocking_publisher_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    sent: list[PreparedEvent] = []

    def send_chunk(chunk: list[PreparedEvent]) -> list[Any]:
        sent.extend(chunk)
        return []

    with smartpipe.blocking.Publisher("test") as publisher:
        monkeypatch.setattr(publisher, "_send_chunk", send_chunk)
        assert publisher.publish(ADA, **CONTEXT) == CONTEXT["event_id"]
        publisher.publish_many([ADA, ADA], **BY_MANY)

    check(sent[0].message.body)
    for prepared in sent[1:]:
        check(prepared.message.body, id_given=False)


def test_the_outbox_writes_it_into_the_row() -> None:
    row = Outbox("test")._row(ADA, **CONTEXT)

    assert row["event_id"] == CONTEXT["event_id"]
    check(row["body"])
    assert json.loads(b64decode(document_of(row)))["event_id"] == CONTEXT["event_id"]


async def test_the_testing_kit_takes_it() -> None:
    async with MemoryBroker() as broker:
        await broker.publish(ADA, **CONTEXT)

        [published] = broker.transport.records
    check(published.body)


@pytest.mark.parametrize("way", ["delivery", "batch", "publisher"])
async def test_in_a_handler_it_replaces_the_context_of_the_delivery(way: str) -> None:
    service = Service("mailer")
    options: dict[str, Any] = {"batch": Batch(size=1)} if way == "batch" else {}

    async def handle(event: Any, delivery: Any) -> None:
        async with Publisher("other") as publisher:
            by = publisher if way == "publisher" else delivery
            await by.publish(UserLeft(name="Ada"), **CONTEXT)
            await by.publish(UserLeft(name="Ada"), correlation_id="only this")

    async def handle_one(event: UserSignedUp, delivery: Delivery) -> None:
        await handle(event, delivery)

    async def handle_batch(events: list[UserSignedUp], batch: BatchDelivery) -> None:
        await handle(events, batch)

    service.subscribe(UserSignedUp, **options)(handle_batch if way == "batch" else handle_one)
    async with MemoryBroker(service) as broker:
        event_id = await broker.publish(ADA)
        await broker.drain()
        broker.assert_nothing_dead_lettered()

        cause, all_of_it, part = (record.body for record in broker.transport.records[:3])
    check(all_of_it)
    envelope = decoder.decode(part)
    assert envelope.correlation_id == "only this"
    assert envelope.causation_id == (None if way == "batch" else event_id)
    followed = decoder.decode(cause).traceparent
    assert followed is not None
    assert (envelope.traceparent or "")[3:35] == followed[3:35] or way == "batch"


async def test_the_id_of_the_next_event_of_a_handler_does_not_depend_on_an_id_that_is_passed() -> None:
    ids: list[list[str]] = []

    async def run(*, passed: bool) -> None:
        service = Service("mailer")

        @service.subscribe(UserSignedUp)
        async def handle(event: UserSignedUp, delivery: Delivery) -> None:
            if passed:
                await delivery.publish(UserLeft(name="Ada"), event_id="passed")
            ids.append([await delivery.publish(UserLeft(name="Ada"))])

        async with MemoryBroker(service) as broker:
            await broker.publish(ADA, event_id="cause")
            await broker.drain()

    await run(passed=True)
    await run(passed=False)

    assert ids[0] == ids[1]


async def test_middleware_of_a_publisher_can_set_it() -> None:
    async def add_request(publication: Publication, call_next: Callable[[Publication], Any]) -> str:
        event_id: str = await call_next(publication.replace_context(correlation_id="request-7"))
        return event_id

    transport = FakeTransport()
    async with Publisher("test", transport=transport, middleware=[add_request]) as publisher:
        await publisher.publish(ADA, traceparent=TRACEPARENT)

    [message] = transport.entries("publish")
    envelope = decoder.decode(message.body)
    assert (envelope.correlation_id, envelope.traceparent) == ("request-7", TRACEPARENT)


def test_none_is_the_same_as_leaving_it_out() -> None:
    envelope = decoder.decode(body_of(**dict.fromkeys(CONTEXT)))

    assert envelope.correlation_id == envelope.id
    assert envelope.causation_id is None
    assert envelope.time is not None
    assert read_traceparent(envelope.traceparent)


WRONG: list[tuple[str, Any]] = [
    ("event_id", ""),
    ("event_id", "x" * 257),
    ("event_id", UUID(int=7)),
    ("event_id", 7),
    ("event_id", "a\nb"),
    ("correlation_id", ""),
    ("correlation_id", "x" * 257),
    ("correlation_id", "x" * 1_000_000),
    ("correlation_id", b"x"),
    ("correlation_id", "\ud800"),
    ("causation_id", "\x1b[2J"),
    ("causation_id", "\uffff"),
    ("causation_id", ["x"]),
    ("traceparent", ""),
    ("traceparent", "no trace"),
    ("traceparent", TRACEPARENT.upper()),
    ("traceparent", TRACEPARENT + "\n"),
    ("traceparent", f"ff-{TRACE}-00f067aa0ba902b7-01"),
    ("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01"),
    ("traceparent", f"00-{TRACE}-{'0' * 16}-01"),
    ("traceparent", TRACEPARENT.encode()),
    ("time", datetime(2026, 1, 1)),  # noqa: DTZ001 - without a time zone
    ("time", "2026-01-01T00:00:00Z"),
    ("time", 1_767_225_600),
    ("time", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: repr(value)[:40])
def test_a_value_that_consumers_would_ignore_or_refuse_is_an_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(PublishError, match=f"{name}=") as caught:
        body_of(**{name: value})

    [failure] = caught.value.failures
    assert (failure.code, failure.retryable) == ("InvalidContext", False)
    assert len(str(caught.value)) < 700
    str(caught.value).encode()


@pytest.mark.parametrize("length", [1, 256])
def test_ids_of_the_longest_and_the_shortest_length_are_read_back(length: int) -> None:
    passed = dict.fromkeys(("event_id", "correlation_id", "causation_id"), "ü" * length)

    envelope = decoder.decode(body_of(**passed))

    assert {envelope.id, envelope.correlation_id, envelope.causation_id} == {"ü" * length}


async def test_publish_many_refuses_one_id_for_several_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    shared: Any = {"event_id": "7"}

    with pytest.raises(ConfigError, match="each event needs an id"):
        await Publisher("test", transport=FakeTransport()).publish_many([ADA], **shared)
    with smartpipe.blocking.Publisher("test") as publisher, pytest.raises(ConfigError, match="each event needs an id"):
        publisher.publish_many([ADA], **shared)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="correlationid"):
        body_of(correlationid="x")


@pytest.mark.parametrize("event_id", ['"', "\\", 'a","x":"b', "\n", "\u2028", "\x7f"])
def test_an_envelope_with_any_id_is_valid_json(event_id: str) -> None:
    fields = json.loads(encode(wrap(ADA, source="test", event_id=event_id)))

    assert (fields["id"], fields["correlationid"]) == (event_id, event_id)
    assert "x" not in fields


@pytest.mark.parametrize("header", [None, "", "no trace", 7, f"{TRACEPARENT}-more", f" {TRACEPARENT}"])
def test_the_header_of_a_request_that_is_no_traceparent_reads_as_none(header: Any) -> None:
    assert read_traceparent(header) is None
    assert read_traceparent(TRACEPARENT) == TRACEPARENT


def test_opentelemetry_is_not_imported_by_publishing() -> None:
    code = (
        "import asyncio, sys\nfrom smartpipe.testing import MemoryBroker\nfrom tests.support.events import ADA\n"
        "async def main():\n    async with MemoryBroker() as broker:\n        await broker.publish(ADA)\n"
        "asyncio.run(main())\nprint([name for name in sys.modules if name.startswith('opentelemetry')])"
    )

    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert ran.stdout.strip() == "[]"


@contextmanager
def current_span(*, sampled: bool = True) -> Iterator[str]:
    """Make a span of OpenTelemetry current, as an instrumented web framework does; yield its traceparent."""
    trace: Any = pytest.importorskip("opentelemetry.trace")
    flags = trace.TraceFlags(1 if sampled else 0)
    span = trace.NonRecordingSpan(
        trace.SpanContext(int(TRACE, 16), 0x00F067AA0BA902B7, is_remote=False, trace_flags=flags)
    )
    with trace.use_span(span):
        yield f"00-{TRACE}-00f067aa0ba902b7-{'01' if sampled else '00'}"


@pytest.mark.parametrize("sampled", [True, False])
def test_the_trace_is_that_of_the_current_span_of_opentelemetry(sampled: bool) -> None:
    with current_span(sampled=sampled) as traceparent:
        assert json.loads(body_of())["traceparent"] == traceparent
        assert Outbox("test")._row(ADA)["body"].count(traceparent) == 1

    assert TRACE not in body_of()


def test_a_traceparent_that_is_passed_comes_before_the_current_span() -> None:
    other = f"00-{'a' * 32}-00f067aa0ba902b7-00"

    with current_span():
        assert json.loads(body_of(traceparent=other))["traceparent"] == other


async def test_in_a_handler_the_current_span_comes_before_the_trace_of_the_event() -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp, delivery: Delivery) -> None:
        with current_span():
            await delivery.publish(UserLeft(name="Ada"))
        await delivery.publish(UserLeft(name="Bob"))

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

        cause, inside, after = (json.loads(record.body) for record in broker.transport.records[:3])
    assert inside["traceparent"] == TRACEPARENT
    assert inside["causationid"] == after["causationid"] == cause["id"]
    assert after["traceparent"][3:35] == cause["traceparent"][3:35]


async def test_concurrent_requests_each_have_the_trace_of_their_own_span() -> None:
    trace: Any = pytest.importorskip("opentelemetry.trace")
    transport = FakeTransport()

    async def request(publisher: Publisher, number: int) -> None:
        span = trace.NonRecordingSpan(trace.SpanContext(number, number, is_remote=False))
        with trace.use_span(span):
            await asyncio.sleep(0)
            await publisher.publish(UserLeft(name=str(number)))

    async with Publisher("test", transport=transport) as publisher:
        await asyncio.gather(*(request(publisher, number) for number in range(1, 8)))

    for message in transport.entries("publish"):
        fields = json.loads(message.body)
        assert int(fields["traceparent"][3:35], 16) == int(fields["data"]["name"])


def test_an_invalid_current_span_starts_a_new_trace_without_a_span() -> None:
    trace: Any = pytest.importorskip("opentelemetry.trace")

    with trace.use_span(trace.INVALID_SPAN):
        found = json.loads(body_of())["traceparent"]

    assert read_traceparent(found)
    assert is_undecided(found)
    assert found[3:35] != "0" * 32


@pytest.mark.parametrize("way", ["delivery", "batch", "item"])
async def test_after_a_publish_by_a_delivery_its_task_has_no_cause(way: str) -> None:
    """A task that the handler left behind may publish events of its own."""
    service = Service("mailer")
    options: dict[str, Any] = {} if way == "delivery" else {"batch": Batch(size=1)}

    async def publish(by: Any) -> None:
        async with Publisher("other") as publisher:
            await publisher.publish(UserLeft(name="before"))
            await by.publish(UserLeft(name="by the delivery"))
            with pytest.raises(PublishError):
                await by.publish(UserLeft(name="x"), delay_seconds=5)
            await publisher.publish(UserLeft(name="after"))

    async def handle(_: Any, delivery: Any) -> None:
        by = delivery.deliveries[0] if way == "item" else delivery
        await asyncio.create_task(publish(by), context=Context())

    async def handle_one(event: UserSignedUp, delivery: Delivery) -> None:
        await handle(event, delivery)

    async def handle_batch(events: list[UserSignedUp], delivery: BatchDelivery) -> None:
        await handle(events, delivery)

    service.subscribe(UserSignedUp, **options)(handle_one if way == "delivery" else handle_batch)
    async with MemoryBroker(service) as broker:
        event_id = await broker.publish(ADA)
        await broker.drain()
        broker.assert_handled(UserSignedUp, times=1)
        envelopes = [decoder.decode(record.body) for record in broker.transport.records]

    found = {envelope.data.name: envelope for envelope in envelopes if isinstance(envelope.data, UserLeft)}
    versions = {name: UUID(envelope.id).version for name, envelope in found.items()}
    assert versions == {"before": 7, "by the delivery": 8, "after": 7}
    causes = {name: envelope.causation_id for name, envelope in found.items()}
    assert causes == {"before": None, "by the delivery": None if way == "batch" else event_id, "after": None}
