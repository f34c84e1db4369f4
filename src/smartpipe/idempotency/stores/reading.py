"""Limits for the numbers of a claim that is read from a store, which may hold any value. Pure."""

from __future__ import annotations

import math

from smartpipe.limits import MAX_VISIBILITY_SECONDS

MAX_ATTEMPTS = 2_147_483_646


def limit_lease(seconds: float) -> float:
    """Return for how long a claim is held: 0 to 12 hours, also if the store holds another number."""
    return 0.0 if math.isnan(seconds) else min(max(0.0, seconds), float(MAX_VISIBILITY_SECONDS))


def limit_attempt(number: float) -> int:
    """Return which attempt it is, at least 1."""
    return 1 if math.isnan(number) else int(min(max(1, number), MAX_ATTEMPTS))
