"""Middleware: functions around a delivery to a handler, or around the publication of an event. One shape for both.

``async def middleware(x, call_next): ...`` where *x* is a Delivery or a Publication, and ``await
call_next(x)`` goes on inwards. What it raises is what a handler, or a publish, would have raised. A
delivery whose middleware returns without calling it is done with, as if its handler had returned; a
publication's must return the event's id, which comes from further in, or raise.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from smartpipe.errors import ConfigError
from smartpipe.events import contract_of
from smartpipe.names import name_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.delivery import Delivery
    from smartpipe.publisher.prepare import Publication

T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P", bound="Delivery | Publication")

Next: TypeAlias = "Callable[[T], Awaitable[R]]"
Middleware: TypeAlias = "Callable[[T, Next[T, R]], Awaitable[R]]"


def compose(middleware: Sequence[Middleware[T, R]], innermost: Next[T, R]) -> Next[T, R]:
    """Wrap *innermost*; the first middleware is the outermost."""
    for one in reversed(middleware):
        innermost = _around(innermost, one)
    return innermost


def validate_middleware(middleware: Sequence[Middleware[T, R]], whose: str) -> tuple[Middleware[T, R], ...]:
    """Return *middleware* as a tuple.

    Raises:
        ConfigError: It is no list of functions.
    """
    if callable(middleware) or not all(callable(one) for one in middleware):
        msg = f"{whose}: middleware={middleware!r} must be a list of functions, async def middleware(x, call_next)"
        raise ConfigError(msg)
    return tuple(middleware)


def _around(inner: Next[T, R], middleware: Middleware[T, R]) -> Next[T, R]:
    async def call(x: T) -> R:
        begun: list[Awaitable[R]] = []

        def call_next(y: T) -> Awaitable[R]:
            begun.append(inner(y))
            return begun[-1]

        result = await middleware(x, call_next)
        for one in begun:
            if inspect.iscoroutine(one) and inspect.getcoroutinestate(one) == inspect.CORO_CREATED:
                one.close()
                raise TypeError(  # what is further in has not run, and must not count as done
                    f"middleware {name_of(middleware)} called call_next but did not await it: write await call_next(x)"
                )
        return result

    return call


class Logging:
    """Logs each delivery, or publication, when it has ended: what, whether it failed, and how long it took.

    Args:
        level: Of the line of a success; a failure's is a warning.
        logger: By default ``smartpipe.middleware``.
    """

    def __init__(self, level: int = logging.INFO, *, logger: logging.Logger | None = None) -> None:
        self._level = level
        self._log = logger or logging.getLogger("smartpipe.middleware")

    async def __call__(self, x: P, call_next: Next[P, R]) -> R:
        """Go on inwards, and log how it ended."""
        started = time.perf_counter()
        try:
            result = await call_next(x)
        except Exception as error:
            self._log.warning("failed: %s", type(error).__name__, extra=self._fields(x, started))
            raise
        if self._log.isEnabledFor(self._level):
            self._log.log(self._level, "%s", x.done, extra=self._fields(x, started))
        return result

    @staticmethod
    def _fields(x: Delivery | Publication, started: float) -> dict[str, object]:
        fields = {"event_type": contract_of(type(x.event)).type, **x.log_fields}
        return {"fields": {**fields, "seconds": round(time.perf_counter() - started, 6)}}


class Timeout:
    """Cancels what is further in after *seconds*, and raises TimeoutError: a failure like any other.

    A sync handler's thread cannot be cancelled: it is left to itself, and counted as abandoned.

    Raises:
        ConfigError: *seconds* is not above 0.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            msg = f"Timeout({seconds}): seconds must be above 0"
            raise ConfigError(msg)
        self._seconds = seconds

    async def __call__(self, x: T, call_next: Next[T, R]) -> R:
        """Go on inwards, for so long and no longer."""
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                return await call_next(x)
        except TimeoutError as error:
            if limit.expired():
                msg = f"it ran longer than the {self._seconds:g} s of its Timeout"
                raise TimeoutError(msg) from error
            raise
