"""Beside a library that adds its trace to botocore's requests, a message has one trace, and is not lost."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.client import BaseClient

import smartpipe.blocking
from smartpipe import Delivery, Publisher, Queue, Service
from smartpipe.envelope import encode, wrap
from smartpipe.message import Attribute
from smartpipe.names import physical_name
from smartpipe.settings import AwsSettings
from smartpipe.testing import provision, working
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.spans import draw, recording_spans
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe import EmbeddedBroker

NINE = {f"label{number}": "fragile" for number in range(9)}
OWN_TRACEPARENT = {"traceparent": "set by the application"}


@pytest.fixture
def instrumented() -> Iterator[Any]:
    """OpenTelemetry with a real SDK, and its instrumentation of botocore."""
    module = pytest.importorskip("opentelemetry.instrumentation.botocore")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    exporter = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(pytest.importorskip("opentelemetry.sdk.trace.export").SimpleSpanProcessor(exporter))
    instrumentor = module.BotocoreInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield provider.get_tracer("shop"), exporter
    finally:
        instrumentor.uninstrument()


def recording(seen: list[Delivery]) -> Service:
    service = Service("mailer", queue=Queue("mailer"))

    async def record(event: Any, delivery: Delivery) -> None:
        seen.append(delivery)

    for event in (UserSignedUp, UserLeft):
        service.subscribe(event)(record)
    return service


@pytest.mark.parametrize("attributes", [{}, NINE, OWN_TRACEPARENT], ids=["none", "nine", "a traceparent"])
@pytest.mark.parametrize("way", ["topic", "queue", "many"])
async def test_a_message_of_the_blocking_publisher_has_only_the_attributes_that_we_gave_it(
    instrumented: Any, way: str, attributes: dict[str, str], fast_broker: EmbeddedBroker
) -> None:
    seen: list[Delivery] = []
    service, (tracer, exporter) = recording(seen), instrumented
    await provision(service)
    with smartpipe.blocking.Publisher("shop") as publisher, tracer.start_as_current_span("request") as span:
        if way == "many":
            publisher.publish_many([ADA], attributes=attributes)
        else:
            publisher.publish(ADA, attributes=attributes, queue="mailer" if way == "queue" else None)
    async with working(service):
        await until(lambda: seen)

    expected = {"type": "member.signed_up"} | attributes
    assert seen[0].attributes == {name: Attribute("String", value) for name, value in expected.items()}
    assert seen[0].trace_id == f"{span.get_span_context().trace_id:032x}"
    names = [span.name for span in exporter.get_finished_spans()]
    assert any("SendMessageBatch" in name or "send" in name for name in names), names  # its spans are still recorded


@contextmanager
def patched(added: dict[str, Any]) -> Iterator[None]:
    """Patch botocore's calls as such a library does: add attributes to each entry, in place or in a new dict."""
    original: Any = BaseClient._make_api_call  # type: ignore[attr-defined]

    def make_api_call(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        for entry in parameters.get("PublishBatchRequestEntries") or parameters.get("Entries") or ():
            entry["MessageAttributes"] = {**(entry.get("MessageAttributes") or {}), **added}
        return original(self, operation, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseClient, "_make_api_call", make_api_call)
        yield


OTHER = {"_other": {"DataType": "String", "StringValue": "x"}}
TRACE = {name: {"DataType": "String", "StringValue": "x"} for name in ("traceparent", "tracestate", "baggage")}


@pytest.mark.parametrize(
    ("added", "attributes", "kept"),
    [(OTHER, {}, {"_other": "x"}), (OTHER, NINE, {}), (TRACE, {}, {}), (TRACE | OTHER, {"a": "b"}, {"_other": "x"})],
)
async def test_attributes_of_other_libraries_stay_while_there_is_room(
    added: dict[str, Any], attributes: dict[str, str], kept: dict[str, str], fast_broker: EmbeddedBroker
) -> None:
    seen: list[Delivery] = []
    service = recording(seen)
    await provision(service)
    with smartpipe.blocking.Publisher("shop") as publisher, patched(added):
        publisher.publish(ADA, attributes=attributes)
    async with working(service):
        await until(lambda: seen)

    expected = {"type": "member.signed_up"} | attributes | kept
    assert seen[0].attributes == {name: Attribute("String", value) for name, value in expected.items()}


async def test_so_it_is_with_the_botocore_transport(
    fast_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiobotocore.client import AioBaseClient

    original: Any = AioBaseClient._make_api_call  # type: ignore[attr-defined]

    async def make_api_call(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        for entry in parameters.get("PublishBatchRequestEntries") or parameters.get("Entries") or ():
            if "MessageAttributes" in entry:
                entry["MessageAttributes"] |= TRACE
        return await original(self, operation, parameters)

    seen: list[Delivery] = []
    service = recording(seen)
    await provision(service)
    monkeypatch.setattr(AioBaseClient, "_make_api_call", make_api_call)
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "botocore")
    async with Publisher("shop") as publisher:
        await publisher.publish(ADA, attributes=NINE)
        await publisher.publish(UserLeft(name="Ada"), queue="mailer", attributes=NINE)
    async with working(service):
        await until(lambda: len(seen) == 2)

    assert all(set(delivery.attributes) == {"type", *NINE} for delivery in seen)
    assert all(json.loads(delivery.message.body)["traceparent"] for delivery in seen)


async def test_a_message_of_an_x_ray_client_belongs_to_its_trace(fast_broker: EmbeddedBroker) -> None:
    seen: list[Delivery] = []
    service = recording(seen)
    await provision(service)
    body = json.loads(encode(wrap(ADA, source="elsewhere")))
    del body["traceparent"]
    header = "Root=1-4efaaf4d-1e8720b39541901950019ee5;Parent=53995c3f42cd8ad8;Sampled=1"
    sqs = boto3.client("sqs")
    sqs.send_message(
        QueueUrl=sqs.get_queue_url(QueueName=physical_name(AwsSettings.load().prefix, "mailer"))["QueueUrl"],
        MessageBody=json.dumps(body),
        MessageSystemAttributes={"AWSTraceHeader": {"DataType": "String", "StringValue": header}},
    )
    async with working(service):
        await until(lambda: seen)

    assert seen[0].trace_id == "4efaaf4d1e8720b39541901950019ee5"


@pytest.mark.parametrize("many", [True, False])
async def test_an_instrumentation_of_botocore_makes_no_second_span_of_a_publication(
    many: bool, fast_broker: EmbeddedBroker
) -> None:
    module = pytest.importorskip("opentelemetry.instrumentation.botocore")
    await provision(recording([]))
    with recording_spans() as exporter:
        instrumentor = module.BotocoreInstrumentor()
        instrumentor.instrument()
        try:
            with smartpipe.blocking.Publisher("shop") as publisher:
                if many:
                    publisher.publish_many([ADA, ADA])
                else:
                    publisher.publish(ADA)
                boto3.client("sqs").list_queues()
        finally:
            instrumentor.uninstrument()

    names = draw(exporter)
    assert names[-1] == ("publish" if many else "publish users")
    assert len(names) == 2  # the other one is that of the application's own call
