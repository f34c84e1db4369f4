"""The ``traceparent`` of W3C Trace Context."""

from __future__ import annotations

import os
from random import Random

TRACEPARENT_PATTERNS = (
    r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
    r"^(?:[^f].|f[^f])-0*[1-9a-f][0-9a-f]*-0*[1-9a-f]",
)
"""A traceparent matches both. Version ff and ids of only zeros are invalid (W3C Trace Context, section 3.2.2)."""

_random = Random()  # noqa: S311 - not the shared one, which applications seed; trace ids are not secrets
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_traceparent() -> str:
    """Return the traceparent of a new trace (W3C Trace Context, version 00, sampled)."""
    digits = f"{_random.getrandbits(192):048x}"
    return f"00-{digits[:32]}-{digits[32:]}-01"


def child_of(traceparent: str) -> str:
    """Return the traceparent of a new span in the same trace, with the same flags."""
    return f"{traceparent[:36]}{_random.getrandbits(64):016x}{traceparent[52:]}"


def trace_id(traceparent: str | None) -> str | None:
    """Return the trace id, 32 hex digits."""
    return traceparent[3:35] if traceparent else None
