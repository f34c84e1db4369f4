"""Middleware: functions around the delivery to a handler, or around the publication of an event. Both have one shape.

Write ``async def middleware(x, call_next): ...``, where *x* is a Delivery or a Publication, and ``await call_next(x)``
calls the next middleware, or finally the handler or the publisher. An exception in the middleware counts as raised by
the handler, or by ``publish``. If the middleware of a delivery returns without calling ``call_next``, the delivery
counts as handled. The middleware of a publication must return the event's id, which ``call_next`` returns, or raise.
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
        innermost = _wrap(innermost, one)
    return innermost


def validate_middleware(middleware: Sequence[Middleware[T, R]], owner: str) -> tuple[Middleware[T, R], ...]:
    """Return *middleware* as a tuple.

    Raises:
        ConfigError: It is not a list of functions; *owner* is named in the error.
    """
    if callable(middleware) or not all(callable(one) for one in middleware):
        msg = f"{owner}: middleware={middleware!r} must be a list of functions, async def middleware(x, call_next)"
        raise ConfigError(msg)
    return tuple(middleware)


def _wrap(inner: Next[T, R], middleware: Middleware[T, R]) -> Next[T, R]:
    async def call(x: T) -> R:
        calls: list[Awaitable[R]] = []

        def call_next(y: T) -> Awaitable[R]:
            calls.append(inner(y))
            return calls[-1]

        result = await middleware(x, call_next)
        for one in calls:
            if inspect.iscoroutine(one) and inspect.getcoroutinestate(one) == inspect.CORO_CREATED:
                one.close()
                raise TypeError(  # the handler has not run, so the delivery must not count as handled
                    f"middleware {name_of(middleware)} called call_next but did not await it: write await call_next(x)"
                )
        return result

    return call


class Logging:
    """Logs the end of each delivery, or publication: whether it failed, and its duration.

    Args:
        level: The level of a success. A failure is logged as a warning.
        logger: By default ``smartpipe.middleware``.
    """

    def __init__(self, level: int = logging.INFO, *, logger: logging.Logger | None = None) -> None:
        self._level = level
        self._log = logger or logging.getLogger("smartpipe.middleware")

    async def __call__(self, x: P, call_next: Next[P, R]) -> R:
        """Call the next middleware, and log the result."""
        started = time.perf_counter()
        try:
            result = await call_next(x)
        except Exception as error:
            self._log.warning("Failed: %s", type(error).__name__, extra=self._fields(x, started))
            raise
        if self._log.isEnabledFor(self._level):
            self._log.log(self._level, "%s", x.log_message, extra=self._fields(x, started))
        return result

    @staticmethod
    def _fields(x: Delivery | Publication, started: float) -> dict[str, object]:
        fields: dict[str, object] = {**x.log_fields}
        if "event_type" not in fields:  # a publication, whose event has a contract
            fields = {"event_type": contract_of(type(x.event)).type, **fields}
        return {"fields": {**fields, "seconds": round(time.perf_counter() - started, 6)}}


class Timeout:
    """Cancels the middleware and the handler inside it after *seconds*, and raises TimeoutError: an ordinary failure.

    The thread of a sync handler cannot be cancelled: it continues to run, and counts as abandoned.

    Raises:
        ConfigError: *seconds* is not above 0.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            msg = f"Timeout({seconds}): seconds must be above 0"
            raise ConfigError(msg)
        self._seconds = seconds

    async def __call__(self, x: T, call_next: Next[T, R]) -> R:
        """Call the next middleware, with the time limit."""
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                return await call_next(x)
        except TimeoutError as error:
            if limit.expired():
                msg = f"it ran longer than the {self._seconds:g} s of its Timeout"
                raise TimeoutError(msg) from error
            raise
