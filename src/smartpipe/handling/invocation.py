"""Calls a handler's function, on the loop or in a thread, and not for longer than it may take."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, TypeVar

from smartpipe.deadlines import Deadlines, TimeIsUp
from smartpipe.envelope.ids import Cause, current_cause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smartpipe.counts import Counts
    from smartpipe.handling.handlers import Handler
    from smartpipe.handling.threads import Threads

T = TypeVar("T", bound=Cause)


class HandlerTimeout(Exception):
    """A handler ran longer than its ``timeout_seconds``."""


class Invocation:
    """Calls handlers; one for all of a queue's."""

    def __init__(self, threads: Threads, counts: Counts) -> None:
        self._threads = threads
        self._counts = counts
        self._deadlines = Deadlines()

    async def call(self, handler: Handler, event: object, delivery: Cause) -> None:
        """Call the function with what its parameters want, and wait for it."""
        delivery.calls += 1
        arguments = handler.arguments(event, delivery)
        if handler.is_async:
            result = await handler.function(*arguments)
        else:
            result = await self._threads.run(handler.function, arguments, self._abandoned)
            if inspect.isawaitable(result):  # from a lambda, a partial or a wrapper that only looks sync
                result = await result
        if result is not None and (inspect.isgenerator(result) or inspect.isasyncgen(result)):
            msg = f"handler {handler.name} returned a generator, which nobody iterates: nothing of it has run"
            raise TypeError(msg)

    async def outcome_of(
        self, call: Callable[[T], Awaitable[None]], delivery: T, seconds: float
    ) -> BaseException | None:
        """Return what *call* raised of *delivery*, or None; cut off after *seconds*, it has failed by HandlerTimeout.

        Raises nothing but the CancelledError of its own task, and KeyboardInterrupt.
        """
        current_cause.set(delivery)
        try:
            await self._deadlines.within(seconds, call, delivery)
        except TimeIsUp:
            return HandlerTimeout(f"it ran longer than {seconds:g} s")
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return error  # the handler's own, not a shutdown: a failure like any other
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and a Rust panic too: the retry policy judges it
            return error
        return None

    def close(self) -> None:
        """Stop its timer."""
        self._deadlines.close()

    def _abandoned(self) -> None:
        self._counts.abandoned_threads += 1
