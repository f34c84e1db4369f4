"""Messages that no handler can ever handle, and the reasons with which they must be dead-lettered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smartpipe.envelope import encode, wrap
from tests.soak.service import Paid, PaidInOrder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.soak.service import SoakEvent


def _envelope(number: int, fifo: bool, **changes: Any) -> str:
    event: SoakEvent = (PaidInOrder if fifo else Paid)(number=number, account="poison")
    fields = json.loads(encode(wrap(event, source="soak-poison")))
    return json.dumps({**fields, **changes})


def make_poison(number: int, *, fifo: bool) -> tuple[str, str]:
    """Return the body with this number, which differs from all others, and the kind of its reason."""
    makers: tuple[tuple[Callable[[], str], str], ...] = (
        (lambda: f"poison {number}", "not-json"),
        (lambda: json.dumps({"poison": number}), "not-cloudevent"),
        (lambda: _envelope(number, fifo, type="soak.unknown"), "unknown-event-type"),
        (lambda: _envelope(number, fifo, dataversion="2.0"), "unknown-event-type"),
        (lambda: _envelope(number, fifo, data={"number": f"poison {number}"}), "invalid-data"),
    )
    make, kind = makers[number % len(makers)]
    return make(), kind
