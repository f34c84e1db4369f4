from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpipe.cli.logs import JsonFormatter, TextFormatter, count_cells, has_colours, shorten_lines, terminal_width
from smartpipe.worker.log_writer import StreamLines
from tests.unit.test_escaping import evil, harmless

if TYPE_CHECKING:
    from collections.abc import Callable


def record(message: str = "handled %s", *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("smartpipe.consumer", logging.INFO, "file.py", 1, message, arguments or ("it",), None)
    made.fields = fields
    return made


def test_a_json_line_has_the_fields_beside_time_level_and_message() -> None:
    line = json.loads(JsonFormatter().format(record(event_id="77", receive_count=2)))

    assert line["message"] == "handled it"
    assert (line["level"], line["logger"], line["event_id"], line["receive_count"]) == (
        "info",
        "smartpipe.consumer",
        "77",
        2,
    )
    assert line["time"].endswith("+00:00")


@pytest.mark.parametrize("created", [0.0, 1_764_000_000.0, 1_764_000_000.25, 1_764_000_000.9994, 1_764_000_001.001])
def test_the_time_of_a_json_line_is_in_utc_with_milliseconds(created: float) -> None:
    formatter = JsonFormatter()
    for later in (0, 0, 0.5, 1, 61, 0):
        made = record()
        made.created = created + later
        expected = datetime.fromtimestamp(made.created, UTC).isoformat(timespec="milliseconds")
        assert json.loads(formatter.format(made))["time"] == expected


def test_a_json_line_is_one_line_even_with_a_traceback_and_strange_values() -> None:
    made = record(strange=object())
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        made.exc_info = (type(error), error, error.__traceback__)

    text = JsonFormatter().format(made)

    assert "\n" not in text
    assert "two\nlines" in json.loads(text)["exception"]


def test_a_text_line_shows_the_fields_that_identify_the_message() -> None:
    text = TextFormatter(coloured=True).format(record(event_id="77", queue="q"))

    assert "handled it" in text
    assert "event_id=77" in text
    assert "queue=" not in text


def test_a_line_has_the_number_of_its_process() -> None:
    line = json.loads(JsonFormatter(2).format(record()))

    assert line["process"] == 2
    assert "process" not in json.loads(JsonFormatter().format(record()))
    assert "info    [2] handled it" in TextFormatter(coloured=False, process=2).format(record())


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "unknown"}, True, False),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
    ],
)
def test_colours_are_used_on_terminals_and_on_request(
    environment: dict[str, str], terminal: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal))

    assert has_colours() == coloured


EVIL = "7\n12:00:00.000 info    all is well\x1b[2J\x9b\u202e\u2028\ud800\x7f"


class Panic(BaseException):
    """As a Rust object raises it: it is not an Exception."""


class Panics:
    def __str__(self) -> str:
        raise Panic

    __repr__ = __str__


class BrokenDict(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class BrokenInt(int):
    def __repr__(self) -> str:
        raise RuntimeError("no digits")


class BrokenStr(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("no length")


class BrokenClass:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


BROKEN: dict[str, Callable[[], object]] = {
    "panic": Panics,
    "panic in a list": lambda: [Panics()],
    "panic in a key": lambda: {Panics(): 1},
    "dict": lambda: BrokenDict(a=1),
    "int": lambda: BrokenInt(1),
    "str": lambda: BrokenStr("a"),
    "class": BrokenClass,
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize(
    "formatter", [JsonFormatter(), TextFormatter(coloured=False), TextFormatter(coloured=True, width=lambda: 80)]
)
def test_a_broken_value_costs_no_other_field(kind: str, formatter: logging.Formatter) -> None:
    value = BROKEN[kind]()
    for made in (record(value=value, event_id="77"), record(event_id="77"), record("%s", event_id="77")):
        made.name = "shop"
        made.__dict__["own"] = value
        made.args = (value,) if made.msg == "%s" else None
        assert "77" in formatter.format(made)


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def failed(made: logging.LogRecord, error: BaseException) -> logging.LogRecord:
    made.exc_info = (type(error), error, error.__traceback__)
    return made


@given(text=evil, others=st.dictionaries(evil, st.one_of(evil, st.integers(), st.lists(evil), st.none())))
def test_any_record_is_one_line_of_json(text: str, others: dict[str, object]) -> None:
    made = failed(record("%s", text, event_id=text), ValueError(text))
    made.__dict__["fields"] |= others

    line = JsonFormatter().format(made)

    assert harmless(line)
    line.encode()
    assert isinstance(json.loads(line), dict)


@given(text=evil)
def test_a_text_line_cannot_forge_another_line_or_control_the_terminal(text: str) -> None:
    made = failed(record("%s", text, event_id=text, handler=text), ValueError(text))

    line, *traceback = TextFormatter(coloured=False).format(made).split("\n")

    assert harmless(line)
    assert all(harmless(one) and one.startswith("  ") for one in traceback)


def test_values_from_a_message_survive_the_escaping_in_json() -> None:
    line = json.loads(JsonFormatter().format(record("%s", EVIL, event_id=EVIL)))

    assert line["event_id"] == line["message"] == EVIL


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter(coloured=True)])
def test_long_values_are_cut(formatter: logging.Formatter) -> None:
    text = "x" * 100_000
    made = failed(record("%s", text, event_id=text, nested=[text] * 10, other=Unspeakable()), ValueError(text * 10))

    line = formatter.format(made)

    assert f"{'x' * 256}…(100000 characters)" in line
    assert len(line) < 20_000


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter(coloured=True)])
@pytest.mark.parametrize(
    "made",
    [
        record("%d", "no number"),
        record("%s", Unspeakable()),
        record("x", strange=Unspeakable(), nested={"a": Unspeakable()}, keys={(1, 2): 3}),
        record("too many", 1, 2, 3),
    ],
    ids=["arguments", "unspeakable argument", "unspeakable fields", "too many arguments"],
)
def test_a_record_that_cannot_be_formatted_still_yields_a_line(
    formatter: logging.Formatter, made: logging.LogRecord
) -> None:
    assert formatter.format(made)


@pytest.mark.parametrize("fields", [["a", "list"], None, "text", {(1, 2): "x"}])
def test_wrong_fields_do_not_lose_the_line(fields: object) -> None:
    made = record()
    made.fields = fields

    assert json.loads(JsonFormatter().format(made))["message"] == "handled it"
    assert "handled it" in TextFormatter(coloured=True).format(made)


def test_lines_for_an_output_without_a_file_descriptor_are_written_and_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[str]()
    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=done.append, flush=lambda: done.append("flushed")))
    lines = StreamLines()

    lines.write("line\n")
    lines.flush()
    monkeypatch.setattr("sys.stdout", None)  # as where there is no console
    lines.write("nowhere\n")
    lines.flush()

    assert done == ["line\n", "flushed"]


@pytest.mark.parametrize(
    ("limit", "value_of"),
    [
        (256, lambda line: line["value"]),
        (8_192, lambda line: line["message"]),
        (2_048, lambda line: line["exception"].splitlines()[-1].removeprefix("ValueError: ")),
        (256, lambda line: next(name for name in line if name.startswith("x"))),
    ],
    ids=["field", "message", "line of a traceback", "name"],
)
def test_a_text_is_cut_only_beyond_its_limit(limit: int, value_of: Callable[[dict[str, Any]], str]) -> None:
    for length in (limit - len("ValueError: "), limit, limit + 1):
        text = "x" * length
        made = failed(record("%s", text, value=text, **{text: 1}), ValueError(text[len("ValueError: ") :]))
        value = value_of(json.loads(JsonFormatter().format(made)))

        whole = len(value) in (length, length - len("ValueError: "))
        assert whole == (length <= limit), length
        assert whole or value.endswith(f"…({length} characters)")


@pytest.mark.parametrize(("count", "left_out"), [(199, 0), (200, 0), (201, 1), (500, 300)])
def test_of_a_long_traceback_the_first_and_the_last_hundred_lines_are_kept(count: int, left_out: int) -> None:
    lines = [f"line {number}" for number in range(count)]

    found = shorten_lines("\n".join(lines))

    assert found == (lines if not left_out else [*lines[:100], f"…({left_out} lines)", *lines[-100:]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (2**63 - 1, 2**63 - 1),
        (1 - 2**63, 1 - 2**63),
        (2**63, str(2**63)),
        (-(2**63), str(-(2**63))),
        (1.5, 1.5),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        ([1, "a", None], [1, "a", None]),
        ({"a": float("-inf")}, {"a": "-Infinity"}),
        (["x" * 4_092], ["x" * 4_092]),
        (["x" * 4_093], '["' + "x" * 4_093 + '"]'),
    ],
    ids=repr,
)
def test_a_field_keeps_its_type_where_json_has_it(value: object, expected: object) -> None:
    found = json.loads(JsonFormatter().format(record(value=value)))["value"]

    if isinstance(value, list) and isinstance(expected, str):
        assert found == f"{expected[:4_096]}…(4097 characters)"
    else:
        assert found == expected
        assert type(found) is type(expected)


def test_a_text_line_quotes_values_with_spaces_and_leaves_out_absent_ones() -> None:
    made = record(event_id="a b", event_type="", handler=None, receive_count=0)
    text = TextFormatter(coloured=False, prefix="shop | ").format(made)

    assert text.startswith("shop | ")
    assert text.endswith('info    handled it event_type="" event_id="a b" receive_count=0')


def test_a_line_of_another_logger_has_its_own_fields_and_those_that_identify_the_delivery() -> None:
    made = record(queue="q", service="s", handler="h", event_id="7", order=5)
    made.name = "shop"
    assert TextFormatter(coloured=False).format(made).endswith("handled it event_id=7 handler=h order=5")

    made = record(queue="q", order=5)
    made.name = "shop"
    assert TextFormatter(coloured=False).format(made).endswith("handled it queue=q order=5")
    assert TextFormatter(coloured=False).format(record(queue="q", order=5)).endswith("handled it queue=q")


@pytest.mark.parametrize(
    ("level", "code"), [("DEBUG", "2"), ("INFO", "32"), ("WARNING", "33"), ("ERROR", "31"), ("CRITICAL", "31;1")]
)
def test_each_level_has_its_colour(level: str, code: str) -> None:
    made = record()
    made.levelname, made.levelno = level, getattr(logging, level)

    assert f" \x1b[{code}m{level.lower():<7}\x1b[0m handled it" in TextFormatter(coloured=True).format(made)
    assert f" {level.lower():<7} handled it" in TextFormatter(coloured=False).format(made)


def test_the_stack_of_a_record_follows_its_traceback() -> None:
    made = failed(record(), ValueError("why"))
    made.stack_info = "Stack (most recent call last):\n  frame"

    line = json.loads(JsonFormatter().format(made))
    assert (line["exception"], line["stack"]) == ("ValueError: why", made.stack_info)
    assert TextFormatter(coloured=False).format(made).splitlines()[1:] == [
        "  ValueError: why", "  Stack (most recent call last):", "    frame",
    ]  # fmt: skip


def on_terminal(width: int, *, coloured: bool = False) -> TextFormatter:
    return TextFormatter(coloured=coloured, width=lambda: width)


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def from_shop(message: str, **fields: object) -> logging.LogRecord:
    made = record("%s", message, **fields)
    made.name = "shop.billing"
    return made


def test_on_a_wide_terminal_loggers_messages_and_fields_are_columns() -> None:
    formatter = on_terminal(120)
    longer = from_shop("Receipt written", order=7)
    longer.name, longer.levelname = "shop", "CRITICAL"

    lines = [formatter.format(made)[13:] for made in (from_shop("Charging", order=7), longer)]

    assert lines == [
        "info     shop.billing         Charging                     order=7",
        "critical shop                 Receipt written              order=7",
    ]


def test_on_a_narrow_terminal_the_parts_follow_each_other() -> None:
    text = on_terminal(60).format(from_shop("Charging", order=7))

    assert text[13:] == "info     shop.billing Charging order=7"


FIELDS = {"order": 7, "event_id": "e" * 36, "message_id": "m" * 36, "trace_id": "t" * 32, "note": "two words"}


@pytest.mark.parametrize("width", [0, 1, 20, 40, 60, 80, 99, 100, 120, 160, 1_000])
@pytest.mark.parametrize("coloured", [True, False])
def test_at_any_width_every_field_is_whole_and_the_first_line_begins_with_the_time(
    width: int, *, coloured: bool
) -> None:
    made = from_shop("Charging the card", handler="shop.charge", attempt=2, receive_count=3, **FIELDS)

    first, *others = without_colours(on_terminal(width, coloured=coloured).format(made)).split("\n")

    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} info     shop\.billing +Charging the card", first)
    assert all(line.startswith("  ") for line in others)
    words = " ".join([first, *(line.strip() for line in others)])
    for name, value in {**FIELDS, "handler": "shop.charge", "attempt": 2, "receive_count": 3}.items():
        assert f" {name}={json.dumps(value) if ' ' in str(value) else value}" in words
    fitting = [line for line in others if " " in line.strip()]
    assert all(len(line) <= max(width, 20) for line in fitting)
    assert len(first) <= max(width, 20) or "=" not in first


def test_wide_characters_take_two_columns() -> None:
    plain, wide = from_shop("abcd", order=7), from_shop("\u8acb\u6c42", order=7)
    formatter = on_terminal(120)

    assert formatter.format(plain).index("order") == formatter.format(wide).index("order") + 2
    assert count_cells("e\u0301\u8acb") == 3


def test_the_users_own_fields_come_first_on_a_terminal() -> None:
    made = from_shop("Charging", event_id="7", handler="h", order=5)

    assert on_terminal(120).format(made).endswith("order=5 event_id=7 handler=h")


@pytest.mark.parametrize("width", [None, 120])
def test_a_receive_count_that_is_the_attempt_is_left_out(width: int | None) -> None:
    formatter = TextFormatter(coloured=False, width=None if width is None else lambda: width)

    assert formatter.format(record(event_id="7", attempt=1, receive_count=1)).endswith("event_id=7 attempt=1")
    assert formatter.format(record(event_id="7", attempt=1, receive_count=2)).endswith("attempt=1 receive_count=2")
    assert formatter.format(record(event_id="7", receive_count=2)).endswith("event_id=7 receive_count=2")


def test_only_colours_are_added_on_a_coloured_terminal() -> None:
    made = from_shop("Charging", order=7)

    plain, coloured = on_terminal(120).format(made), on_terminal(120, coloured=True).format(made)

    assert without_colours(coloured) == plain
    for part in ("\x1b[32minfo    ", "\x1b[36mshop.billing", "\x1b[2morder=7"):
        assert part in coloured


@given(text=evil, name=evil)
def test_no_value_can_forge_a_line_or_control_a_terminal_with_columns(text: str, name: str) -> None:
    made = failed(record("%s", text, event_id=text, **{name: text}), ValueError(text))
    made.name = f"shop.{name}"

    first, *others = on_terminal(80).format(made).split("\n")

    assert harmless(first)
    assert all(harmless(one) and one.startswith("  ") for one in others)


def test_the_width_of_an_output_that_is_no_terminal_is_80(monkeypatch: pytest.MonkeyPatch) -> None:
    for stdout in (None, SimpleNamespace(fileno=lambda: -1)):
        monkeypatch.setattr("sys.stdout", stdout)
        assert terminal_width() == 80
