"""Makes text from messages and from AWS safe to print: it cannot forge a line or control a terminal.

It escapes the control characters C0, DEL and C1 (ECMA-48), the bidirectional controls, which can change how a line
looks (Unicode Standard Annex 9; CVE-2021-42574), line and paragraph separators, and lone surrogates, which cannot be
encoded.
"""

from __future__ import annotations

import re

_BEYOND_C0 = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_FORBIDDEN = re.compile(f"[\x00-\x1f{_BEYOND_C0}]")
_FORBIDDEN_IN_JSON = re.compile(f"[{_BEYOND_C0}]")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")
_UNCOLOURED = "\x1b[0m"


def escape_text(text: str) -> str:
    r"""Return *text* as one line, with ``\n``, ``\x1b`` or ``\u202e`` in place of harmful characters."""
    return text if text.isprintable() else _FORBIDDEN.sub(_escape, text)


def escape_keeping_colours(text: str) -> str:
    """Return *text*, one line of another program's output, escaped except for tabs and colours.

    Colours are reset at the end of the line.
    """
    parts = _COLOURS.split(text)
    escaped = "".join(
        part if place % 2 else "\t".join(map(escape_text, part.split("\t"))) for place, part in enumerate(parts)
    )
    return escaped if len(parts) == 1 else escaped + _UNCOLOURED


def escape_json(text: str) -> str:
    r"""Return JSON *text* with escapes such as ``\u009b`` in its strings. A parser reads the original characters."""
    if text.isascii() and "\x7f" not in text:  # a fast check that nearly always suffices
        return text
    return _FORBIDDEN_IN_JSON.sub(_escape_in_json, text)


def shorten_text(text: str, characters: int) -> str:
    """Return *text*, or its beginning and its length: ``abc…(1000 characters)``."""
    return text if len(text) <= characters else f"{text[:characters]}…({len(text)} characters)"


def _escape(match: re.Match[str]) -> str:
    one = match[0]
    if one in _SHORT:
        return _SHORT[one]
    return f"\\x{ord(one):02x}" if one <= "\xff" else f"\\u{ord(one):04x}"


def _escape_in_json(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
