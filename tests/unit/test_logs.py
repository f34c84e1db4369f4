from __future__ import annotations

import json
import logging

from smartpipe.cli.logs import JsonLines, Text


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
