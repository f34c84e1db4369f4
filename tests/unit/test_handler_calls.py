"""The lines about handler calls that a developer sees."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Retry
from smartpipe.cli.dev.handler_calls import PACKAGE, HandlerCallFormatter, show_handler_calls
from smartpipe.cli.logs import JsonFormatter, TextFormatter
from smartpipe.consumer.decide import describe_error
from tests.support.consumers import consuming, make_service
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RETRY = "Handler failed, will retry in 1 s: x"
FIELDS = {"message_id": "m1", "event_id": "e1", "event_type": "order.placed", "handler": "shop.bill"}


@pytest.fixture
def formatter() -> HandlerCallFormatter:
    return HandlerCallFormatter(TextFormatter(coloured=False))


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger with a handler of text at level info, as a worker on a terminal has it."""
    logger, consumer = logging.getLogger(), logging.getLogger("smartpipe.consumer")
    before, level, consumer_level = logger.handlers[:], logger.level, consumer.level
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter(coloured=False))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers = before
    logger.setLevel(level)
    consumer.setLevel(consumer_level)


def make_record(
    message: str, level: int = logging.WARNING, error: BaseException | None = None, **fields: Any
) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("smartpipe.consumer", level, "", 0, message, None, exc_info)
    record.__dict__["fields"] = {**FIELDS, **fields}
    return record


def caught(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError("it raises nothing")


def parse_number() -> None:
    json.loads("{")


def test_a_handled_event_is_one_short_line(formatter: HandlerCallFormatter) -> None:
    line = formatter.format(make_record("Handled", logging.DEBUG, seconds=0.0123, receive_count=1))

    assert line.endswith(" info    handled order.placed by shop.bill in 12 ms")


def test_a_short_line_leaves_out_what_is_not_known_and_has_no_arguments(formatter: HandlerCallFormatter) -> None:
    record = make_record("Ignored", logging.DEBUG, event_type="order.placed", handler=None)
    record.args = ("x",)

    line = formatter.format(record)

    assert line.endswith(" info    ignored order.placed")
    assert (record.levelname, record.args, record.msg) == ("DEBUG", ("x",), "Ignored")


@pytest.mark.parametrize(
    ("logger", "level", "message"),
    [
        ("smartpipe.consumer", logging.INFO, "Handled"),
        ("smartpipe.consumer", logging.DEBUG, "Other"),
        ("shop", logging.DEBUG, "Handled"),
    ],
)
def test_other_lines_stay_as_they_are(formatter: HandlerCallFormatter, logger: str, level: int, message: str) -> None:
    record = make_record(message, level)
    record.name = logger

    assert formatter.format(record) == TextFormatter(coloured=False).format(record)


def test_a_later_delivery_says_so(formatter: HandlerCallFormatter) -> None:
    line = formatter.format(make_record("Handled", logging.DEBUG, seconds=1.5, receive_count=3))

    assert line.endswith(" handled order.placed by shop.bill in 1,500 ms, receive 3")


def test_the_traceback_has_the_users_frames_and_the_place_where_a_library_raised(
    formatter: HandlerCallFormatter,
) -> None:
    lines = formatter.format(make_record(RETRY, error=caught(parse_number))).splitlines()

    files = [line.split('"')[1] for line in lines if line.strip().startswith("File ")]
    assert files[:-1] == [__file__, __file__]
    assert files[-1].endswith("json/decoder.py")
    assert lines[-1].strip().startswith("json.decoder.JSONDecodeError")


def test_the_frames_of_smartpipe_are_left_out_between_those_of_the_user(formatter: HandlerCallFormatter) -> None:
    def decode() -> None:
        decode_inside(parse_number)

    lines = formatter.format(make_record(RETRY, error=caught(decode))).splitlines()

    functions = [line.rpartition(" in ")[2] for line in lines if line.strip().startswith("File ")]
    assert functions == ["caught", "decode", "decode_inside", "parse_number", "raw_decode"]


def decode_inside(function: Callable[[], None]) -> None:
    """Call *function* from a frame of a library."""
    scope: dict[str, object] = {"function": function}
    exec(compile("function()", f"{PACKAGE}consumer/x.py", "exec"), scope)


def test_an_error_that_a_library_raised_ends_with_its_frame_even_without_a_frame_of_the_user(
    formatter: HandlerCallFormatter,
) -> None:
    error = caught(parse_number)
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # type: ignore[union-attr]

    lines = formatter.format(make_record(RETRY, error=error)).splitlines()

    files = [line.split('"')[1] for line in lines if line.strip().startswith("File ")]
    assert [Path(file).name for file in files] == ["decoder.py"]


def test_an_error_within_smartpipe_has_no_frames(formatter: HandlerCallFormatter) -> None:
    scope: dict[str, object] = {}
    code = compile("def fail(): raise ValueError('no')", f"{PACKAGE}consumer/x.py", "exec")
    exec(code, scope)
    error = caught(scope["fail"])  # type: ignore[arg-type]
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next

    lines = formatter.format(make_record(RETRY, error=error)).splitlines()

    assert lines[1:] == ["  ValueError: no"]


def test_a_long_line_of_a_traceback_is_cut(formatter: HandlerCallFormatter) -> None:
    prefix = len("ValueError: ")
    whole, cut = (
        formatter.format(make_record(RETRY, error=ValueError("x" * (2_048 - prefix + more)))).splitlines()[-1]
        for more in (0, 1)
    )

    assert len(whole) == 2 + 2_048
    assert cut.endswith("…(2049 characters)")


def test_the_tracebacks_of_the_last_messages_are_known(
    formatter: HandlerCallFormatter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.cli.dev.handler_calls.MAX_REMEMBERED", 3)
    error = caught(parse_number)

    shown = [
        number
        for number in (0, 1, 2, 0, 3, 0, 2, 1)
        if "Traceback" in formatter.format(make_record(RETRY, error=error, message_id=f"m{number}"))
    ]

    assert shown == [0, 1, 2, 3, 1]


def test_causes_and_groups_are_shown_in_the_same_way(formatter: HandlerCallFormatter) -> None:
    def chained() -> None:
        try:
            parse_number()
        except ValueError as error:
            raise ExceptionGroup("two", [KeyError("inner")]) from error

    text = formatter.format(make_record(RETRY, error=caught(chained)))

    assert "JSONDecodeError" in text
    assert "ExceptionGroup: two" in text
    assert "KeyError: 'inner'" in text
    assert text.count("json/") == 1


def test_the_same_traceback_of_a_message_is_shown_once_and_another_one_again(formatter: HandlerCallFormatter) -> None:
    error, other = caught(parse_number), caught(lambda: {"de": 1}["en"])

    shown = [
        "Traceback" in formatter.format(make_record(text, error=one, message_id=message_id))
        for text, one, message_id in [
            (RETRY, error, "m1"),
            (RETRY, error, "m1"),
            ("Dead-lettered (retries-exhausted): x", error, "m1"),
            (RETRY, other, "m1"),
            (RETRY, error, "m2"),
        ]
    ]

    assert shown == [True, False, False, True, True]


def test_a_retry_that_the_handler_asked_for_has_no_traceback(formatter: HandlerCallFormatter) -> None:
    def ask() -> None:
        raise Retry("the bank is closed")

    error = caught(ask)

    assert (
        formatter.format(make_record(f"Handler failed, will retry in 1 s: {describe_error(error)}", error=error)).count(
            "\n"
        )
        == 0
    )


def test_an_internal_error_keeps_its_whole_traceback(formatter: HandlerCallFormatter) -> None:
    error = caught(lambda: TextFormatter(coloured=True).format(None))  # type: ignore[arg-type]

    text = formatter.format(make_record("Internal error in smartpipe, returning the message to the queue", error=error))

    assert "/smartpipe/cli/logs.py" in text


def test_control_characters_of_an_error_are_escaped(formatter: HandlerCallFormatter) -> None:
    text = formatter.format(make_record(RETRY, error=ValueError("\x1b[2Jgone")))

    assert "\x1b" not in text


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_at_other_levels_than_info_the_log_stays_as_it_is(root: logging.Logger, level: int) -> None:
    root.setLevel(level)

    show_handler_calls()

    assert isinstance(root.handlers[0].formatter, TextFormatter)
    assert logging.getLogger("smartpipe.consumer").level == logging.NOTSET


def test_a_log_in_json_stays_as_it_is(root: logging.Logger) -> None:
    root.handlers[0].setFormatter(JsonFormatter())

    show_handler_calls()

    assert isinstance(root.handlers[0].formatter, JsonFormatter)
    assert not logging.getLogger("smartpipe.consumer").isEnabledFor(logging.DEBUG)


async def test_a_consumer_logs_the_handled_event_and_the_first_failure(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(sys.stderr)
    show_handler_calls()
    transport, service = FakeTransport(), make_service()

    @service.subscribe(UserSignedUp)
    async def greet(event: UserSignedUp) -> None:
        if event.name == "fails":
            parse_number()

    async with consuming(service, transport, poll_seconds=1) as consumer:
        transport.put(ADA, ADA.model_copy(update={"name": "fails"}))
        await until(lambda: consumer.counters.handled == consumer.counters.retried == 1)

    output = capsys.readouterr().err
    assert "handled member.signed_up by tests.unit.test_handler_calls" in output
    assert "in parse_number" in output
