"""Calls a handler's function, on the loop or in a thread, and not for longer than it may take."""

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
"""An async handler may take this long to clean up after its cancellation; after that it is overdue."""


class HandlerTimeout(Exception):
    """A handler ran longer than its ``timeout_seconds``."""


class Deferred(Exception):
    """The delivery comes again, in *seconds*; nothing has failed, and no attempt is spent.

    Args:
        store_failed: The store could not be asked, so nothing may be received for a while.
        exhausted: This process has run out of something; ``seconds`` is the least time to wait.
    """

    def __init__(self, reason: str, seconds: float, *, store_failed: bool = False, exhausted: bool = False) -> None:
        self.seconds = seconds
        self.store_failed = store_failed
        self.exhausted = exhausted
        super().__init__(reason)


class Invocation:
    """Calls handlers; one for all of a queue's."""

    def __init__(self, threads: Threads, counts: Counters) -> None:
        self._threads = threads
        self._capacity = threads.capacity
        self._counts = counts
        self._timers = Timers()
        self._cancelled: dict[asyncio.Task[Any], tuple[str, float]] = {}  # handler and time, of calls still running

    async def call(self, handler: Handler, event: object, delivery: Cause) -> None:
        """Call the function with what its parameters want, and wait for it.

        Raises:
            ResourceExhausted: So many handler calls are overdue that no other may begin.
        """
        if self._capacity.full:
            raise ResourceExhausted(self._capacity.reasons[0])
        delivery.calls += 1
        arguments: list[Any] = [event]  # every handler takes it
        if len(handler.parameters) > 1:
            arguments = [
                event if wants == "event" else delivery if wants == "delivery" else handler.state[name]
                for name, wants, _ in handler.parameters
            ]
        if handler.is_async:
            result = await handler.function(*arguments)
        else:
            result = await self._threads.run(handler.function, arguments, self._abandoned, handler.name)
            if inspect.isawaitable(result):  # from a lambda, a partial or a wrapper that only looks sync
                result = await result
        if result is not None and (inspect.isgenerator(result) or inspect.isasyncgen(result)):
            msg = f"handler {handler.name} returned a generator, which nobody iterates: nothing of it has run"
            raise TypeError(msg)

    async def outcome_of(
        self,
        call: Callable[[T], Awaitable[None]],
        delivery: T,
        seconds: float,
        on_timeout: OnOverdue | None = None,
    ) -> BaseException | None:
        """Return what *call* raised of *delivery*, or None; cut off after *seconds*, it has failed by HandlerTimeout.

        A failure because a resource ran out is returned as Deferred. Raises nothing but the CancelledError of its
        own task, and KeyboardInterrupt.

        Args:
            on_timeout: Called when the time is up, from ``cancelling``; by default the task is cancelled.
        """
        current_cause.set(delivery)
        try:
            await self._timers.timeout(seconds, call, delivery, on_timeout)
        except TimerExpired:
            return HandlerTimeout(f"it ran longer than {seconds:g} s")
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return error  # the handler's own, not a shutdown: a failure like any other
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and a Rust panic too: the retry policy judges it
            return self.deferred(error) or error
        finally:
            if self._cancelled:
                self._ended()
        if self._capacity.strained:
            self._capacity.succeeded()
        return None

    def cancelling(self, handler: Handler, on_overdue: OnOverdue) -> OnOverdue:
        """Return a function that cancels a call of *handler* at its timeout, for ``outcome_of``.

        Args:
            on_overdue: Called with the task and the delivery if the call has not ended 5 s later. It settles the
                message; the task is left to itself.
        """
        return partial(self._cancel, handler, on_overdue)

    def close(self) -> None:
        """Stop its timer."""
        self._timers.close()

    def deferred(self, error: BaseException) -> Deferred | None:
        """Return a Deferred if a resource ran out; None for other failures, and if the handler itself decided."""
        if isinstance(error, Deferred):
            return error  # of a batch
        resource = None if isinstance(error, (Retry, Reject)) else exhausted_resource(error)
        if resource is None:
            return None
        if isinstance(error, ResourceExhausted):
            reason = str(error)
        else:
            self._capacity.ran_out(resource)
            reason = f"this process has run out of {resource}: {describe_error(error)}"
        deferred = Deferred(reason, 1.0, exhausted=True)
        deferred.__cause__ = error
        return deferred

    def _cancel(self, handler: Handler, on_overdue: OnOverdue, task: asyncio.Task[Any], delivery: Any) -> None:
        self._cancelled[task] = handler.name, self._timers.loop.time()
        task.cancel()
        self._timers.call_later(CANCEL_GRACE_SECONDS, partial(self._check_ended, on_overdue, task, delivery))

    def _check_ended(self, on_overdue: OnOverdue, task: asyncio.Task[Any], delivery: Any) -> None:
        if task not in self._cancelled:
            return
        name, cancelled_at = self._cancelled[task]
        self._counts.not_ended += 1
        log.error(
            "Handler %s does not end although it was cancelled %.0f s ago, at its timeout. It is left to itself, and "
            "its slot is free; its message counts as timed out",
            name,
            self._timers.loop.time() - cancelled_at,
            extra={"fields": delivery.log_fields},
        )
        self._capacity.add(task, name)
        on_overdue(task, delivery)

    def _ended(self) -> None:
        task = asyncio.current_task()
        name, cancelled_at = self._cancelled.pop(cast("asyncio.Task[Any]", task), ("", 0.0))
        if self._capacity.remove(task):
            seconds = self._timers.loop.time() - cancelled_at
            log.warning("Handler %s has ended at last, %.0f s after it was cancelled at its timeout", name, seconds)

    def _abandoned(self) -> None:
        self._counts.abandoned_threads += 1
