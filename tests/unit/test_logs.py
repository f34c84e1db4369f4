from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpipe.cli.logs import JsonFormatter, TextFormatter, has_colours
from smartpipe.worker.log_writer import StreamLines
from tests.unit.test_escaping import evil, harmless


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
    ],
)
def test_colours_are_used_on_terminals_and_on_request(
    environment: dict[str, str], terminal: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal))

    assert has_colours() == coloured


EVIL = "7\n12:00:00.000 info    all is well\x1b[2J\x9b\u202e\u2028\ud800\x7f"


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
