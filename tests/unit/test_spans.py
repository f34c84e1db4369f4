"""Spans of published and handled events, with OpenTelemetry's real SDK."""

from __future__ import annotations

import asyncio
import importlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import (
    Batch,
    BatchDelivery,
    Delivery,
    Event,
    Publisher,
    PublishError,
    Reject,
    Service,
    Topic,
    Worker,
)
from smartpipe.dlq.messages import Selection
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.dlq.redrive import Redrive, RemovalResult, Remover, scan
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.traceparent import is_sampled, is_undecided, new_traceparent
from smartpipe.errors import TransportError
from smartpipe.message import Failure
from smartpipe.settings import WorkerSettings
from smartpipe.telemetry.spans import find_tracing
from smartpipe.testing import MemoryBroker
from smartpipe.transports.open import use_transport
from tests.support.events import ADA, OrderPlaced, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.processes import ROOT
from tests.support.spans import draw, find_span, recording_spans, traces
from tests.support.waiting import until
from tests.unit.test_lambda import record

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED, UNSAMPLED = f"00-{TRACE}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7-00"


@pytest.fixture
def spans() -> Iterator[Any]:
    with recording_spans() as exporter:
        yield exporter


def tracer() -> Any:
    return pytest.importorskip("opentelemetry.trace").get_tracer("test")


def never_sampled() -> Any:
    return pytest.importorskip("opentelemetry.sdk.trace.sampling").ALWAYS_OFF


def traceparents(transport: FakeTransport, verb: str = "publish") -> list[str]:
    return [json.loads(message.body)["traceparent"] for message in transport.entries(verb)]


class FriendsSuggested(Event, topic=Topic("friends"), type="tests.friends_suggested", version="1.0"):
    name: str


def make_suggesting_service(seen: list[str | None] | None = None) -> Service:
    """Return a service that publishes one event for each, and adds the traceparents of all of them to *seen*."""
    service = Service("suggestions")
    found = [] if seen is None else seen

    @service.subscribe(UserSignedUp)
    async def suggest(event: UserSignedUp, delivery: Delivery) -> None:
        found.append(delivery.envelope.traceparent)
        await delivery.publish(FriendsSuggested(name=event.name))

    @service.subscribe(FriendsSuggested)
    def tell(event: FriendsSuggested, delivery: Delivery) -> None:
        found.append(delivery.envelope.traceparent)

    return service


async def test_the_whole_signup_example_is_one_trace(spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_TRACE_PARENT", "child")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    events, verification = (importlib.import_module(f"signup.{name}") for name in ("events", "email_verification"))
    suggestions = Service("suggestions")

    @suggestions.subscribe(events.UserSignedUp)
    def suggest(event: Any) -> None:
        pass

    @suggestions.subscribe(events.UserSignedUp)
    async def publish_on(event: Any, delivery: Delivery) -> None:
        await delivery.publish(FriendsSuggested(name=event.name))

    @suggestions.subscribe(FriendsSuggested)
    async def tell(event: FriendsSuggested) -> None:
        pass

    async with MemoryBroker(verification.service, suggestions) as broker, Publisher("signup-api") as publisher:
        with tracer().start_as_current_span("POST /signup"):
            await publisher.publish(events.UserSignedUp(user_id=ADA.user_id, name="Ada", email="ada@shop.example"))
        await broker.drain()

    assert draw(spans) == [
        "POST /signup",
        "  publish users",
        "    process email-verification",
        "    process suggestions",
        "    process suggestions",
        "      publish friends",
        "        process suggestions",
    ]
    assert len(traces(spans.get_finished_spans())) == 1


async def test_a_handler_begins_a_trace_with_a_link_to_the_publication(spans: Any) -> None:
    async with MemoryBroker(make_suggesting_service()) as broker:
        await broker.publish(ADA)
        await broker.drain()

    published = find_span(spans, "publish users")
    [handled] = [
        span
        for span in spans.get_finished_spans()
        if span.links and span.links[0].context.span_id == published.context.span_id
    ]
    assert handled.parent is None
    assert handled.context.trace_id != published.context.trace_id
    assert draw(spans) == ["process suggestions", "  publish friends", "process suggestions", "publish users"]


async def test_spans_have_the_kinds_and_attributes_of_the_conventions(spans: Any) -> None:
    kinds = pytest.importorskip("opentelemetry.trace").SpanKind
    async with MemoryBroker(make_suggesting_service()) as broker:
        event_id = await broker.publish(ADA)
        await broker.drain()

    published = find_span(spans, "publish users")
    handled = next(span for span in spans.get_finished_spans() if span.name == "process suggestions")
    event = {
        "cloudevents.event_id": event_id,
        "cloudevents.event_source": "test",
        "cloudevents.event_type": "member.signed_up",
    }
    assert published.kind is kinds.PRODUCER
    assert dict(published.attributes) == event | {
        "messaging.system": "aws.sns",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "users",
    }
    assert handled.kind is kinds.CONSUMER
    found = dict(handled.attributes)
    assert found.pop("messaging.message.id")
    assert found.pop("smartpipe.handler").endswith("suggest")
    assert found == event | {
        "messaging.system": "aws_sqs",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "suggestions",
        "messaging.message.conversation_id": event_id,
        "smartpipe.receive_count": 1,
    }


async def test_a_failure_is_the_error_of_its_span(spans: Any) -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def refuse(event: UserSignedUp) -> None:
        raise Reject("no such user")

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    span = find_span(spans, "process mailer")
    assert span.status.status_code.name == "ERROR"
    assert span.attributes["error.type"] == "Reject"
    [recorded] = span.events
    assert recorded.attributes["exception.message"] == "no such user"


async def test_a_publication_that_fails_is_the_error_of_its_span(spans: Any) -> None:
    transport = FakeTransport()
    transport.script["publish"].append([Failure(0, "InvalidParameter", "no", retryable=False)])
    async with Publisher("web", transport=transport) as publisher:
        with pytest.raises(PublishError):
            await publisher.publish(ADA)

    assert find_span(spans, "publish users").status.status_code.name == "ERROR"


async def test_the_current_span_is_the_parent_of_a_publication_whose_context_the_event_carries(spans: Any) -> None:
    transport = FakeTransport()
    async with Publisher("web", transport=transport) as publisher:
        with tracer().start_as_current_span("request"):
            await publisher.publish(ADA)
            await publisher.publish(OrderPlaced(order_id="1"), queue="orders")
            await publisher.publish_many([ADA, ADA])

    assert draw(spans) == ["request", "  publish", "  publish orders", "  publish users"]
    first, third, fourth = traceparents(transport)
    assert first[36:52] == f"{find_span(spans, 'publish users').context.span_id:016x}"
    [sent] = traceparents(transport, "send")
    assert sent[36:52] == f"{find_span(spans, 'publish orders').context.span_id:016x}"
    assert find_span(spans, "publish orders").attributes["messaging.system"] == "aws_sqs"
    many = find_span(spans, "publish")
    assert third == fourth
    assert third[36:52] == f"{many.context.span_id:016x}"
    assert many.attributes["messaging.batch.message_count"] == 2


async def test_the_traceparent_of_a_caller_is_the_parent(spans: Any) -> None:
    transport = FakeTransport()
    async with Publisher("web", transport=transport) as publisher:
        with tracer().start_as_current_span("request"):
            await publisher.publish(ADA, traceparent=SAMPLED)
            await publisher.publish_many([ADA], traceparent=SAMPLED)
            for publish in (
                publisher.publish(ADA, traceparent="nonsense"),
                publisher.publish_many([ADA], traceparent="nonsense"),
            ):
                with pytest.raises(PublishError, match="nonsense"):
                    await publish

    for span in (find_span(spans, "publish users"), find_span(spans, "publish")):
        assert (span.context.trace_id, span.parent.span_id) == (int(TRACE, 16), int("00f067aa0ba902b7", 16))
    assert all(found.startswith(f"00-{TRACE}") and is_sampled(found) for found in traceparents(transport))


async def test_what_is_not_sampled_has_no_span_and_stays_in_its_trace(spans: Any) -> None:
    transport = FakeTransport()
    async with Publisher("web", transport=transport) as publisher:
        await publisher.publish(ADA, traceparent=UNSAMPLED)
        await publisher.publish_many([ADA], traceparent=UNSAMPLED)
    seen: list[str | None] = []
    async with MemoryBroker(make_suggesting_service(seen)) as broker:
        await broker.publish(ADA, traceparent=UNSAMPLED)
        await broker.drain()

    assert seen == [UNSAMPLED] * 2
    assert traceparents(transport) == [UNSAMPLED] * 2
    assert spans.get_finished_spans() == ()


async def test_the_sampler_of_the_application_decides_for_new_traces() -> None:
    transport = FakeTransport()
    with recording_spans(never_sampled()) as spans:
        async with Publisher("web", transport=transport) as publisher:
            await publisher.publish(ADA)

    assert spans.get_finished_spans() == ()
    [found] = traceparents(transport)
    assert not is_sampled(found)
    assert not is_undecided(found)


async def test_an_event_of_a_publisher_without_opentelemetry_is_sampled_by_the_consumer(spans: Any) -> None:
    service = make_suggesting_service()
    async with MemoryBroker(service) as broker:
        await broker.send("suggestions", encode(wrap(ADA, source="elsewhere")))
        await broker.drain()

    assert draw(spans) == ["process suggestions", "  publish friends", "process suggestions"]
    first = min(spans.get_finished_spans(), key=lambda span: span.start_time)
    assert (first.name, first.parent, first.links) == ("process suggestions", None, ())


def test_a_new_traceparent_names_no_span_and_is_not_sampled() -> None:
    traceparent = new_traceparent()

    assert is_undecided(traceparent)
    assert not is_sampled(traceparent)
    assert not is_undecided(SAMPLED)
    assert not is_undecided(UNSAMPLED)
    assert is_sampled(SAMPLED)
    assert is_sampled(f"{SAMPLED[:-2]}03")  # with the random flag of level 2


async def test_a_batch_handler_has_one_span_with_a_link_to_each_sampled_event(spans: Any) -> None:
    service = Service("mailer")
    traced: list[str] = []

    @service.subscribe(UserSignedUp, batch=Batch(size=3, linger_seconds=1))
    async def mail(events: list[UserSignedUp], batch: BatchDelivery) -> None:
        current = pytest.importorskip("opentelemetry.trace").get_current_span()
        traced.append(f"{current.get_span_context().span_id:016x}")

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.publish(ADA, traceparent=UNSAMPLED)
        await broker.publish(ADA)
        await broker.drain()

    span = find_span(spans, "process mailer")
    published = [one.context.span_id for one in spans.get_finished_spans() if one.name == "publish users"]
    assert sorted(link.context.span_id for link in span.links) == sorted(published)
    assert len(published) == 2
    assert span.attributes["messaging.batch.message_count"] == 3
    assert traced == [f"{span.context.span_id:016x}"]


async def test_a_retry_has_a_span_for_each_attempt(spans: Any) -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def mail(event: UserSignedUp, delivery: Delivery) -> None:
        if delivery.receive_count < 3:
            raise OSError("broken")

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    attempts = [span for span in spans.get_finished_spans() if span.name == "process mailer"]
    assert [span.attributes["smartpipe.receive_count"] for span in attempts] == [1, 2, 3]
    assert [span.status.status_code.name for span in attempts] == ["ERROR", "ERROR", "UNSET"]
    assert len({span.links[0].context.span_id for span in attempts}) == 1


async def test_a_sync_handler_runs_in_its_span(spans: Any) -> None:
    seen: list[int] = []
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    def mail(event: UserSignedUp) -> None:
        seen.append(pytest.importorskip("opentelemetry.trace").get_current_span().get_span_context().span_id)

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    assert seen == [find_span(spans, "process mailer").context.span_id]


def test_without_a_tracer_provider_there_is_no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    for provider in (trace.ProxyTracerProvider(), trace.NoOpTracerProvider()):
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        assert find_tracing() is None
    monkeypatch.delitem(importlib.import_module("sys").modules, "opentelemetry.trace")
    assert find_tracing() is None


async def test_without_a_tracer_provider_events_carry_a_trace_without_a_span() -> None:
    transport = FakeTransport()
    async with Publisher("web", transport=transport) as publisher:
        await publisher.publish(ADA)

    assert is_undecided(traceparents(transport)[0])


@pytest.mark.parametrize("calls", [True, False])
async def test_calls_that_receive_and_settle_have_spans_if_they_are_wanted(spans: Any, calls: bool) -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def mail(event: UserSignedUp) -> None:
        pass

    transport = FakeTransport()
    transport.script["delete"].append(TransportError("InternalError", "broken", retryable=True))
    transport.put(ADA)
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, trace_calls=calls)
    worker = Worker(service, transport, settings)
    running = asyncio.create_task(worker.run())
    await until(lambda: len([call for call in transport.calls if call[0] == "delete"]) == 2)
    worker.stop()
    await running

    if not calls:
        assert draw(spans) == ["process mailer"]
        return
    assert draw(spans) == ["delete mailer", "delete mailer", "process mailer", "receive mailer"]
    receive = find_span(spans, "receive mailer")
    assert dict(receive.attributes) == {
        "messaging.system": "aws_sqs",
        "messaging.operation.name": "receive",
        "messaging.operation.type": "receive",
        "messaging.destination.name": "mailer",
        "messaging.batch.message_count": 1,
    }
    failed, done = (span for span in spans.get_finished_spans() if span.name == "delete mailer")
    assert (failed.attributes["error.type"], failed.attributes["messaging.operation.type"]) == (
        "InternalError", "settle",
    )  # fmt: skip
    assert done.status.status_code.name == "UNSET"


def test_a_lambda_function_exports_its_spans_before_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def mail(event: UserSignedUp) -> None:
        pass

    flushed: list[int] = []
    with recording_spans() as spans, use_transport(FakeTransport()):
        provider = pytest.importorskip("opentelemetry.trace").get_tracer_provider()
        monkeypatch.setattr(provider, "force_flush", lambda _: flushed.append(len(spans.get_finished_spans())))
        handler = service.lambda_handler()
        assert handler({"Records": [record(ADA)]}) == {"batchItemFailures": []}
        handler.close()

    assert flushed == [1]


async def test_the_trace_goes_on_after_the_dead_letter_queue_and_a_redrive(spans: Any) -> None:
    service, broken = Service("mailer"), True

    @service.subscribe(UserSignedUp)
    async def mail(event: UserSignedUp) -> None:
        if broken:
            raise Reject("no such user")

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()
        broken, stop, transport = False, asyncio.Event(), broker.transport
        processed = ProcessedEvents(service.handlers, None)
        scanned = await scan(transport, service.queue, Selection(), processed, stop)
        remover = Remover(transport, service.queue, rate_per_second=None, stop=stop, on_progress=lambda _: None)
        redrive = Redrive(transport, service.queue, processed, force=False)
        await remover.remove(scanned, Selection(), redrive, RemovalResult())
        await broker.drain()

    published = find_span(spans, "publish users")
    refused, handled = (span for span in spans.get_finished_spans() if span.name == "process mailer")
    assert (refused.status.status_code.name, handled.status.status_code.name) == ("ERROR", "UNSET")
    assert {span.links[0].context.span_id for span in (refused, handled)} == {published.context.span_id}


async def test_sampled_calls_are_exemplars_of_their_histograms_and_others_are_not(spans: Any) -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def mail(event: UserSignedUp) -> None:
        if event.name == "broken":
            raise Reject("no")

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA, traceparent=UNSAMPLED)
        await broker.drain()
        histograms = broker._get_consumer("mailer").counters.histograms
        assert histograms is not None
        [calls] = histograms.handlers.values()
        assert not any(one.exemplars for one in (*calls.values(), histograms.types["member.signed_up"].critical_time))

        await broker.publish(ADA)
        await broker.publish(ADA.model_copy(update={"name": "broken"}))
        await broker.drain()

    handled, failed = (f"{span.context.trace_id:032x}" for span in spans.get_finished_spans() if "process" in span.name)
    assert [one.trace_id for one in calls["handled"].exemplars.values()] == [handled]
    assert [one.trace_id for one in calls["failed"].exemplars.values()] == [failed]
    found = histograms.types["member.signed_up"].critical_time.exemplars
    assert [one.trace_id for one in found.values()] == [handled]


def test_a_lambda_function_traces_its_settlements_on_request(spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_TRACE_CALLS", "true")
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def mail(event: UserSignedUp) -> None:
        raise OSError("broken")

    with use_transport(FakeTransport()):
        handler = service.lambda_handler()
        assert handler({"Records": [record(ADA)]}) == {"batchItemFailures": [{"itemIdentifier": "id-1"}]}
        handler.close()

    assert draw(spans) == ["change_visibility mailer", "process mailer"]
