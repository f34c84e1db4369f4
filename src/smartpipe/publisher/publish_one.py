"""Events that are published one by one, on their way: gathered into requests, and each told of its own fate."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from smartpipe.batching.batcher import Batcher, Chunker
from smartpipe.errors import PublishError
from smartpipe.message import Failure
from smartpipe.publisher.publish_many import MAX_IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Collection

    from smartpipe.batching.timers import Timers
    from smartpipe.errors import PublishFailure
    from smartpipe.publisher.prepare import Destination, Outgoing

_CLOSED_TOO_SOON = Failure(0, "DeadlineExceeded", "the publisher was closed before SNS answered", retryable=True)


class Deliver(Protocol):
    """What sends a chunk for one destination, again and again for so many seconds, and returns what was not taken."""

    async def __call__(self, chunk: list[Outgoing], deadline_seconds: float) -> list[tuple[Outgoing, PublishFailure]]:
        """Send."""


class _Waiting:
    """A single publish: the message, who waits for its fate, and until when it is tried."""

    __slots__ = ("deadline", "failure", "future", "outgoing")

    def __init__(self, outgoing: Outgoing, future: asyncio.Future[None], deadline: float) -> None:
        self.outgoing = outgoing
        self.future = future
        self.deadline = deadline
        self.failure: PublishFailure | None = None

    def settle(self, failure: PublishFailure | None) -> None:
        """Tell whoever waits, unless told or gone already."""
        if not self.future.done():
            self.failure = failure
            self.future.set_result(None)


class SinglePublisher:
    """Publishes single events, several to a request. It belongs to one event loop.

    Args:
        timers: The loop's.
        linger_seconds: How long an event waits for others to share its request.
        deadline_seconds: For how long each is tried.
    """

    def __init__(self, deliver: Deliver, timers: Timers, *, linger_seconds: float, deadline_seconds: float) -> None:
        self.timers = timers
        self._deliver = deliver
        self._linger_seconds = linger_seconds
        self._deadline_seconds = deadline_seconds
        self._batchers: dict[Destination, Batcher[_Waiting]] = {}
        self._waiting: dict[_Waiting, None] = {}  # a set that keeps its order

    async def publish(self, outgoing: Outgoing) -> None:
        """Publish, and wait for the answer. Cancelled, it is withdrawn if its request has not started.

        Raises:
            PublishError: It was refused, or could not be sent in time.
        """
        loop = self.timers.loop
        waiting = _Waiting(outgoing, loop.create_future(), loop.time() + self._deadline_seconds)
        self._waiting[waiting] = None
        try:
            self._batcher(outgoing.destination).add(waiting)
            await waiting.future
        finally:
            del self._waiting[waiting]
        if waiting.failure is not None:
            raise PublishError([waiting.failure])

    async def drain(self, others: Collection[asyncio.Future[None]], timeout_seconds: float) -> list[PublishFailure]:
        """Send what is being gathered, wait for it and for *others*; give up the rest, and return what failed."""
        waiting = list(self._waiting)
        drains = [asyncio.ensure_future(batcher.drain()) for batcher in self._batchers.values()]
        try:
            if drains or others:
                await asyncio.wait([*drains, *others], timeout=timeout_seconds)
        finally:
            for pending in drains:
                pending.cancel()
            for one in waiting:
                one.settle(one.outgoing.failed(_CLOSED_TOO_SOON))
        return [one.failure for one in waiting if one.failure is not None]

    def _batcher(self, destination: Destination) -> Batcher[_Waiting]:
        batcher = self._batchers.get(destination)
        if batcher is None:
            batcher = self._batchers[destination] = Batcher(
                self._send,
                self.timers,
                linger_seconds=self._linger_seconds,
                chunker=Chunker(
                    destination.limit_bytes,
                    lambda waiting: waiting.outgoing.message.size_bytes,
                    (lambda waiting: waiting.outgoing.ordered_group) if destination.fifo else None,
                ),
                max_in_flight=MAX_IN_FLIGHT,
            )
        return batcher

    async def _send(self, batch: list[_Waiting]) -> None:
        wanted = [waiting for waiting in batch if not waiting.future.done()]
        if not wanted:
            return
        seconds = max(0.0, wanted[0].deadline - self.timers.loop.time())
        try:
            failures = await self._deliver([waiting.outgoing for waiting in wanted], seconds)
        except Exception as error:  # noqa: BLE001 - a bug must reach those who wait, not only a log
            for waiting in wanted:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        # Two of them may have one event id, as what a handler publishes for two copies of an event has.
        failed = {id(outgoing): failure for outgoing, failure in failures}
        for waiting in wanted:
            waiting.settle(failed.get(id(waiting.outgoing)))
