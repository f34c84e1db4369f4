"""Ids of events that a handler publishes. They are derived, so that every attempt publishes the same ids."""

from __future__ import annotations

import re
import threading
from contextvars import ContextVar
from hashlib import sha256
from typing import Protocol

from smartpipe.envelope.encode import format_uuid, new_event_id
from smartpipe.keys import compose

_WITH_TIME = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_LOCK = threading.Lock()
"""Held for microseconds, by handlers that publish from several threads."""


class Cause(Protocol):
    """A handler call, as the source of the ids of the events that it publishes.

    ``calls`` counts the calls of the handler's function for this delivery: more than one if a middleware retries.
    Each call derives its ids from the start, as a call in another process would.
    """

    calls: int
    ids: DerivedIds | None

    def derive_ids(self) -> DerivedIds:
        """Return a new sequence of ids for the events that this call publishes."""


current_cause: ContextVar[Cause | None] = ContextVar("smartpipe_current_cause", default=None)
"""Set for each handler, in its task or thread. The ids of events that the handler publishes are derived from it."""


class DerivedIds:
    """The ids of the events that one handler call publishes.

    Each is a UUID version 8 (RFC 9562, section 5.8): the first bits of a SHA-256 over the cause, the kind of the
    event, and the number of events of this kind that the call has published before. So the next attempt, in any
    process, publishes the same ids. The order among events of different kinds does not matter, nor do the values of
    their other fields.

    Args:
        cause: Names the handler and the event, or events, that it handles.
        call: The number of the function call, from 1; 0 if a middleware publishes before the first call.
        time_of: The event id of the cause. If it is a UUID version 7, or a derived id, its first 48 bits are kept.
            They are a time, so the ids of one chain of events stay close together in an index. The time of publishing
            would differ at every attempt.
    """

    __slots__ = ("_cause", "_published", "_time", "call")

    def __init__(self, *cause: str, call: int, time_of: str = "") -> None:
        self.call = call
        self._cause = sha256(compose("handler" if call else "middleware", *cause).encode()).hexdigest()
        found = _WITH_TIME.fullmatch(time_of)
        self._time = f"{found[1]}{found[2]}".lower() if found else None
        self._published: dict[tuple[str, ...], int] = {}

    def next(self, *kind: str) -> str:
        """Return the id of the next event of this *kind*."""
        position = self._published.get(kind, 0)
        self._published[kind] = position + 1
        digest = sha256(compose(self._cause, *kind, str(position)).encode()).hexdigest()
        return format_uuid("8", self._time or digest[32:44], digest)


def next_event_id(*kind: str) -> str:
    """Return the id for an event to be published now: a derived id inside a handler, a new one elsewhere.

    Args:
        kind: The event's type, major version, queue and key. Events that differ in one of these are counted separately.
    """
    cause = current_cause.get()
    if cause is None:
        return new_event_id()
    with _LOCK:
        if cause.ids is None or cause.ids.call != cause.calls:
            cause.ids = cause.derive_ids()
        return cause.ids.next(*kind)
