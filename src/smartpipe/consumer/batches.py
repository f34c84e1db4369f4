"""Collects deliveries into batches for a batch handler, and gives each delivery the result of its item."""

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
    from smartpipe.delivery import Delivery
    from smartpipe.publisher.publisher import Publisher
    from smartpipe.telemetry.spans import Tracing

_Result: TypeAlias = "asyncio.Future[BaseException | None]"


class _PendingBatch:
    """The deliveries of one call of the handler. The call is cancelled when none of them waits any more."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Delivery, _Result]] = []
        self.task: asyncio.Task[None] | None = None

    def unfinished(self) -> list[tuple[Delivery, _Result]]:
        return [(delivery, result) for delivery, result in self.waiting if not result.done()]


class BatchCollector:
    """Collects the batches of one handler. Awaiting a call with a delivery returns, or raises, its item's result.

    A batch is started when it is full, ``linger_seconds`` after its first item, or at ``flush`` or ``close``.

    Args:
        tracing: Makes a span for each call of the handler; None: there are none.
        on_outcome: Called after each call of the handler: with None, or with a failure if every item has failed.
    """

    def __init__(
        self,
        handler: Handler,
        batch: Batch,
        invocation: Invocation,
        publisher: Publisher,
        *,
        on_outcome: Callable[[BaseException | None], None] = lambda _: None,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._handler = handler
        self._options = batch
        self._invocation = invocation
        self._publisher = publisher
        self._on_outcome = on_outcome
        concurrency = handler.options.concurrency
        self._calls = asyncio.Semaphore(concurrency) if concurrency else None
        self._on_timeout = invocation.make_canceller(handler, self._end_overdue)
        self._running: dict[asyncio.Task[Any], list[tuple[Delivery, _Result]]] = {}
        self._pending = _PendingBatch()
        self._timer: asyncio.TimerHandle | None = None
        self._lingering = True

    async def __call__(self, delivery: Delivery) -> None:
        """Wait for the batch that *delivery* is part of; raise the failure of its item."""
        loop = asyncio.get_running_loop()
        items, result = self._pending, loop.create_future()
        items.waiting.append((delivery, result))
        if len(items.waiting) >= self._options.size or not self._lingering:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_later(self._options.linger_seconds, self._start)
        try:
            error = await result
        except asyncio.CancelledError:
            # The batch runs in a task of its own, so it outlives a cancelled delivery, but not the last of them.
            if items.task is not None and not items.unfinished():
                items.task.cancel()
            raise
        if error is not None:
            raise error

    @property
    def pending(self) -> int:
        """The number of items that wait for their batch to fill."""
        return len(self._pending.unfinished())

    def list_pending(self) -> list[str]:
        """Return the ids of the messages of these items."""
        return [delivery.message.message_id for delivery, _ in self._pending.unfinished()]

    def flush(self) -> None:
        """Start the pending batch, although it is not full."""
        self._start()

    def close(self) -> None:
        """Start every batch immediately, now and from now on: no more messages will come to fill it."""
        self._lingering = False
        self._start()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items, self._pending = self._pending, _PendingBatch()
        if items.waiting:
            items.task = asyncio.get_running_loop().create_task(self._run(items))

    async def _run(self, items: _PendingBatch) -> None:
        current_envelope.set(None)  # the task has copied the context of the item that happened to fill the batch
        if self._calls is not None:
            await self._calls.acquire()
        live, task = items.unfinished(), cast("asyncio.Task[Any]", items.task)
        self._running[task] = live
        failures: Sequence[BaseException | None] = ()
        try:
            if live:
                failures = await self._call_handler(BatchDelivery([delivery for delivery, _ in live], self._publisher))
        except Exception as error:  # noqa: BLE001 - an internal error, which each item must get
            failures = [error] * len(live)
        finally:
            if self._running.pop(task, None) is not None:  # otherwise overdue, and its items have their results
                self._set_results(live, failures)

    async def _call_handler(self, batch: BatchDelivery) -> list[BaseException | None]:
        """Call the handler; return the failure or None of each item."""
        for delivery in batch.deliveries:
            delivery.calls += 1
        call = partial(self._invocation.call, self._handler, [delivery.event for delivery in batch.deliveries])
        seconds = self._handler.options.timeout_seconds
        limit = math.inf if seconds is None else seconds
        error: BaseException | None
        opened = None
        if self._tracing is not None:
            parents = [delivery.envelope.traceparent for delivery in batch.deliveries]
            opened = self._tracing.start_batch(self._handler.queue.name, self._handler.name, parents)
        try:
            error = await self._invocation.run(call, batch, limit, self._on_timeout)
        except asyncio.CancelledError as cancelled:  # by `__call__`, or raised by the handler
            error = cancelled
        if self._tracing is not None and opened is not None:
            self._tracing.end(opened, error)
        return [batch.failure(index) if error is None else error for index in range(len(batch))]

    def _end_overdue(self, task: asyncio.Task[Any], batch: BatchDelivery) -> None:
        """Fail the items of a batch whose handler does not end."""
        live = self._running.pop(task)
        error = HandlerTimeout("its batch ran into its timeout, and does not end", running=True)
        self._set_results(live, [error] * len(batch))

    def _set_results(self, live: list[tuple[Delivery, _Result]], failures: Sequence[BaseException | None]) -> None:
        if self._calls is not None:
            self._calls.release()
        if failures:
            self._on_outcome(None if None in failures else failures[0])
        for (_, result), failure in zip(live, failures, strict=False):
            if not result.done():
                result.set_result(failure)
