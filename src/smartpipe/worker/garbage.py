"""Python's garbage collector, set for a process that keeps many messages in flight."""

from __future__ import annotations

import gc

THRESHOLD = 10_000
"""New containers between two collections, where CPython's default is 700 (2,000 from 3.13 on): so many belong to a few
messages, and with hundreds in flight every collection would walk them all."""
_DEFAULTS = (700, 2_000)


def spare_collections() -> None:
    """Freeze what is there and collect less often, unless somebody has set the collector already.

    The price is that garbage in cycles waits for longer: a few megabytes. Source: gc module, ``freeze`` and
    ``set_threshold``.
    """
    youngest, *others = gc.get_threshold()
    if youngest in _DEFAULTS and gc.isenabled():
        gc.collect()
        gc.freeze()
        gc.set_threshold(THRESHOLD, *others)
