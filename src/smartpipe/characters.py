"""Checks the characters of values that are put into headers, URLs, names or signatures. Pure."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LINE_BREAKS = "\n\r\x85\u2028\u2029"
_NOT_ASCII = re.compile(r"[^ -~]")


def character_error(value: str, *, ascii_only: bool = False) -> str:
    """Return a description of the first forbidden character in *value* and its remedy; empty if there is none.

    The description is a predicate, to be written after the name of the variable. It never contains the value, which
    may be a secret. White space around a value is an error and is not removed, because other programs that read the
    same variable would not remove it either.

    Args:
        ascii_only: Allow only printable ASCII characters, as in keys and tokens.
    """
    if found := CONTROL.search(value):
        kind = "a line break" if found[0] in _LINE_BREAKS else "a control character"
        if not value[found.start() :].strip():
            return f"ends with {kind}: set it again without it, for example with `printf %s` instead of `echo`"
        return f"contains {kind}: set it again without it"
    if value != value.strip():
        return "begins or ends with white space: set it again without it"
    if ascii_only and _NOT_ASCII.search(value):
        return "contains a character that is not printable ASCII: set it again without it"
    return ""
