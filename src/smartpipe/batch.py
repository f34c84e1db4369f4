"""Batches for batch handlers: their size, and the deliveries of one call besides its events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Unpack

from smartpipe.delivery import S
from smartpipe.envelope.encode import current_envelope
from smartpipe.envelope.ids import DerivedIds, current_cause
from smartpipe.errors import ConfigError
from smartpipe.keys import compose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.delivery import Delivery
    from smartpipe.events import Event
    from smartpipe.options import PublishOptions
    from smartpipe.publisher.publisher import Publisher

MAX_SIZE = 1_000
MAX_LINGER_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Batch:
    """The size of a batch handler's batches. Several receive calls may fill one batch.

    Args:
        size: The maximum number of events in one call: 1 to 1,000. The queue's consumer holds at least this number of
            messages, regardless of its concurrency. Other handlers on the queue may then run as many calls, unless they
            have a ``concurrency`` of their own.
        linger_seconds: The time from the first event of a batch to its call if it does not fill up: 0 to 300.

    Raises:
        ConfigError: A value is out of range.
    """

    size: int = 100
    linger_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Validate every field, and report all errors together."""
        errors = []
        if not 1 <= self.size <= MAX_SIZE:
            errors.append(f"Batch: size={self.size} must be 1 to {MAX_SIZE:,}")
        if not 0 <= self.linger_seconds <= MAX_LINGER_SECONDS:
            errors.append(f"Batch: linger_seconds={self.linger_seconds} must be 0 to {MAX_LINGER_SECONDS}")
        if errors:
            raise ConfigError(errors)


class BatchDelivery(Generic[S]):
    """The deliveries of one call of a batch handler, in the order of its events. Do not use it after the call.

    Each item is settled by itself, by its own receive count. It counts as handled, unless the handler calls ``fail``
    for it, or raises, which fails all items.
    """

    __slots__ = ("_failures", "_publisher", "calls", "deliveries", "ids")

    def __init__(self, deliveries: Sequence[Delivery[S]], publisher: Publisher) -> None:
        self.deliveries = tuple(deliveries)
        self._publisher = publisher
        self._failures: dict[int, BaseException] = {}
        self.calls = 0
        self.ids: DerivedIds | None = None

    @property
    def log_fields(self) -> dict[str, Any]:
        """The fields of a log line: those of the first item, and the number of items."""
        return {**self.deliveries[0].log_fields, "items": len(self.deliveries)}

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.deliveries)

    @property
    def state(self) -> S:
        """The value that the service's ``lifespan`` yielded."""
        return self.deliveries[0].state

    def fail(self, index: int, error: BaseException) -> None:
        """Fail item *index*, as if a handler that was called with this item alone had raised *error*.

        ``Retry`` and ``Reject`` have the same meaning as when they are raised. The last call for an item counts.

        Raises:
            IndexError: There is no such item.
            TypeError: *index* is not a number, or *error* is not an exception.
        """
        if not isinstance(index, int):
            msg = f"fail({index!r}, ...): the first argument is the item's index, 0 to {len(self.deliveries) - 1}"
            raise TypeError(msg)
        if not 0 <= index < len(self.deliveries):
            msg = f"fail({index}, ...): the batch has items 0 to {len(self.deliveries) - 1}"
            raise IndexError(msg)
        if not isinstance(error, BaseException):
            msg = f"fail({index}, {error!r}): the reason must be an exception, as in Retry('why')"
            raise TypeError(msg)
        self._failures[index] = error

    def failure(self, index: int) -> BaseException | None:
        """Return the error that item *index* failed with, or None."""
        return self._failures.get(index)

    async def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish *event* as an effect of the whole batch, so without the id of a single event as its cause.

        Its id is derived from the handler and all events of the batch. It is the same again only if the same events are
        batched again. ``deliveries[i].publish`` continues the trace of one item and names it as the cause; its ids are
        the same at that item's next attempt, in any batch. See Publisher.publish for options and errors.
        """
        envelope, cause = current_envelope.set(None), current_cause.set(self)
        try:
            return await self._publisher.publish(event, **options)
        finally:
            current_cause.reset(cause)
            current_envelope.reset(envelope)

    def derive_ids(self) -> DerivedIds:
        """Return the ids of the events that this batch publishes, from the first on, for any order of its items."""
        return DerivedIds("batch", *sorted(compose(*item.cause) for item in self.deliveries), call=self.calls)
