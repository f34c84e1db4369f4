from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpipe.escaping import escape_json, escape_keeping_colours, escape_text, shorten_text

FORBIDDEN = {
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
}


def harmless(text: str) -> bool:
    return not any(one in FORBIDDEN or unicodedata.category(one) == "Cs" for one in text)


# Text as Hypothesis makes it hardly ever has two of these beside each other.
evil = st.text(st.one_of(st.sampled_from(sorted(FORBIDDEN)), st.characters(), st.characters(categories=["Cs"])))


@given(evil)
def test_an_escaped_text_is_one_line_that_commands_no_terminal(text: str) -> None:
    line = escape_text(text)

    assert harmless(line)
    assert len(line.splitlines()) <= 1
    line.encode()


@given(evil)
def test_escaped_json_is_read_as_what_it_was(text: str) -> None:
    line = escape_json(json.dumps({text: [text]}, ensure_ascii=False))

    assert harmless(line)
    line.encode()
    assert json.loads(line) == {text: [text]}


@given(evil)
def test_a_line_of_another_process_keeps_only_colours_and_tabs(text: str) -> None:
    line = escape_keeping_colours(f"\x1b[31mred\x1b[0m\t{text}")

    assert line.startswith("\x1b[31mred\x1b[0m\t")
    assert line.endswith("\x1b[0m")
    left = line.replace("\t", "")
    for part in left.split("\x1b[")[1:]:
        left = left.replace("\x1b[" + part.partition("m")[0] + "m", "")
    assert harmless(left)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain ü 漢 🎉", "plain ü 漢 🎉"),
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("\x1b[2J\x9b31m\x7f", "\\x1b[2J\\x9b31m\\x7f"),
        ("a\u202eb\u2066c\u061c", "a\\u202eb\\u2066c\\u061c"),
        ("\ud800", "\\ud800"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_what_is_escaped_can_still_be_recognized(text: str, line: str) -> None:
    assert escape_text(text) == line


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    assert shorten_text("x" * 256, 256) == "x" * 256
    assert shorten_text("x" * 100_000, 256) == "x" * 256 + "…(100000 characters)"
