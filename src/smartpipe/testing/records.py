"""Records of the events and deliveries on a MemoryBroker. They can be compared and printed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from smartpipe.consumer.decide import describe_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.message import AttributeValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An entry of the timeline: a message was published, handled, retried and so on.

    Args:
        event: The event, or what a raw handler takes: a model, a dict or text. None if the message is neither.
        at_seconds: The time since the broker was entered.
        body: The body of the message as it was sent.
    """

    event: Any
    event_id: str | None
    at_seconds: float
    body: str

    @property
    def subject(self) -> str:
        """The event or the body, for a line of the timeline."""
        if self.event is None:
            return f"{self.body[:60]!r}"
        return f"{type(self.event).__name__} {self.event_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published(Record):
    """An event was published to a topic, or sent directly to a queue."""

    destination: str
    attributes: Mapping[str, AttributeValue]
    group_id: str | None
    delay_seconds: int

    def __str__(self) -> str:
        """Return the line of the timeline."""
        return f"{self.at_seconds:>11.3f} s  published      {self.subject} to {self.destination}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered(Record):
    """A delivery was settled.

    Args:
        handler: The handler that failed, or the last one that ran; None if no handler ran.
        receive_count: The number of receives of the message: 1 on the first delivery.
    """

    queue: str
    handler: str | None
    receive_count: int

    def _format_line(self, word: str, rest: str = "") -> str:
        by = f" by {self.handler}" if self.handler else ""
        where = f"from {self.queue}, receive {self.receive_count}{by}"
        return f"{self.at_seconds:>11.3f} s  {word:<14} {self.subject} {where}{rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled(Delivered):
    """All handlers of the event returned."""

    def __str__(self) -> str:
        """Return the line of the timeline."""
        return self._format_line("handled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored(Delivered):
    """No handler subscribes to this event type, and the service ignores such events."""

    def __str__(self) -> str:
        """Return the line of the timeline."""
        return self._format_line("ignored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried(Delivered):
    """A delivery failed, and the message will be delivered again after ``after_seconds``."""

    after_seconds: float
    error: BaseException

    def __str__(self) -> str:
        """Return the line of the timeline."""
        return self._format_line("retried", f", again after {self.after_seconds:g} s: {describe_error(self.error)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettered(Delivered):
    """The message was moved to the dead-letter queue.

    Args:
        kind: The kind in the dead-letter message: ``rejected``, ``retries-exhausted``, ``invalid-data``, and so on. It
            is ``redriven`` if SQS moved the message after its last receive.
    """

    kind: str
    error: BaseException

    @property
    def reason(self) -> str:
        """The text of the error."""
        return str(self.error)

    def __str__(self) -> str:
        """Return the line of the timeline."""
        return self._format_line("dead-lettered", f", {self.kind}: {describe_error(self.error)}")


def matches(record: Record, event: type[Any] | None, fields: Mapping[str, Any]) -> bool:
    """Return whether the event of *record* is of this class and has these field values.

    A raw handler of ``dict`` takes a JSON object, whose fields are its items.
    """
    found: Any = record.event
    if event is not None and not isinstance(found, event):
        return False
    missing = object()
    read = found.get if isinstance(found, dict) else partial(getattr, found)
    return all(read(name, missing) == value for name, value in fields.items())
