"""Puts single deliveries together for a batch handler, and tells each what became of its item."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from smartpipe.batch import Batch, BatchDelivery
from smartpipe.consumer.invoke import HandlerTimeout
from smartpipe.envelope.encode import current_envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.consumer.handlers import Handler
    from smartpipe.consumer.invoke import Invocation
    from smartpipe.delivery import Delivery, Publishes

_Fate: TypeAlias = "asyncio.Future[BaseException | None]"


class _Items:
    """What one call of the handler gets; the call is given up when nobody waits for any item any more."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Delivery, _Fate]] = []
        self.task: asyncio.Task[None] | None = None

    def live(self) -> list[tuple[Delivery, _Fate]]:
        return [(delivery, fate) for delivery, fate in self.waiting if not fate.done()]


class BatchCollector:
    """The batches of one handler. Calling it with a delivery returns, or raises, what became of that one.

    A batch goes out when it is full, or ``linger_seconds`` after its first item, or at ``flush`` or ``close``.

    Args:
        on_outcome: Told of each call how it ended: None, unless every item has failed.
    """

    def __init__(
        self,
        handler: Handler,
        batch: Batch,
        invocation: Invocation,
        publisher: Publishes,
        *,
        on_outcome: Callable[[BaseException | None], None] = lambda _: None,
    ) -> None:
        self._handler = handler
        self._batch = batch
        self._invocation = invocation
        self._publisher = publisher
        self._on_outcome = on_outcome
        concurrency = handler.options.concurrency
        self._room = asyncio.Semaphore(concurrency) if concurrency else None
        self._on_timeout = invocation.cancelling(handler, self._overdue)
        self._running: dict[asyncio.Task[Any], list[tuple[Delivery, _Fate]]] = {}
        self._items = _Items()
        self._timer: asyncio.TimerHandle | None = None
        self._lingering = True

    async def __call__(self, delivery: Delivery) -> None:
        """Wait for the batch that *delivery* is put into; raise what its item failed by."""
        loop = asyncio.get_running_loop()
        items, fate = self._items, loop.create_future()
        items.waiting.append((delivery, fate))
        if len(items.waiting) >= self._batch.size or not self._lingering:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_later(self._batch.linger_seconds, self._start)
        try:
            error = await fate
        except asyncio.CancelledError:
            if items.task is not None and not items.live():
                items.task.cancel()
            raise
        if error is not None:
            raise error

    @property
    def gathered(self) -> int:
        """How many items wait for others."""
        return len(self._items.live())

    def flush(self) -> None:
        """Let what is gathered go out."""
        self._start()

    def close(self) -> None:
        """Let no item wait for others any more, now or later: no more messages will come."""
        self._lingering = False
        self._start()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items, self._items = self._items, _Items()
        if items.waiting:
            items.task = asyncio.get_running_loop().create_task(self._run(items))

    async def _run(self, items: _Items) -> None:
        current_envelope.set(None)  # not that of the item which happened to fill the batch
        if self._room is not None:
            await self._room.acquire()
        live, task = items.live(), cast("asyncio.Task[Any]", items.task)
        self._running[task] = live
        failures: Sequence[BaseException | None] = ()
        try:
            if live:
                failures = await self._failures(BatchDelivery([delivery for delivery, _ in live], self._publisher))
        finally:
            if self._running.pop(task, None) is not None:  # else overdue: its items have been settled
                self._end(live, failures)

    async def _failures(self, batch: BatchDelivery) -> list[BaseException | None]:
        """Call the handler; return the failure of each item."""
        for delivery in batch.deliveries:
            delivery.calls += 1
        call = partial(self._invocation.call, self._handler, [delivery.event for delivery in batch.deliveries])
        seconds = self._handler.options.timeout_seconds
        limit = math.inf if seconds is None else seconds
        error: BaseException | None
        try:
            error = await self._invocation.outcome_of(call, batch, limit, self._on_timeout)
        except asyncio.CancelledError as cancelled:  # by us, with nobody waiting; or by the handler itself
            error = cancelled
        return [batch.failure(index) if error is None else error for index in range(len(batch))]

    def _overdue(self, task: asyncio.Task[Any], batch: BatchDelivery) -> None:
        """Let the items of a batch go whose handler does not end."""
        live = self._running.pop(task)
        self._end(live, [HandlerTimeout("its batch ran into its timeout, and does not end")] * len(batch))

    def _end(self, live: list[tuple[Delivery, _Fate]], failures: Sequence[BaseException | None]) -> None:
        if self._room is not None:
            self._room.release()
        if failures:
            self._on_outcome(None if None in failures else failures[0])
        for (_, fate), failure in zip(live, failures, strict=False):
            if not fate.done():
                fate.set_result(failure)
