"""Faults of OpenTelemetry's SDK, and of the application's code that it calls, disturb no message and no publication."""

from __future__ import annotations

import asyncio
import json
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Batch, Idempotency, Publisher, Queue, RetryPolicy, Service
from smartpipe.envelope.traceparent import is_undecided
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.telemetry.spans import find_tracing
from smartpipe.testing import MemoryBroker
from smartpipe.transports.open import use_transport
from tests.support.consumers import drain, make_consumer
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.spans import find_span, recording_spans
from tests.support.virtual_time import run_virtually
from tests.unit.test_lambda import record

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def spans() -> Iterator[Any]:
    with recording_spans() as exporter:
        yield exporter


def traceparents(transport: FakeTransport) -> list[str]:
    return [json.loads(message.body)["traceparent"] for message in transport.entries("publish")]


class Broken:
    """A span processor that raises at one of its methods."""

    def __init__(self, method: str) -> None:
        self._method = method

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> bool:
            if name == self._method:
                raise RuntimeError("a broken processor")
            return True

        return call


@pytest.fixture(params=["on_start", "on_end"])
def broken(request: pytest.FixtureRequest) -> Iterator[None]:
    with recording_spans():
        pytest.importorskip("opentelemetry.trace").get_tracer_provider().add_span_processor(Broken(request.param))
        yield


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("batch", [None, Batch(size=2, linger_seconds=1)])
async def test_a_broken_span_processor_loses_no_message(batch: Batch | None, caplog: pytest.LogCaptureFixture) -> None:
    service = Service("mailer")

    if batch is None:

        @service.subscribe(UserSignedUp)
        async def mail(event: UserSignedUp) -> None:
            pass

    else:

        @service.subscribe(UserSignedUp, batch=batch)
        async def mail_all(events: list[UserSignedUp]) -> None:
            pass

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.publish(ADA)
        await broker.drain()
        broker.assert_handled(UserSignedUp, times=2)
        assert broker.retried() == []

    warnings = [record for record in caplog.records if record.name == "smartpipe.tracing"]
    assert 1 <= len(warnings) <= 3  # one of the publisher, one of the consumer, and one of the broker's own publisher


@pytest.mark.usefixtures("broken")
async def test_a_broken_span_processor_lets_events_be_published_once() -> None:
    transport = FakeTransport()
    async with Publisher("web", transport=transport) as publisher:
        await publisher.publish(ADA)
        await publisher.publish_many([ADA, ADA])

    assert len(transport.entries("publish")) == 3


@pytest.mark.parametrize("batch", [None, Batch(size=1)])
async def test_an_exception_without_a_text_is_the_error_of_its_span_and_decided_as_any_other(
    batch: Batch | None, spans: Any
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    service = Service("mailer", retry=RetryPolicy(attempts=1))

    if batch is None:

        @service.subscribe(UserSignedUp)
        async def mail(event: UserSignedUp) -> None:
            raise Mute

    else:

        @service.subscribe(UserSignedUp, batch=batch)
        async def mail_all(events: list[UserSignedUp]) -> None:
            raise Mute

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()
        broker.assert_dead_lettered(UserSignedUp, kind="retries-exhausted")
        assert broker.retried() == []

    span = find_span(spans, "process mailer")
    assert span.status.status_code.name == "ERROR"
    assert span.attributes["error.type"].endswith("Mute")


async def test_the_error_type_is_the_code_of_aws_or_the_name_of_a_class(spans: Any) -> None:
    class Coded(Exception):
        code = "a code of another library"

    service = Service("mailer", retry=RetryPolicy(attempts=1))

    @service.subscribe(UserSignedUp)
    async def mail(event: UserSignedUp) -> None:
        raise Coded

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    assert find_span(spans, "process mailer").attributes["error.type"].endswith("Coded")


async def test_events_are_published_although_the_sdk_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    transport = FakeTransport()
    with recording_spans():
        async with Publisher("web", transport=transport) as publisher:
            await publisher.publish(ADA)
            await publisher.publish_many([ADA])

    assert all(is_undecided(found) for found in traceparents(transport))
    assert len(traceparents(transport)) == 2


def test_a_call_that_another_worker_holds_has_an_outcome_in_its_span(spans: Any) -> None:
    service = Service("mailer", queue=Queue("mailer"))

    @service.subscribe(UserSignedUp, idempotent=Idempotency(key="user_id"))
    async def mail(event: UserSignedUp) -> None:
        await asyncio.sleep(0.5)

    transport = FakeTransport()
    transport.put(ADA, ADA)

    async def main() -> None:
        consumer = make_consumer(service, transport, claims=Claims(MemoryStore()), tracing=find_tracing())
        consumer.start()
        await asyncio.sleep(1)
        await drain(consumer)

    run_virtually(main())

    outcomes = [span.attributes.get("smartpipe.outcome") for span in spans.get_finished_spans()]
    assert sorted(outcomes, key=str) == [None, "deferred"]


def test_a_wrong_variable_of_opentelemetry_is_logged_and_makes_no_spans(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trace = pytest.importorskip("opentelemetry.trace")

    def fail() -> None:
        raise StopIteration

    monkeypatch.setattr(trace, "get_tracer_provider", fail)

    assert find_tracing() is None
    assert "Cannot use OpenTelemetry" in caplog.text


def test_a_slow_exporter_does_not_hold_a_lambda_function_back(monkeypatch: pytest.MonkeyPatch) -> None:
    release = Event()
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def mail(event: UserSignedUp) -> None:
        pass

    monkeypatch.setattr("smartpipe.worker.aws_lambda.FLUSH_SPANS_SECONDS", 0.05)
    with recording_spans(), use_transport(FakeTransport()):
        provider = pytest.importorskip("opentelemetry.trace").get_tracer_provider()
        monkeypatch.setattr(provider, "force_flush", lambda _: release.wait(20))
        handler = service.lambda_handler()
        assert handler({"Records": [record(ADA)]}) == {"batchItemFailures": []}
        assert not release.is_set()
        release.set()
        handler.close()
