"""Write mappings and lists as YAML, in their order. Pure.

Texts that could be read as another type are quoted. JSON's texts are also YAML's.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*")
_QUANTITY = re.compile(r"[0-9]+(m|Mi|Gi)")
_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Texts that YAML 1.1 reads as a boolean or as null."""


def write_documents(header: Sequence[str], documents: Sequence[dict[str, Any]]) -> str:
    """Return the documents as one file that begins with the lines of *header* as comments."""
    comments = "".join(f"# {line}\n" if line else "#\n" for line in header)
    return comments + "".join("---\n" + "".join(f"{line}\n" for line in _lines(one)) for one in documents)


def _lines(value: Any) -> Iterator[str]:
    """Yield the lines of a mapping or list that is not empty."""
    if isinstance(value, dict):
        for key, one in value.items():
            if isinstance(one, (dict, list)) and one:
                yield f"{_scalar(key)}:"
                yield from (f"  {line}" for line in _lines(one))
            else:
                yield f"{_scalar(key)}: {_scalar(one)}"
        return
    for one in value:
        nested = list(_lines(one)) if isinstance(one, (dict, list)) and one else [_scalar(one)]
        yield f"- {nested[0]}"
        yield from (f"  {line}" for line in nested[1:])


def _scalar(value: Any) -> str:
    if (
        isinstance(value, str)
        and value.lower() not in _RESERVED
        and (_PLAIN.fullmatch(value) or _QUANTITY.fullmatch(value))
    ):
        return value
    return json.dumps(value, ensure_ascii=False)
