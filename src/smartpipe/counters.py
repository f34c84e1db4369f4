"""Counters of messages and requests, which health endpoints and metrics report."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smartpipe.telemetry.queue_histograms import QueueHistograms


@dataclass(slots=True)
class Counters:
    """Counts since the process started.

    Args:
        received: Deliveries received from the queue.
        handled: Deliveries whose handlers all returned.
        ignored: Events of an unknown type that the service ignores.
        retried: Deliveries that failed and were returned to the queue.
        deferred: Deliveries that were returned to the queue although nothing has failed: another worker was handling
            the event, the idempotency store was unavailable, or this process had run out of a resource.
        halted: Deliveries that stopped their FIFO group, as its retry policy says.
        dead_lettered: Messages moved to the dead-letter queue, with a reason.
        released: Deliveries that were returned to the queue unhandled, because the worker was stopping, or because a
            message before them in their FIFO group has to be retried first.
        cancelled: Handlers that were cancelled because the time of the drain was over.
        lease_lost: Deliveries whose lease ran out while they were being handled.
        not_deleted: Handled messages that could not be deleted, and will be delivered again.
        not_ended: Async handlers that did not end although they were cancelled at their timeout.
        abandoned_threads: Sync handlers that ran into their timeout. Their threads were still running then.
        deduplicated: Calls of idempotent handlers that were skipped, because the event had been handled.
        fenced: Calls of idempotent handlers that returned after another worker had taken over their claim.
        histograms: Times and attempts; None: they are not recorded.
    """

    received: int = 0
    handled: int = 0
    ignored: int = 0
    retried: int = 0
    deferred: int = 0
    halted: int = 0
    dead_lettered: int = 0
    released: int = 0
    cancelled: int = 0
    lease_lost: int = 0
    not_deleted: int = 0
    not_ended: int = 0
    abandoned_threads: int = 0
    deduplicated: int = 0
    fenced: int = 0
    histograms: QueueHistograms | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, int]:
        """Return the counts that are not zero."""
        return _not_zero(self)


@dataclass(slots=True)
class TransportCounters:
    """Counts of a transport since it was created.

    Args:
        damaged: Messages whose body did not match the MD5 sum from SQS. They were left for redelivery.
        resent: Requests that were sent again because their kept connection turned out to be closed. The first one may
            have arrived, so each may have made a duplicate on a standard topic or queue.
    """

    damaged: int = 0
    resent: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts that are not zero."""
        return _not_zero(self)


def counts_of(counters: Counters | TransportCounters) -> dict[str, int]:
    """Return all counts by name."""
    return {one.name: getattr(counters, one.name) for one in fields(counters) if one.name != "histograms"}


def _not_zero(counters: Counters | TransportCounters) -> dict[str, int]:
    return {name: count for name, count in counts_of(counters).items() if count}
