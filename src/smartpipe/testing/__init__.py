"""Tools for your tests: a broker in memory with virtual time, and functions for a real broker.

pytest loads the plugin ``smartpipe`` automatically. It prints the timeline of each MemoryBroker below a failed test,
and provides fixtures for real servers: ``smartpipe_local``, ``smartpipe_moto``, ``smartpipe_postgres`` and
``smartpipe_redis``. Names are imported at their first use, so that the plugin costs almost nothing in a test run that
does not use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smartpipe.testing.broker import MemoryBroker
    from smartpipe.testing.clock import virtual_time
    from smartpipe.testing.golden import assert_handles
    from smartpipe.testing.real_broker import planned, provision, working
    from smartpipe.testing.records import DeadLettered, Handled, Published, Retried

__all__ = [
    "DeadLettered",
    "Handled",
    "MemoryBroker",
    "Published",
    "Retried",
    "assert_handles",
    "planned",
    "provision",
    "virtual_time",
    "working",
]

_MODULES = {
    "MemoryBroker": "broker",
    "assert_handles": "golden",
    "planned": "real_broker",
    "provision": "real_broker",
    "virtual_time": "clock",
    "working": "real_broker",
    **dict.fromkeys(("DeadLettered", "Handled", "Published", "Retried"), "records"),
}


def __getattr__(name: str) -> object:
    """Import *name* from its module at its first use."""
    from importlib import import_module

    if name not in _MODULES:
        msg = f"module 'smartpipe.testing' has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(f"smartpipe.testing.{_MODULES[name]}"), name)
    return value
