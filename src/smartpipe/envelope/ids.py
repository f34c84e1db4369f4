"""Event ids: new ones, and those of events that a handler publishes, which are the same at every attempt."""

from __future__ import annotations

import os
import re
import threading
import time
from contextvars import ContextVar
from hashlib import sha256
from typing import Protocol

from smartpipe.keys import compose

# The highest two bits of a UUID's ninth byte are 10 (RFC 9562, section 4.1).
_VARIANT = {f"{digit:x}": f"{8 | digit & 3:x}" for digit in range(16)}
_WITH_TIME = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_LOCK = threading.Lock()
"""Held for microseconds, by handlers that publish from several threads."""


class Cause(Protocol):
    """A call of a handler, as far as the ids of what it publishes are concerned.

    ``calls`` counts the calls of the handler's function that this delivery has led to: more than one if a middleware
    tries again. Each call starts from the beginning, as it would in another process.
    """

    calls: int
    ids: DerivedIds | None

    def derive_ids(self) -> DerivedIds:
        """Return the ids of what this call publishes, from the first on."""


current_cause: ContextVar[Cause | None] = ContextVar("smartpipe_current_cause", default=None)
"""Set around each handler, in its task or thread: the ids of what it publishes are derived from it."""


class DerivedIds:
    """The ids of the events that one call of a handler publishes.

    Each is a UUID version 8 (RFC 9562, section 5.8): the first bits of a SHA-256 over the cause, what the event is, and
    how many like it the call has published before. So the next attempt, in whichever process, publishes the same ids.
    The order among events that are not alike does not matter, nor does what their other fields say.

    Args:
        cause: Names the handler and the event, or events, that it handles.
        call: Which call of the function it is; 0: none yet, a middleware publishes.
        time_of: The cause's event id. If it is a UUID version 7, or one of these, its first 48 bits are kept: they are
            a time, so ids of one chain of events stay close together in an index. The time of the publication would
            be another one at every attempt.
    """

    __slots__ = ("_cause", "_published", "_time", "call")

    def __init__(self, *cause: str, call: int, time_of: str = "") -> None:
        self.call = call
        self._cause = sha256(compose("handler" if call else "middleware", *cause).encode()).hexdigest()
        found = _WITH_TIME.fullmatch(time_of)
        self._time = f"{found[1]}{found[2]}".lower() if found else None
        self._published: dict[tuple[str, ...], int] = {}

    def next(self, *what: str) -> str:
        """Return the id of the next event that is like *what*."""
        position = self._published.get(what, 0)
        self._published[what] = position + 1
        digest = sha256(compose(self._cause, *what, str(position)).encode()).hexdigest()
        return _uuid("8", self._time or digest[32:44], digest)


def next_event_id(*what: str) -> str:
    """Return the id of an event that is published now: a new one, unless a handler publishes it.

    Args:
        what: Its type, major version, queue and key. Events that differ in one of these are counted apart.
    """
    cause = current_cause.get()
    if cause is None:
        return new_event_id()
    with _LOCK:
        if cause.ids is None or cause.ids.call != cause.calls:
            cause.ids = cause.derive_ids()
        return cause.ids.next(*what)


def new_event_id() -> str:
    """Return a UUID version 7 (RFC 9562, section 5.7): unique, and sorted by time, which indexes like."""
    return _uuid("7", f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex())


def _uuid(version: str, moment: str, bits: str) -> str:
    return f"{moment[:8]}-{moment[8:]}-{version}{bits[:3]}-{_VARIANT[bits[3]]}{bits[4:7]}-{bits[7:19]}"
