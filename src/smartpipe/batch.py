"""Batches of deliveries: how a batch handler gets them, and what it sees of them besides the events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from smartpipe.envelope.encode import current_envelope
from smartpipe.envelope.ids import DerivedIds, current_cause
from smartpipe.errors import ConfigError
from smartpipe.keys import compose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.delivery import Delivery, Publishes
    from smartpipe.events import Event
    from smartpipe.options import PublishOptions

MAX_SIZE = 1_000
MAX_LINGER_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Batch:
    """How events are put together for a batch handler, over several receives.

    Args:
        size: At most so many events in one call: 1 to 1,000. The queue's consumer holds at least so
            many messages at once, whatever its concurrency; that goes for the other handlers on the queue
            too, unless they have a ``concurrency`` of their own.
        linger_seconds: A batch that is not full goes out so long after its first event: 0 to 300.

    Raises:
        ConfigError: A value outside its range.
    """

    size: int = 100
    linger_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Check everything, and report it together."""
        problems = []
        if not 1 <= self.size <= MAX_SIZE:
            problems.append(f"Batch: size={self.size} is outside of 1 to {MAX_SIZE:,}")
        if not 0 <= self.linger_seconds <= MAX_LINGER_SECONDS:
            problems.append(f"Batch: linger_seconds={self.linger_seconds} is outside of 0 to {MAX_LINGER_SECONDS}")
        if problems:
            raise ConfigError(problems)


class BatchDelivery:
    """The deliveries of one call of a batch handler, in the order of its events. Of no use after it has returned.

    Each item settles by itself, by its own receive count: done, unless the handler says ``fail`` of it
    or raises, which fails all of them.
    """

    __slots__ = ("_failures", "_publisher", "calls", "deliveries", "ids")

    def __init__(self, deliveries: Sequence[Delivery], publisher: Publishes) -> None:
        self.deliveries = tuple(deliveries)
        self._publisher = publisher
        self._failures: dict[int, BaseException] = {}
        self.calls = 0
        self.ids: DerivedIds | None = None

    @property
    def log_fields(self) -> dict[str, Any]:
        """Return the first item's fields for a log, and the number of items."""
        return {**self.deliveries[0].log_fields, "items": len(self.deliveries)}

    def __len__(self) -> int:
        """Return how many events there are."""
        return len(self.deliveries)

    @property
    def state(self) -> Any:
        """What the service's ``lifespan`` yielded."""
        return self.deliveries[0].state

    def fail(self, index: int, error: BaseException) -> None:
        """Say that item *index* has failed: as if a handler of its own had raised *error*.

        ``Retry`` and ``Reject`` mean what they mean when raised. The last word on an item counts.

        Raises:
            IndexError: There is no such item.
            TypeError: *index* is no number, or *error* no exception.
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
        """Return what was said of item *index*."""
        return self._failures.get(index)

    async def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish *event* as one that the whole batch caused, so without a cause; see Publisher.publish.

        Its id is derived from the handler and all events of the batch: it is the same again only if the same events
        come together again. ``deliveries[i].publish`` carries on the trace and causation of one item, and its ids are
        the same at that item's next attempt, in whichever batch.
        """
        envelope, cause = current_envelope.set(None), current_cause.set(self)
        try:
            return await self._publisher.publish(event, **options)
        finally:
            current_cause.reset(cause)
            current_envelope.reset(envelope)

    def derive_ids(self) -> DerivedIds:
        """Return the ids of what this batch publishes, from the first on; the order of its items does not matter."""
        return DerivedIds("batch", *sorted(compose(*item.cause) for item in self.deliveries), call=self.calls)
