"""Write mappings and lists as YAML, in their order. Pure.

Texts that could be read as another type are quoted. JSON's texts are also YAML's.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*([: ][A-Za-z0-9_./-]+)*")
_QUANTITY = re.compile(r"[0-9]+(m|Mi|Gi)")
_BLOCK = re.compile(r"[!-~]([ -~]|\n)*[!-~]\n?")
"""Text that can be a literal block: it has no character that YAML escapes, and no space or empty line at its ends."""
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""Characters that JSON does not escape, and that YAML refuses or reads as the end of a line."""
_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Texts that YAML 1.1 reads as a boolean or as null."""


def write_documents(header: Sequence[str], documents: Sequence[dict[str, Any] | list[Any]]) -> str:
    """Return the documents as one file that begins with the lines of *header* as comments."""
    comments = "".join(f"# {line}\n" if line else "#\n" for line in header)
    return comments + "".join("---\n" + "".join(f"{line}\n" for line in _lines(one)) for one in documents)


def _lines(value: Any) -> Iterator[str]:
    """Yield the lines of a mapping or list that is not empty."""
    if isinstance(value, dict):
        for key, one in value.items():
            if isinstance(one, (dict, list)) and one:
                yield f"{_scalar(key)}:"
                yield from (f"  {line}" if line else "" for line in _lines(one))
            else:
                first, *rest = _scalar_lines(one)
                yield f"{_scalar(key)}: {first}"
                yield from rest
        return
    for one in value:
        nested = list(_lines(one)) if isinstance(one, (dict, list)) and one else _scalar_lines(one)
        yield f"- {nested[0]}"
        yield from (f"  {line}" if line else "" for line in nested[1:])


def _scalar_lines(value: Any) -> list[str]:
    """Return the lines of a scalar: text of several lines, such as a script, is a literal block."""
    if not isinstance(value, str) or "\n" not in value or not _BLOCK.fullmatch(value):
        return [_scalar(value)]
    mark = "|" if value.endswith("\n") else "|-"
    return [mark, *(f"  {line}" if line else "" for line in value.removesuffix("\n").split("\n"))]


def _scalar(value: Any) -> str:
    if (
        isinstance(value, str)
        and value.lower() not in _RESERVED
        and (_PLAIN.fullmatch(value) or _QUANTITY.fullmatch(value))
    ):
        return value
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
