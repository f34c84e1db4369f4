"""Values that a producer might forge in the attribute ``smartpipe_dead_letter``."""

from __future__ import annotations

import json
from typing import Any

GENUINE: dict[str, Any] = {
    "kind": "rejected",
    "error_type": "smartpipe.errors.Reject",
    "message": "no",
    "service": "billing",
    "queue": "billing",
    "handler": "shop.bill",
    "message_id": "m0",
    "receive_count": 1,
    "first_seen": "2026-11-25T00:45:18.000+00:00",
    "dead_lettered_at": "2026-11-25T00:45:19.000+00:00",
}
MOVED = {"data_type": "String", "value": "v"}


def _with(**changes: Any) -> str:
    return json.dumps({**GENUINE, **changes})


UNREADABLE = {
    "nothing": "",
    "no JSON": "no JSON",
    "another value": "7",
    "a list": '["kind"]',
    "deep nesting": "[" * 200_000,
    "deep objects": '{"kind":' * 100_000,
    "no kind": "{}",
    "a kind of another type": _with(kind=["rejected"]),
    "a kind with a line break": _with(kind="rejected\n"),
    "a kind that is long": _with(kind="r" * 65),
    "a message of another type": _with(message={"x": 1}),
    "a long message": _with(message="m" * 100_000),
    "a date of another type": _with(dead_lettered_at=10**30),
    "a date with words": _with(first_seen="long ago"),
    "a count of another type": _with(receive_count="many"),
    "a count that is negative": _with(receive_count=-1),
    "a count that is infinite": _with().replace('"receive_count": 1', '"receive_count": 1e999'),
    "errors of another type": _with(errors="many"),
    "many errors": _with(errors=[{"type": "x", "loc": [], "msg": "m"}] * 101),
    "errors that are nested": _with(errors=[{"type": "x", "loc": [[1]], "msg": "m"}]),
    "attributes of another type": _with(attributes=[1]),
    "attributes without a type": _with(attributes={"a": {"value": "v"}}),
    "attributes of an unknown type": _with(attributes={"a": {"data_type": "Float", "value": "1"}}),
    "attributes of a nested value": _with(attributes={"a": {"data_type": "String", "value": {"b": 1}}}),
    "many attributes": _with(attributes={f"a{n}": MOVED for n in range(11)}),
}

READABLE = {
    "a date out of range": _with(dead_lettered_at="0001-01-01T00:00:00+23:59"),
    "a date that is none": _with(dead_lettered_at="2026-13-99T99:99:99"),
    "an attribute that is not hexadecimal": _with(attributes={"a": {"data_type": "Binary", "value": "zz"}}),
    "an attribute that is not a number": _with(attributes={"a": {"data_type": "Number", "value": "x"}}),
    "an attribute that SQS refuses": _with(
        attributes={"AWS.x": MOVED, "b": {"data_type": "String", "value": "\u0000"}}
    ),
    "the reason itself": _with(attributes={"smartpipe_dead_letter": MOVED}),
    "ten attributes more": _with(attributes={f"b{n}": MOVED for n in range(10)}),
    "unknown fields": _with(more={"a": [1, {"b": 2}]}),
}
FORGED = {**UNREADABLE, **READABLE}
