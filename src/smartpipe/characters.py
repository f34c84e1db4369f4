"""Which characters a value may have that gets into a header, a URL, a name or a signature. Pure."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LINE_BREAKS = "\n\r\x85\u2028\u2029"
_NOT_ASCII = re.compile(r"[^ -~]")


def fault_in(value: str, *, ascii_only: bool = False) -> str:
    """Return the fault of *value* and its remedy, as words that follow its name; empty if there is none.

    The words never have the value, which may be a secret. White space around a value is a fault and is not cut off:
    other programs that read the same variable would not cut it off either.

    Args:
        ascii_only: Only printable ASCII characters are allowed, as in keys and tokens.
    """
    if found := CONTROL.search(value):
        what = "a line break" if found[0] in _LINE_BREAKS else "a control character"
        if not value[found.start() :].strip():
            return f"ends with {what}: set it again without, for example by `printf %s` in place of `echo`"
        return f"contains {what}: set it again without"
    if value != value.strip():
        return "begins or ends with white space: set it again without"
    if ascii_only and _NOT_ASCII.search(value):
        return "contains a character that is not printable ASCII: set it again without"
    return ""
