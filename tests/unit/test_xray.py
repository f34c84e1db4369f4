"""The trace of AWS X-Ray: sent with sampled events, and read from other producers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Delivery, Publisher, Service
from smartpipe.consumer.dead_letter import FailedDelivery, copy_with_reason, copy_without_reason
from smartpipe.consumer.decide import DeadLetter
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.traceparent import format_trace_header, is_undecided, read_trace_header
from smartpipe.message import Attribute, Message, OutgoingMessage
from smartpipe.transports.aws.entries import common_trace_header, publish_entries, send_entries
from tests.support.consumers import consuming
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.spans import find_span, recording_spans
from tests.support.virtual_time import run_virtually
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

# The example of AWS's page on W3C trace ids.
TRACEPARENT = "00-4efaaf4d1e8720b39541901950019ee5-53995c3f42cd8ad8-01"
HEADER = "Root=1-4efaaf4d-1e8720b39541901950019ee5;Parent=53995c3f42cd8ad8;Sampled=1"
OTHER = "Root=1-4efaaf4d-1e8720b39541901950019ee6;Parent=53995c3f42cd8ad8;Sampled=1"


@pytest.fixture
def spans() -> Iterator[Any]:
    with recording_spans() as exporter:
        yield exporter


def test_the_two_headers_name_the_same_span() -> None:
    assert format_trace_header(TRACEPARENT) == HEADER
    assert read_trace_header(HEADER) == TRACEPARENT
    assert format_trace_header(TRACEPARENT[:-2] + "00") == HEADER[:-1] + "0"
    assert read_trace_header(HEADER[:-1] + "0") == TRACEPARENT[:-2] + "00"
    for header in (HEADER[:-1] + "?", HEADER.removesuffix(";Sampled=1")):  # the next service shall decide
        assert is_undecided(read_trace_header(header) or "")
    assert read_trace_header(f"Self=1-2-3; {HEADER.replace(';', '; ')};Lineage=a:0") == TRACEPARENT


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Root",
        "Root=1-4efaaf4d-1e8720b39541901950019ee5;Sampled=1",
        "Root=1-4efaaf4d;Parent=53995c3f42cd8ad8",
        "=;=",
        ";",
    ],
)
def test_a_header_that_names_no_span_is_ignored(header: str) -> None:
    assert read_trace_header(header) is None


async def test_a_sampled_event_is_sent_with_the_header_of_its_span(spans: Any) -> None:
    transport = FakeTransport()
    async with Publisher("web", transport=transport) as publisher:
        await publisher.publish(ADA)
        await publisher.publish(ADA, traceparent=TRACEPARENT[:-2] + "00")

    sampled, not_sampled = transport.entries("publish")
    assert sampled.trace_header == format_trace_header(json.loads(sampled.body)["traceparent"])
    assert f"{find_span(spans, 'publish users').context.span_id:016x}" in sampled.trace_header
    assert not_sampled.trace_header is None


async def test_without_opentelemetry_there_is_no_header_unless_the_caller_passes_a_sampled_trace() -> None:
    transport = FakeTransport()
    async with Publisher("web", transport=transport) as publisher:
        await publisher.publish(ADA)
        await publisher.publish(ADA, traceparent=TRACEPARENT)

    assert [message.trace_header for message in transport.entries("publish")] == [None, HEADER]


def test_sqs_takes_the_header_of_each_entry_and_sns_one_for_a_request_of_one_trace() -> None:
    plain, traced, other = (OutgoingMessage("{}", 2, trace_header=header) for header in (None, HEADER, OTHER))

    assert [entry.get("MessageSystemAttributes") for entry in send_entries([plain, traced])] == [
        None,
        {"AWSTraceHeader": {"DataType": "String", "StringValue": HEADER}},
    ]
    assert not any("MessageSystemAttributes" in entry for entry in publish_entries([plain, traced]))
    assert common_trace_header([traced]) == common_trace_header([traced, traced]) == HEADER
    for messages in ([plain], [plain, traced], [traced, plain], [traced, other]):
        assert common_trace_header(messages) is None


@pytest.mark.parametrize(
    ("attributes", "header", "expected"),
    [
        ({}, HEADER, TRACEPARENT),
        ({"traceparent": Attribute("String", TRACEPARENT)}, OTHER, TRACEPARENT),
        ({"traceparent": Attribute("String", "nonsense")}, HEADER, TRACEPARENT),
        ({"traceparent": Attribute("Binary", b"x")}, None, None),
        ({}, None, None),
    ],
)
def test_a_message_without_a_trace_in_its_body_has_that_of_its_attribute_or_header(
    attributes: dict[str, Attribute], header: str | None, expected: str | None
) -> None:
    seen: list[str | None] = []
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def note(event: UserSignedUp, delivery: Delivery) -> None:
        seen.append(delivery.envelope.traceparent)

    body = json.loads(encode(wrap(ADA, source="elsewhere")))
    del body["traceparent"]
    transport = FakeTransport()
    transport.put(json.dumps(body), attributes=attributes, trace_header=header)

    async def main() -> None:
        async with consuming(service, transport):
            await until(lambda: seen)

    run_virtually(main())

    assert seen == [expected]


def test_the_copy_of_a_dead_letter_message_keeps_its_header() -> None:
    message = Message("m1", "r1", "{}", trace_header=HEADER)
    failed = FailedDelivery("mailer", "mail", None, None)

    assert copy_with_reason(message, DeadLetter("rejected", ValueError()), failed).trace_header == HEADER
    assert copy_without_reason(message).trace_header == HEADER
