"""The fields of log lines: everything that a handler logs is written, and names the delivery that it is about."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import sys
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from smartpipe import Batch, BatchDelivery, Delivery, Queue, RetryPolicy, Service
from smartpipe.cli.logs import JsonFormatter, LineHandler, TextFormatter
from smartpipe.envelope import encode, wrap
from smartpipe.log_fields import DeliveryFilter, add_delivery_fields, add_delivery_filter, fields_of, is_own
from smartpipe.message import OutgoingMessage
from smartpipe.testing import MemoryBroker
from smartpipe.transports.open import use_transport
from tests.support.events import ADA, Paid, UserSignedUp
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.Logger("shop.orders", logging.INFO)  # noqa: LOG001 - without a parent
"""Strange records do not reach the handlers of pytest, which would raise."""


class Sink:
    """Collects lines in place of standard output."""

    def __init__(self) -> None:
        self.dropped = 0
        self.describe: Callable[[int], str] = str
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        line.encode()
        self.lines += line.splitlines()

    def flush(self) -> None: ...

    def parsed(self, message: str) -> dict[str, Any]:
        """Return the one line with this message."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        found = [json.loads(line, parse_constant=refuse) for line in self.lines]
        [one] = [line for line in found if line["message"] == message]
        return dict(one)


def attach(formatter: logging.Formatter) -> Iterator[Sink]:
    """Collect the lines of the shop, and those of smartpipe."""
    sink = Sink()
    handler = LineHandler(sink)
    handler.setFormatter(formatter)
    for logger in (log, logging.getLogger("smartpipe")):
        logger.addHandler(handler)
    yield sink
    for logger in (log, logging.getLogger("smartpipe")):
        logger.removeHandler(handler)


@pytest.fixture
def output() -> Iterator[Sink]:
    yield from attach(JsonFormatter())


@pytest.fixture
def text_output() -> Iterator[Sink]:
    yield from attach(TextFormatter(coloured=False))


def make_service(handler: Any, **options: Any) -> Service:
    service = Service("mailer")
    service.subscribe(UserSignedUp, **options)(handler)
    return service


async def run(service: Service, traceparent: str | None = None) -> str:
    """Publish an event to the service, and return its id when it has been handled."""
    async with MemoryBroker(service) as broker:
        event_id = await broker.publish(ADA, traceparent=traceparent)
        await broker.drain()
        broker.assert_handled(UserSignedUp, times=1)
    return event_id


async def in_a_coroutine(event: UserSignedUp, delivery: Delivery) -> None:
    log.info("sold", extra={"order_id": 1})


def in_a_thread(event: UserSignedUp, delivery: Delivery) -> None:
    log.info("sold", extra={"order_id": 1})


async def in_a_thread_of_the_loop(event: UserSignedUp, delivery: Delivery) -> None:
    await asyncio.to_thread(log.info, "sold", extra={"order_id": 1})


async def in_a_background_task(event: UserSignedUp, delivery: Delivery) -> None:
    async def later() -> None:
        await asyncio.sleep(1)
        log.info("sold", extra={"order_id": 1})

    await asyncio.gather(asyncio.create_task(later()))


PLACES = [in_a_coroutine, in_a_thread, in_a_thread_of_the_loop, in_a_background_task]


@pytest.mark.parametrize("options", [{}, {"idempotent": True}], ids=["plain", "idempotent"])
@pytest.mark.parametrize("handler", PLACES)
async def test_a_line_of_a_handler_has_its_extras_and_names_the_delivery(
    handler: Any, options: dict[str, Any], output: Sink
) -> None:
    seen: list[Delivery] = []

    async def note(delivery: Delivery, call_next: Any) -> None:
        seen.append(delivery)
        log.info("from the middleware")
        await call_next(delivery)

    service = Service("mailer", middleware=[note])
    service.subscribe(UserSignedUp, **options)(handler)
    event_id = await run(service)

    line = output.parsed("sold")
    assert line["order_id"] == 1
    assert (line["event_id"], line["event_type"]) == (event_id, "member.signed_up")
    assert line["message_id"] == seen[0].message.message_id
    assert line["trace_id"] == seen[0].trace_id
    assert (line["service"], line["queue"], line["receive_count"]) == ("mailer", "mailer", 1)
    assert line["handler"].endswith(handler.__name__)
    assert output.parsed("from the middleware")["event_id"] == event_id


async def test_a_line_of_text_shows_the_extras_and_the_delivery(text_output: Sink) -> None:
    event_id = await run(make_service(in_a_coroutine))

    [line] = [line for line in text_output.lines if " sold " in line]
    for part in ("order_id=1", f"event_id={event_id}", "message_id=", "trace_id=", "handler="):
        assert f" {part}" in line


async def test_a_line_of_a_batch_handler_names_the_first_event_and_the_number_of_events(output: Sink) -> None:
    seen: list[str] = []

    async def handler(events: list[UserSignedUp], batch: BatchDelivery) -> None:
        seen.extend(delivery.event_id for delivery in batch.deliveries)
        log.info("all sold", extra={"order_id": 1})

    async with MemoryBroker(make_service(handler, batch=Batch(size=3))) as broker:
        for _ in range(3):
            await broker.publish(ADA)
        await broker.drain()

    line = output.parsed("all sold")
    assert (line["event_id"], line["items"], line["order_id"]) == (seen[0], 3, 1)


async def test_lines_outside_of_handlers_name_no_delivery(output: Sink) -> None:
    log.info("before")
    await run(make_service(in_a_coroutine))
    log.info("after", extra={"order_id": 1})

    assert set(output.parsed("before")) == {"time", "level", "logger", "message"}
    assert set(output.parsed("after")) == {"time", "level", "logger", "message", "order_id"}


async def test_a_line_about_the_next_message_of_a_fifo_group_does_not_name_the_one_before(output: Sink) -> None:
    service = Service("ledger", queue=Queue("ledger", fifo=True), retry=RetryPolicy(attempts=1))

    @service.subscribe(Paid)
    async def book(event: Paid) -> None:
        log.info("booked %s", event.number)

    async with MemoryBroker(service) as broker:
        event_id = await broker.publish(Paid(account="a", number=1))
        queue = broker.transport.queue("ledger.fifo")
        good = encode(wrap(Paid(account="a", number=2), source="test"))
        for body in ("no event", good):
            message = OutgoingMessage(body, len(body), group_id="a", deduplication_id=body[:8])
            assert queue.send(message) is None
        await broker.drain()

    assert output.parsed("booked 1")["event_id"] == event_id
    assert output.parsed("booked 2")["event_id"] != event_id
    [dead] = [line for line in map(json.loads, output.lines) if line["message"].startswith("Dead-lettered")]
    assert "event_id" not in dead


CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Wrong(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Colour(Enum):
    RED = "red"


VALUES: dict[str, tuple[object, object]] = {
    "list": (["a", 1], ["a", 1]),
    "none": (None, None),
    "true": (True, True),
    "infinity": (math.inf, "inf"),
    "not a number": (math.nan, "nan"),
    "nested not a number": ({"a": [math.nan]}, {"a": ["NaN"]}),
    "huge number": (10**100, str(10**100)),
    "number that Python does not print": (10**5_000, ...),
    "decimal": (Decimal("1.50"), "1.50"),
    "uuid": (UUID(int=1), str(UUID(int=1))),
    "datetime": (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01 00:00:00+00:00"),
    "bytes": (b"\xff", "b'\\xff'"),
    "set": ({1}, "{1}"),
    "enum": (Colour.RED, "Colour.RED"),
    "model": (ADA, str(ADA)),
    "keys that are no text": ({(1, 2): 3}, "{(1, 2): 3}"),
    "circular": (CIRCULAR, ...),
    "deep": (DEEP, ...),
    "huge text": ("x" * 1_000_000, f"{'x' * 256}…(1000000 characters)"),
    "huge list": (["x"] * 100_000, ...),
    "surrogate": ("\ud800", "\ud800"),
    "no text": (Unspeakable(), "(Unspeakable without a text)"),
    "nested without text": ({"a": Unspeakable()}, {"a": "(Unspeakable without a text)"}),
    "text that raises": (Wrong("x"), ...),
    "control": ("a\nb\x1b[2J", "a\nb\x1b[2J"),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("form", ["extra", "fields", "fields itself"])
def test_an_extra_of_any_kind_is_written(name: str, form: str, output: Sink) -> None:
    value, expected = VALUES[name]
    extra: dict[str, dict[str, Any]] = {
        "extra": {"value": value},
        "fields": {"fields": {"value": value}},
        "fields itself": {"fields": value},
    }

    log.info("sold", extra=extra[form])

    line = output.parsed("sold")
    if not isinstance(value, dict) or form != "fields itself":
        key = "fields" if form == "fields itself" else "value"
        assert set(line) == {"time", "level", "logger", "message", key}
        assert expected is ... or line[key] == expected
    assert len(output.lines) == 1
    assert len(output.lines[0]) < 10_000


@pytest.mark.parametrize("name", VALUES)
def test_an_extra_of_any_kind_is_written_as_text(name: str, text_output: Sink) -> None:
    log.info("sold", extra={"value": VALUES[name][0], "order_id": 1})

    [line] = text_output.lines
    assert line.endswith(" order_id=1")
    assert name == "none" or " value=" in line


KEYS = ["time", "level", "logger", "exception", "stack", "event_id", "message_id", "trace_id", "handler", "service"]


@pytest.mark.parametrize("key", KEYS)
async def test_an_extra_that_is_called_like_a_field_of_ours_gets_another_name(key: str, output: Sink) -> None:
    async def handler(event: UserSignedUp, delivery: Delivery) -> None:
        log.info("sold", extra={key: "theirs", f"extra_{key}": "theirs, too"})

    event_id = await run(make_service(handler))

    line = output.parsed("sold")
    theirs = [value for name, value in line.items() if name.startswith("extra_")]
    assert sorted(theirs) == ["theirs", "theirs, too"]
    assert line.get(key) != "theirs"
    assert line["event_id"] == event_id


async def test_an_extra_that_repeats_the_event_id_is_written_once(output: Sink) -> None:
    async def handler(event: UserSignedUp, delivery: Delivery) -> None:
        log.info("sold", extra={"event_id": delivery.event_id})

    event_id = await run(make_service(handler))

    assert [value for name, value in output.parsed("sold").items() if "event_id" in name] == [event_id]


def test_keys_that_are_no_text_or_very_long_are_written(output: Sink) -> None:
    record = logging.makeLogRecord(
        {
            "name": "shop",
            "levelno": logging.INFO,
            "msg": "sold",
            "fields": {1: "a", "k" * 10_000: "b", Unspeakable(): 3},
        }
    )
    log.handle(record)

    assert {"a", "b", 3} <= set(output.parsed("sold").values())
    assert len(output.lines[0]) < 1_000


@pytest.mark.parametrize("message", ["\ud800", "%s %s", Unspeakable(), None, b"x", ["a"], "a\nb"])
def test_a_message_of_any_kind_is_written(message: Any, output: Sink) -> None:
    log.warning(message, extra={"order_id": 1})

    [line] = output.lines
    assert json.loads(line)["order_id"] == 1


def test_exceptions_and_stacks_are_written(output: Sink) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    for error in (ValueError("\ud800"), Broken(), ExceptionGroup("all", [ValueError("one")])):
        try:
            raise error
        except Exception:
            log.exception("failed", extra={"order_id": 1})
    log.error("not raised", exc_info=True, stack_info=True)  # noqa: LOG014 - a mistake of users
    log.error("a tuple", exc_info=(None, None, None))

    lines = [json.loads(line) for line in output.lines]
    assert [line.get("order_id") for line in lines] == [1, 1, 1, None, None]
    assert all("Traceback" in line["exception"] for line in lines[:3])
    assert "test_exceptions_and_stacks_are_written" in lines[3]["stack"]


def test_exceptions_and_stacks_are_written_below_a_line_of_text(text_output: Sink) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("failed", extra={"order_id": 1}, stack_info=True)

    first, *below = text_output.lines
    assert first.endswith("failed order_id=1")
    assert all(line.startswith("  ") for line in below)
    assert any("ValueError: wrong" in line for line in below)
    assert any("Stack (most recent call last)" in line for line in below)


def test_the_traceback_that_another_handler_has_formatted_is_written(output: Sink) -> None:
    record = logging.makeLogRecord(
        {"name": "shop", "levelno": logging.INFO, "msg": "failed", "exc_text": "Traceback: ValueError"}
    )

    log.handle(record)

    assert output.parsed("failed")["exception"] == "Traceback: ValueError"


async def test_a_line_of_smartpipe_keeps_the_fields_that_it_had(output: Sink) -> None:
    async def handler(event: UserSignedUp, delivery: Delivery) -> None:
        logging.getLogger("smartpipe.publisher").warning("about another event")

    await run(make_service(handler))

    assert set(output.parsed("about another event")) == {"time", "level", "logger", "message"}


async def test_a_filter_adds_the_fields_in_a_logging_configuration_of_your_own(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    monkeypatch.setattr(caplog.handler, "filters", [DeliveryFilter()])

    async def handler(event: UserSignedUp, delivery: Delivery) -> None:
        log.info("sold", extra={"order_id": 1, "queue": "theirs"})

    event_id = await run(make_service(handler))

    [record] = [record for record in caplog.records if record.message == "sold"]
    assert (record.event_id, record.order_id, record.queue) == (event_id, 1, "theirs")  # type: ignore[attr-defined]
    assert record.message_id  # type: ignore[attr-defined]
    assert record.trace_id  # type: ignore[attr-defined]


@pytest.mark.parametrize("handler", PLACES)
async def test_on_lambda_the_records_of_handlers_have_the_fields_in_any_configuration(
    handler: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    monkeypatch.setattr(caplog.handler, "filters", [])
    function = make_service(handler).lambda_handler()
    record = {
        "messageId": "message-1",
        "receiptHandle": "r",
        "body": encode(wrap(ADA, source="test", event_id="event-1")),
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:mailer",
    }

    with use_transport(FakeTransport()):
        for _ in range(2):  # the second invocation adds no second filter
            assert await function.handle({"Records": [record]}) == {"batchItemFailures": []}
        await function.aclose()

    found = [record for record in caplog.records if record.message == "sold"]
    assert len(found) == 2
    for one in found:
        assert (one.event_id, one.message_id, one.order_id) == ("event-1", "message-1", 1)  # type: ignore[attr-defined]
        assert one.trace_id  # type: ignore[attr-defined]
    assert sum(isinstance(one, DeliveryFilter) for one in caplog.handler.filters) == 1


def test_the_filter_is_added_once_to_each_handler_of_the_root_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = [logging.NullHandler(), logging.NullHandler()]
    handlers[0].addFilter(logging.Filter("shop"))
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)

    add_delivery_filter()
    add_delivery_filter()
    handlers.append(logging.NullHandler())
    add_delivery_filter()

    assert [sum(isinstance(one, DeliveryFilter) for one in handler.filters) for handler in handlers] == [1, 1, 1]


@pytest.mark.parametrize(("name", "own"), [
    ("smartpipe", True), ("smartpipe.worker", True), ("smartpiper", False), ("shop.smartpipe", False), ("root", False),
])  # fmt: skip
def test_lines_of_smartpipe_are_those_of_its_loggers(name: str, own: bool) -> None:
    assert is_own(logging.makeLogRecord({"name": name})) is own


class Incomparable:
    def __eq__(self, _: object) -> bool:
        raise RuntimeError("not to be compared")

    def __hash__(self) -> int:
        return 1

    def __str__(self) -> str:
        raise RuntimeError("not to be written")


@pytest.mark.parametrize(("extra", "expected"), [
    ({}, {}),
    ({"order": 1}, {"order": 1}),
    ({"fields": {"order": 1}}, {"order": 1}),
    ({"fields": "text"}, {"fields": "text"}),
    ({"fields": {"order": 1}, "order": 1}, {"order": 1}),
    ({"fields": {"order": 1}, "order": 1, "more": 2}, {"order": 1, "more": 2}),
    ({"fields": {"order": 1}, "order": 2}, {"order": 1, "extra_order": 2}),
    ({"fields": {"order": 1}, "order": True}, {"order": 1, "extra_order": True}),
    ({"fields": {"order": 1, "extra_order": 1}, "order": 2}, {"order": 1, "extra_order": 1, "extra_extra_order": 2}),
    ({"time": 1}, {"extra_time": 1}),
    ({"time": 1, "extra_time": 2}, {"extra_time": 1, "extra_extra_time": 2}),
    ({"fields": {5: "a", None: "b"}}, {"5": "a", "None": "b"}),
    ({"fields": {Incomparable(): "a"}}, {"Incomparable": "a"}),
    ({"taskName": "x", "asctime": "y"}, {}),
])  # fmt: skip
def test_a_field_keeps_its_name_unless_another_field_has_it(extra: dict[str, Any], expected: dict[str, Any]) -> None:
    assert fields_of(logging.makeLogRecord({"name": "shop", **extra}), {"time"}) == expected


def test_values_that_cannot_be_compared_are_written_side_by_side() -> None:
    value, other = Incomparable(), Incomparable()
    found = fields_of(logging.makeLogRecord({"fields": {"a": value, "b": value}, "a": other, "b": value}))

    assert list(found) == ["a", "b", "extra_a"]


@pytest.fixture
def spans() -> Any:
    """A tracer of OpenTelemetry's SDK."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    return sdk.TracerProvider().get_tracer("tests")


@pytest.mark.parametrize("published_in_a_span", [True, False])
async def test_the_fields_of_the_trace_are_those_of_the_event_without_a_span(
    published_in_a_span: bool, output: Sink
) -> None:
    seen: list[Delivery] = []

    async def handler(event: UserSignedUp, delivery: Delivery) -> None:
        seen.append(delivery)
        log.info("sold")

    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await run(make_service(handler), traceparent if published_in_a_span else None)

    line = output.parsed("sold")
    if published_in_a_span:
        assert f"00-{line['trace_id']}-{line['span_id']}-{line['trace_flags']}" == traceparent
    else:
        assert (line["span_id"], line["trace_flags"]) == (None, None)
    assert line["trace_id"] == seen[0].trace_id
    assert (line["attempt"], line["receive_count"]) == (1, 1)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_the_fields_of_the_trace_are_those_of_the_current_span(in_thread: bool, spans: Any, output: Sink) -> None:
    seen: list[Any] = []

    async def handler(event: UserSignedUp, delivery: Delivery) -> None:
        with spans.start_as_current_span("charge") as span:
            seen.append(span.get_span_context())
            await asyncio.to_thread(log.info, "sold") if in_thread else log.info("sold")
        log.info("sold out")

    await run(make_service(handler))

    line, [context] = output.parsed("sold"), seen
    assert line["trace_id"] == f"{context.trace_id:032x}"
    assert line["span_id"] == f"{context.span_id:016x}"
    assert line["trace_flags"] == f"{context.trace_flags:02x}"
    assert output.parsed("sold out")["trace_id"] != line["trace_id"]


async def test_a_broken_span_does_not_lose_the_line(output: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no span")

    async def handler(event: UserSignedUp, delivery: Delivery) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "opentelemetry.trace", SimpleNamespace(get_current_span=fail))
            log.info("sold")

    await run(make_service(handler))

    assert output.parsed("sold")["trace_id"]


async def test_an_event_without_a_trace_has_empty_fields_of_the_trace(output: Sink) -> None:
    async with MemoryBroker(make_service(in_a_coroutine)) as broker:
        await broker.send("mailer", encode(wrap(ADA, source="test")._replace(traceparent=None)))
        await broker.drain()

    line = output.parsed("sold")
    assert (line["trace_id"], line["span_id"], line["trace_flags"]) == (None, None, None)


async def test_structlog_in_its_own_form_writes_the_fields_with_one_processor(output: Sink) -> None:
    structlog = pytest.importorskip("structlog")
    own = structlog.wrap_logger(
        structlog.testing.CapturingLogger(),
        processors=[add_delivery_fields, structlog.processors.JSONRenderer()],
    )
    lines: list[dict[str, Any]] = []

    async def handler(event: UserSignedUp, delivery: Delivery) -> None:
        own.info("sold", order_id=1, queue="theirs")
        lines.append({**delivery.log_fields, "event": "sold", "order_id": 1, "queue": "theirs"})

    own.info("before", order_id=1)
    await run(make_service(handler))

    written = [call.args[0] for call in own._logger.calls]
    assert list(map(json.loads, written)) == [{"event": "before", "order_id": 1}, *lines]


async def test_structlog_in_its_stdlib_form_writes_the_fields_of_its_own_and_of_foreign_lines() -> None:
    structlog = pytest.importorskip("structlog")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), add_delivery_fields],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    log.addHandler(handler)
    own = structlog.wrap_logger(
        log,
        processors=[add_delivery_fields, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
    )

    async def charge(event: UserSignedUp, delivery: Delivery) -> None:
        own.info("sold", order_id=1)
        log.info("a library's own", extra={"order_id": 1})

    try:
        event_id = await run(make_service(charge))
    finally:
        log.removeHandler(handler)

    for text, line in zip(["sold", "a library's own"], stream.getvalue().splitlines(), strict=True):
        fields = json.loads(line)
        assert (fields["event"], fields["order_id"], fields["event_id"], fields["attempt"]) == (text, 1, event_id, 1)
        assert fields["trace_id"]


async def test_the_worker_writes_a_line_of_structlog_that_only_another_formatter_can_render(output: Sink) -> None:
    structlog = pytest.importorskip("structlog")
    own = structlog.wrap_logger(log, processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter])

    async def charge(event: UserSignedUp, delivery: Delivery) -> None:
        own.info("sold", order_id=1)

    event_id = await run(make_service(charge))

    [line] = [line for line in map(json.loads, output.lines) if "sold" in line["message"]]
    assert line["event_id"] == event_id
    assert "'order_id': 1" in line["message"]


async def test_a_warning_of_python_is_a_line_with_the_fields(output: Sink) -> None:
    warnings_log = logging.getLogger("py.warnings")
    handler = LineHandler(output)
    handler.setFormatter(JsonFormatter())
    warnings_log.addHandler(handler)
    logging.captureWarnings(True)

    async def charge(event: UserSignedUp, delivery: Delivery) -> None:
        warnings.warn("old function", DeprecationWarning, stacklevel=1)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            event_id = await run(make_service(charge))
    finally:
        logging.captureWarnings(False)
        warnings_log.removeHandler(handler)

    [line] = [line for line in map(json.loads, output.lines) if "old function" in line["message"]]
    assert (line["logger"], line["event_id"]) == ("py.warnings", event_id)
