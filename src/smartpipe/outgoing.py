"""From an event to the message that is published, and messages into requests. Pure; both publishers use it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from smartpipe.envelope import encode, wrap
from smartpipe.errors import ConfigError, EventTooLarge, PublishError, PublishFailure
from smartpipe.events import Event, contract_of
from smartpipe.message import Attribute, Failure, OutgoingMessage, size_bytes
from smartpipe.topology.model import TYPE_ATTRIBUTE
from smartpipe.transport import BATCH_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from smartpipe.topology.model import Topic

T = TypeVar("T")

MAX_ATTRIBUTES = 10
_ATTRIBUTE_NAME = re.compile(r"(?!(?:aws|amazon)\.)(?!\.)(?!.*\.\.)[A-Za-z0-9_.-]{1,256}(?<!\.)", re.IGNORECASE)
# SQS SendMessage, "valid Unicode characters": the same for bodies and attribute values.
_SQS_TEXT = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")


class Outgoing(NamedTuple):
    """An event on its way to its topic."""

    event: Event
    event_id: str
    topic: Topic
    message: OutgoingMessage

    def failed(self, failure: Failure) -> PublishFailure:
        """Say of this event what the service said of its entry."""
        return PublishFailure(self.event, self.event_id, failure.code, failure.detail, failure.retryable)


class PublishReport(NamedTuple):
    """Every event was published: their envelope ids, in the order in which the events came."""

    event_ids: list[str]


def prepare(event: Event, *, source: str, attributes: Mapping[str, str] | None = None) -> Outgoing:
    """Wrap and encode *event*; its type goes along as a message attribute, which filter policies match.

    Raises:
        ConfigError: The event's class declares no type.
        EventTooLarge: It exceeds the topic's limit by itself.
        PublishError: Attributes that SNS or SQS would refuse or, worse, silently drop the message for.
    """
    if not isinstance(event, Event):
        msg = f"a {type(event).__name__} is no Event and cannot be published: {event!r}"
        raise ConfigError(msg)
    topic = contract_of(type(event)).topic
    envelope = wrap(event, source=source)
    problem = _attribute_problem(attributes) if attributes else None
    if problem is not None:
        raise PublishError([PublishFailure(event, envelope.id, "InvalidAttribute", problem, retryable=False)])
    all_attributes = {TYPE_ATTRIBUTE: Attribute("String", envelope.type)}
    all_attributes.update((name, Attribute("String", value)) for name, value in (attributes or {}).items())
    body = encode(envelope)
    size = size_bytes(body, all_attributes)
    if size > topic.limit_bytes:
        raise EventTooLarge(event, envelope.id, size_bytes=size, limit_bytes=topic.limit_bytes)
    return Outgoing(event, envelope.id, topic, OutgoingMessage(body, size, all_attributes))


def _attribute_problem(attributes: Mapping[str, str]) -> str | None:
    if len(attributes) + 1 > MAX_ATTRIBUTES:
        return (
            f"{len(attributes)} attributes and the event's type make more than {MAX_ATTRIBUTES}, and SNS drops a "
            "message with more on its way to a queue with raw delivery; move some into the event"
        )
    for name, value in attributes.items():
        if name == TYPE_ATTRIBUTE or not _ATTRIBUTE_NAME.fullmatch(name):
            return f"attribute name {name!r} is taken, or not what SQS allows (letters, digits, '_', '-', inner '.')"
        if not isinstance(value, str) or not _SQS_TEXT.fullmatch(value):
            return f"attribute {name!r} must be text of at least one character, without control characters: {value!r}"
    return None


class Chunker(Generic[T]):
    """Fills one request after another: at most 10 entries, whose bytes together stay under the limit.

    The byte limit of PublishBatch and SendMessageBatch is over the whole request, attributes counted.
    """

    def __init__(
        self,
        limit_bytes: int | None = None,
        size_of: Callable[[T], int] = lambda _: 0,
        limit_entries: int = BATCH_LIMIT,
    ) -> None:
        self._limit_entries = limit_entries
        self._limit_bytes = limit_bytes
        self._size_of = size_of
        self._items: list[T] = []
        self._bytes = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether no further item can fit."""
        return len(self._items) >= self._limit_entries

    def add(self, item: T) -> list[T] | None:
        """Take *item*; return the chunk that had no room for it, if there was one."""
        done = None
        size = 0
        if self._limit_bytes is not None:
            size = self._size_of(item)
            if self._items and self._bytes + size > self._limit_bytes:
                done = self.take()
        if self.full:
            done = self.take()
        self._items.append(item)
        self._bytes += size
        return done

    def take(self) -> list[T]:
        """Return what waits, and start anew."""
        items, self._items, self._bytes = self._items, [], 0
        return items


class TopicChunks:
    """Fills requests topic by topic, each within its topic's limits."""

    def __init__(self) -> None:
        self._chunkers: dict[Topic, Chunker[Outgoing]] = {}

    def add(self, outgoing: Outgoing) -> list[Outgoing] | None:
        """Take *outgoing*; return its topic's chunk that had no room for it, if there was one."""
        chunker = self._chunkers.get(outgoing.topic)
        if chunker is None:
            chunker = self._chunkers[outgoing.topic] = Chunker(outgoing.topic.limit_bytes, _size_of)
        return chunker.add(outgoing)

    def take(self) -> list[list[Outgoing]]:
        """Return what waits of each topic."""
        return [chunker.take() for chunker in self._chunkers.values() if chunker]


def _size_of(outgoing: Outgoing) -> int:
    return outgoing.message.size_bytes
