"""What happened on a MemoryBroker, as records that compare and print well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smartpipe.consumer.decide import describe_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Something that happened.

    Args:
        event: None of a message that is no event.
        at_seconds: When, since the broker was entered.
        body: The message as it travelled.
    """

    event: Event | None
    event_id: str | None
    at_seconds: float
    body: str

    @property
    def subject(self) -> str:
        """What it happened to, for a line of the timeline."""
        if self.event is None:
            return f"{self.body[:60]!r}"
        return f"{type(self.event).__name__} {self.event_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published(Record):
    """An event was published to a topic, or sent to a queue past it."""

    destination: str
    attributes: Mapping[str, str]
    group_id: str | None
    delay_seconds: int

    def __str__(self) -> str:
        """Return its line of the timeline."""
        return f"{self.at_seconds:>11.3f} s  published      {self.subject} to {self.destination}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered(Record):
    """A delivery ended.

    Args:
        handler: The failing handler, or the last that ran; None where none did.
        receive_count: 1 on the first delivery.
    """

    queue: str
    handler: str | None
    receive_count: int

    def _line(self, word: str, rest: str = "") -> str:
        by = f" by {self.handler}" if self.handler else ""
        where = f"from {self.queue}, receive {self.receive_count}{by}"
        return f"{self.at_seconds:>11.3f} s  {word:<14} {self.subject} {where}{rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled(Delivered):
    """Its handlers all returned."""

    def __str__(self) -> str:
        """Return its line of the timeline."""
        return self._line("handled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored(Delivered):
    """No handler takes its type, and the service ignores such events."""

    def __str__(self) -> str:
        """Return its line of the timeline."""
        return self._line("ignored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried(Delivered):
    """It failed and was given back, to come again after so long."""

    after_seconds: float
    error: BaseException

    def __str__(self) -> str:
        """Return its line of the timeline."""
        return self._line("retried", f", again after {self.after_seconds:g} s: {describe_error(self.error)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettered(Delivered):
    """It was moved to the dead-letter queue.

    Args:
        kind: As in the dead letter: ``rejected``, ``retries-exhausted``, ``invalid-data``, and so on; or
            ``redriven``, when SQS itself moved it after its last receive.
    """

    kind: str
    error: BaseException

    @property
    def reason(self) -> str:
        """What the error says."""
        return str(self.error)

    def __str__(self) -> str:
        """Return its line of the timeline."""
        return self._line("dead-lettered", f", {self.kind}: {describe_error(self.error)}")


def fits(record: Record, event: type[Event] | None, fields: Mapping[str, Any]) -> bool:
    """Return whether the record is of this class of events, with these values of its fields."""
    if event is not None and not isinstance(record.event, event):
        return False
    missing = object()
    return all(getattr(record.event, name, missing) == value for name, value in fields.items())
