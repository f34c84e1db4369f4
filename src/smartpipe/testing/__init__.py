"""For the tests of services: a broker in memory on virtual time, and a real one on a free port.

The pytest plugin ``smartpipe`` loads by itself: it shows what happened on a MemoryBroker below a
failed test, and has the fixture ``smartpipe_moto``. Names are imported at their first use, so that
the plugin costs next to nothing where nobody uses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smartpipe.testing.broker import MemoryBroker
    from smartpipe.testing.clock import virtual_time
    from smartpipe.testing.real_broker import planned, provision, working
    from smartpipe.testing.records import DeadLettered, Handled, Published, Retried

__all__ = [
    "DeadLettered",
    "Handled",
    "MemoryBroker",
    "Published",
    "Retried",
    "planned",
    "provision",
    "virtual_time",
    "working",
]

_HOMES = {
    "MemoryBroker": "broker",
    "planned": "real_broker",
    "provision": "real_broker",
    "virtual_time": "clock",
    "working": "real_broker",
    **dict.fromkeys(("DeadLettered", "Handled", "Published", "Retried"), "records"),
}


def __getattr__(name: str) -> object:
    """Import *name* from its module, once."""
    from importlib import import_module

    if name not in _HOMES:
        msg = f"module 'smartpipe.testing' has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(f"smartpipe.testing.{_HOMES[name]}"), name)
    return value
