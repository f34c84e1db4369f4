"""What became of messages and requests, counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Counts since the process started.

    Args:
        received: Deliveries taken from the queue.
        handled: Deliveries whose handlers all returned.
        ignored: Events of an unknown type that the service ignores.
        retried: Deliveries that failed and were given back to the queue.
        deferred: Deliveries given back although nothing has failed: their effect was under way elsewhere, the
            idempotency store could not be asked, or this process had run out of a resource.
        halted: Deliveries that stop their FIFO group, as its retry policy asks.
        dead_lettered: Messages moved to the dead-letter queue, with a reason.
        released: Deliveries given back unhandled, because the worker was stopping or because a message
            before them in their FIFO group has to be tried again first.
        cancelled: Handlers cancelled because the drain's budget was over.
        lease_lost: Deliveries whose lease ran out while they were being handled.
        not_deleted: Finished messages that could not be deleted, and will be delivered again.
        not_ended: Async handlers that did not end although they were cancelled at their timeout.
        abandoned_threads: Sync handlers that ran into their timeout; their threads still run.
        deduplicated: Calls of idempotent handlers that were left out, because their effect had happened.
        fenced: Calls of idempotent handlers whose claim had gone to another worker when they returned.
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

    def as_dict(self) -> dict[str, int]:
        """Return the counts that are not zero."""
        return _not_zero(self)


@dataclass(slots=True)
class TransportCounters:
    """What a transport noticed, since it was made.

    Args:
        damaged: Messages whose body did not have the MD5 sum that the queue says, left to come again.
        resent: Requests sent once more, because their kept connection turned out to be closed. The first may have
            arrived: on a standard topic or queue each may have made a duplicate.
    """

    damaged: int = 0
    resent: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts that are not zero."""
        return _not_zero(self)


def _not_zero(counts: Counters | TransportCounters) -> dict[str, int]:
    return {name: count for name, count in asdict(counts).items() if count}
