from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from smartpipe.cli.logs import JsonLines, Text, has_colours


def record(message: str = "handled %s", *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("smartpipe.consumer", logging.INFO, "file.py", 1, message, arguments or ("it",), None)
    made.fields = fields
    return made


def test_a_json_line_has_the_fields_beside_time_level_and_message() -> None:
    line = json.loads(JsonLines().format(record(event_id="77", receive_count=2)))

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

    text = JsonLines().format(made)

    assert "\n" not in text
    assert "two\nlines" in json.loads(text)["exception"]


def test_text_for_people_shows_what_tells_messages_apart() -> None:
    text = Text().format(record(event_id="77", queue="q"))

    assert "handled it" in text
    assert "event_id=77" in text
    assert "queue=" not in text


def test_a_process_among_others_says_its_number() -> None:
    line = json.loads(JsonLines(2).format(record()))

    assert line["process"] == 2
    assert "process" not in json.loads(JsonLines().format(record()))
    assert "info    [2] handled it" in Text(coloured=False, process=2).format(record())


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
def test_colours_are_for_terminals_and_for_those_who_ask(
    environment: dict[str, str], terminal: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal))

    assert has_colours() == coloured
