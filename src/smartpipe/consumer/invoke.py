"""Calls a handler's function, on the event loop or in a thread, with a time limit."""

from __future__ import annotations

import asyncio
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from smartpipe.batching.timers import TimerExpired, Timers
from smartpipe.consumer.decide import describe_error
from smartpipe.envelope.ids import Cause, current_cause
from smartpipe.errors import Reject, Retry
from smartpipe.exhaustion import ResourceExhausted, exhausted_resource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smartpipe.consumer.handlers import Handler
    from smartpipe.consumer.threads import Threads
    from smartpipe.counters import Counters

log = logging.getLogger("smartpipe.consumer")

T = TypeVar("T", bound=Cause)

OnOverdue: TypeAlias = "Callable[[asyncio.Task[Any], Any], None]"

CANCEL_GRACE_SECONDS = 5.0
"""The time that an async handler has to clean up after its cancellation. After that it is overdue."""


class HandlerTimeout(Exception):
    """A handler ran longer than its ``timeout_seconds``.

    Args:
        running: It was cancelled, and is still running.
    """

    def __init__(self, reason: str, *, running: bool = False) -> None:
        self.running = running
        super().__init__(reason)


class NotHandledYet(Exception):
    """The message will be delivered again in *seconds*. Nothing has failed, and no attempt is used up.

    Args:
        store_failed: The idempotency store is unavailable, so receiving should stop for a while.
        exhausted: This process has run out of a resource; ``seconds`` is the minimum wait.
    """

    def __init__(self, reason: str, seconds: float, *, store_failed: bool = False, exhausted: bool = False) -> None:
        self.seconds = seconds
        self.store_failed = store_failed
        self.exhausted = exhausted
        super().__init__(reason)


class Invocation:
    """Calls the handlers of one queue."""

    def __init__(self, threads: Threads, counters: Counters) -> None:
        self._threads = threads
        self._capacity = threads.capacity
        self._counters = counters
        self._timers = Timers()
        self._cancelled_tasks: dict[asyncio.Task[Any], tuple[str, float]] = {}  # still running, with handler and time

    async def call(self, handler: Handler, event: object, delivery: Cause) -> None:
        """Call the handler's function with the arguments that its parameters ask for, and wait for it.

        Raises:
            ResourceExhausted: Too many handler calls are overdue, so no other may begin.
        """
        if self._capacity.full:
            raise ResourceExhausted(self._capacity.reasons[0])
        delivery.calls += 1
        arguments: list[Any] = [event]  # every handler takes it
        if len(handler.parameters) > 1:
            arguments = [
                event if kind == "event" else delivery if kind == "delivery" else handler.state[name]
                for name, kind, _ in handler.parameters
            ]
        if handler.is_async:
            result = await handler.function(*arguments)
        else:
            result = await self._threads.run(handler.function, arguments, self._count_abandoned, handler.name)
            if inspect.isawaitable(result):  # of a lambda, a partial or a wrapper, which are not coroutine functions
                result = await result
        if result is not None and (inspect.isgenerator(result) or inspect.isasyncgen(result)):
            msg = f"handler {handler.name} returned a generator, which is never iterated: none of its code has run"
            raise TypeError(msg)

    async def run(
        self,
        call: Callable[[T], Awaitable[None]],
        delivery: T,
        seconds: float,
        on_timeout: OnOverdue | None = None,
    ) -> BaseException | None:
        """Run *call* with *delivery*; return its failure or None, and HandlerTimeout if *seconds* were not enough.

        If a resource ran out, return a NotHandledYet. Raise nothing but the CancelledError of this task, and
        KeyboardInterrupt.

        Args:
            on_timeout: Called at the timeout; see ``make_canceller``. By default the task is cancelled.
        """
        token = current_cause.set(delivery)
        try:
            await self._timers.timeout(seconds, call, delivery, on_timeout)
        except TimerExpired:
            return HandlerTimeout(f"it ran longer than {seconds:g} s")
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return error  # the handler raised it, and nothing is shutting down: a failure like any other
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and a Rust panic too: the retry policy decides
            return self.defer_if_exhausted(error) or error
        finally:
            current_cause.reset(token)  # the task may decode the next message of a FIFO group
            if self._cancelled_tasks:
                self._end_cancelled()
        if self._capacity.strained:
            self._capacity.record_success()
        return None

    def make_canceller(self, handler: Handler, on_overdue: OnOverdue) -> OnOverdue:
        """Return a function for ``run`` that cancels a call of *handler* at its timeout.

        Args:
            on_overdue: Called with the task and the delivery if the call has not ended 5 s later. It must settle the
                message; the task is abandoned.
        """
        return partial(self._cancel, handler, on_overdue)

    def close(self) -> None:
        """Stop the timer."""
        self._timers.close()

    def defer_if_exhausted(self, error: BaseException) -> NotHandledYet | None:
        """Return a NotHandledYet if a resource ran out; None for other failures, and for ``Retry`` and ``Reject``."""
        if isinstance(error, NotHandledYet):
            return error  # the failure of an item, which its batch has deferred
        resource = None if isinstance(error, (Retry, Reject)) else exhausted_resource(error)
        if resource is None:
            return None
        if isinstance(error, ResourceExhausted):
            reason = str(error)
        else:
            self._capacity.record_shortage(resource)
            reason = f"this process has run out of {resource}: {describe_error(error)}"
        deferred = NotHandledYet(reason, 1.0, exhausted=True)
        deferred.__cause__ = error
        return deferred

    def _cancel(self, handler: Handler, on_overdue: OnOverdue, task: asyncio.Task[Any], delivery: Any) -> None:
        self._cancelled_tasks[task] = handler.name, self._timers.loop.time()
        task.cancel()
        self._timers.call_later(CANCEL_GRACE_SECONDS, partial(self._check_ended, on_overdue, task, delivery))

    def _check_ended(self, on_overdue: OnOverdue, task: asyncio.Task[Any], delivery: Any) -> None:
        if task not in self._cancelled_tasks:
            return
        name, cancelled_at = self._cancelled_tasks[task]
        self._counters.not_ended += 1
        log.error(
            "Handler %s does not end although it was cancelled %.0f s ago, at its timeout. It is left running, and its "
            "slot is free. Its message counts as timed out",
            name,
            self._timers.loop.time() - cancelled_at,
            extra={"fields": delivery.log_fields},
        )
        self._capacity.add(task, name)
        on_overdue(task, delivery)

    def _end_cancelled(self) -> None:
        task = asyncio.current_task()
        name, cancelled_at = self._cancelled_tasks.pop(cast("asyncio.Task[Any]", task), ("", 0.0))
        if self._capacity.remove(task):
            seconds = self._timers.loop.time() - cancelled_at
            log.warning("Handler %s has now ended, %.0f s after it was cancelled at its timeout", name, seconds)

    def _count_abandoned(self) -> None:
        self._counters.abandoned_threads += 1
