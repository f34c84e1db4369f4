"""Publishes single events: several share a request, and each caller gets the result of its own event."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from smartpipe.batching.batcher import Batcher, Chunker
from smartpipe.errors import PublishError
from smartpipe.message import Failure
from smartpipe.publisher.publish_many import MAX_IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from smartpipe.batching.timers import Timers
    from smartpipe.errors import PublishFailure
    from smartpipe.publisher.prepare import Destination, PreparedEvent

SendUntil: TypeAlias = "Callable[[list[PreparedEvent], float], Awaitable[list[tuple[PreparedEvent, PublishFailure]]]]"
"""Sends a chunk for one destination, retrying for the given number of seconds, and returns the failures."""

MAX_LINGER_SECONDS = 0.005
_CLOSED_TOO_SOON = Failure(0, "DeadlineExceeded", "the publisher was closed before SNS answered", retryable=True)


class _PendingPublish:
    """A call of ``publish``: the event, the future that the caller awaits, and the deadline."""

    __slots__ = ("deadline", "failure", "future", "prepared")

    def __init__(self, prepared: PreparedEvent, future: asyncio.Future[None], deadline: float) -> None:
        self.prepared = prepared
        self.future = future
        self.deadline = deadline
        self.failure: PublishFailure | None = None

    def finish(self, failure: PublishFailure | None) -> None:
        """Wake the caller, unless it has its result already or was cancelled."""
        if not self.future.done():
            self.failure = failure
            self.future.set_result(None)


class SinglePublisher:
    """Publishes single events, several to a request. It belongs to one event loop.

    Args:
        timers: The timers of that loop.
        linger_seconds: How long an event waits for others to share its request; None: while another request is open,
            and ``MAX_LINGER_SECONDS`` at most.
        deadline_seconds: How long the sending of each event is retried.
    """

    def __init__(
        self, send_chunk: SendUntil, timers: Timers, *, linger_seconds: float | None, deadline_seconds: float
    ) -> None:
        self.timers = timers
        self._send_chunk = send_chunk
        self._linger_seconds = linger_seconds
        self._deadline_seconds = deadline_seconds
        # By class and name: a queue may be named here and declared with options there, and it has one order.
        self._batchers: dict[tuple[type[Destination], str], Batcher[_PendingPublish]] = {}
        self._pending: dict[_PendingPublish, None] = {}  # a set that keeps its order

    async def publish(self, prepared: PreparedEvent) -> None:
        """Publish the event, and wait for the result. If cancelled, withdraw it unless its request has started.

        Raises:
            PublishError: The service refused the event, or it could not be sent in time.
        """
        loop = self.timers.loop
        pending = _PendingPublish(prepared, loop.create_future(), loop.time() + self._deadline_seconds)
        self._pending[pending] = None
        try:
            self._batcher(prepared.destination).add(pending)
            await pending.future
        finally:
            del self._pending[pending]
        if pending.failure is not None:
            raise PublishError([pending.failure])

    async def drain(self, others: Collection[asyncio.Future[None]], timeout_seconds: float) -> list[PublishFailure]:
        """Send the pending events, and wait for them and for *others*. Fail the rest, and return all failures."""
        pending = list(self._pending)
        drains = [asyncio.ensure_future(batcher.drain()) for batcher in self._batchers.values()]
        try:
            if drains or others:
                await asyncio.wait([*drains, *others], timeout=timeout_seconds)
        finally:
            for drain in drains:
                drain.cancel()
            for one in pending:
                one.finish(one.prepared.make_failure(_CLOSED_TOO_SOON))
        return [one.failure for one in pending if one.failure is not None]

    def _batcher(self, destination: Destination) -> Batcher[_PendingPublish]:
        key = destination.__class__, destination.name
        batcher = self._batchers.get(key)
        if batcher is None:
            batcher = self._batchers[key] = Batcher(
                self._send,
                self.timers,
                linger_seconds=MAX_LINGER_SECONDS if self._linger_seconds is None else self._linger_seconds,
                group_commit=self._linger_seconds is None,
                chunker=Chunker(
                    destination.limit_bytes,
                    lambda pending: pending.prepared.message.size_bytes,
                    (lambda pending: pending.prepared.message.group_id) if destination.fifo else None,
                ),
                max_in_flight=MAX_IN_FLIGHT,
            )
        return batcher

    async def _send(self, batch: list[_PendingPublish]) -> None:
        wanted = [pending for pending in batch if not pending.future.done()]  # the others were cancelled
        if not wanted:
            return
        seconds = max(0.0, wanted[0].deadline - self.timers.loop.time())
        try:
            failures = await self._send_chunk([pending.prepared for pending in wanted], seconds)
        except Exception as error:  # noqa: BLE001 - an internal error must reach the callers, not only a log
            for pending in wanted:
                if not pending.future.done():
                    pending.future.set_exception(error)
            return
        # By identity: two events may have one id, if a handler publishes the same for two copies of an event.
        failed = {id(prepared): failure for prepared, failure in failures}
        for pending in wanted:
            pending.finish(failed.get(id(pending.prepared)))
