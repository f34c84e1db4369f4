"""Failed deliveries, and the functions of a service that are called with each of them (``Service.on_failure``)."""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from smartpipe.envelope.encode import current_envelope
from smartpipe.envelope.traceparent import trace_id
from smartpipe.errors import ConfigError
from smartpipe.names import name_of, without_partials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.envelope.encode import Envelope
    from smartpipe.events import Event
    from smartpipe.message import Message

log = logging.getLogger("smartpipe.failures")

FailureOutcome: TypeAlias = Literal["retried", "dead_lettered", "halted", "internal_error"]
OnFailure: TypeAlias = "Callable[[DeliveryFailure], Awaitable[None] | None]"
F = TypeVar("F", bound=OnFailure)

HOOK_SECONDS = 5.0
"""The time limit of the functions for one failure. They run after the message was settled, but still take its slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFailure:
    """A delivery that has failed, and its outcome. See ``Service.on_failure``.

    Args:
        error: The exception. It may be shared by all items of a batch. An error that was never raised, such as a
            timeout, has no traceback.
        outcome: ``"retried"``: the message will be delivered again. ``"dead_lettered"``: it is in the dead-letter
            queue. ``"halted"``: its FIFO group waits. ``"internal_error"``: smartpipe itself has failed, and the
            message will be delivered again.
        kind: The kind of a dead-letter message or a halt, such as ``"retries-exhausted"``; None for other outcomes.
        retry_after_seconds: The number of seconds until the next delivery; None if the message was dead-lettered.
        attempt: The attempt number: 1 for the first.
        service: The name of the service.
        queue: The logical name of the queue that the message came from.
        handler: The name of the handler that failed; None if no handler was called.
        message: The message, with its body and attributes.
        envelope: The event with its context; None if the message could not be decoded.
    """

    error: BaseException
    outcome: FailureOutcome
    kind: str | None
    retry_after_seconds: float | None
    attempt: int
    service: str
    queue: str
    handler: str | None
    message: Message
    envelope: Envelope | None

    @property
    def event(self) -> Event | None:
        """The event, or the message of a raw handler as its model; None if the message could not be decoded."""
        return None if self.envelope is None else self.envelope.data

    @property
    def event_id(self) -> str | None:
        """The event's id; None if the message could not be decoded."""
        return None if self.envelope is None else self.envelope.id

    @property
    def event_type(self) -> str | None:
        """The event's type; None if the message could not be decoded."""
        return None if self.envelope is None else self.envelope.type

    @property
    def trace_id(self) -> str | None:
        """The W3C trace id, 32 hex digits; None if the message could not be decoded."""
        return None if self.envelope is None else trace_id(self.envelope.traceparent)

    @property
    def log_fields(self) -> dict[str, str | int | float | None]:
        """The fields of a log line about the failure. They contain no data of the event."""
        return {
            "service": self.service,
            "queue": self.queue,
            "handler": self.handler,
            "event_id": self.event_id,
            "event_type": self.event_type,
            "message_id": self.message.message_id,
            "trace_id": self.trace_id,
            "attempt": self.attempt,
            "receive_count": self.message.receive_count,
            "outcome": self.outcome,
            "kind": self.kind,
            "retry_after_seconds": self.retry_after_seconds,
        }


class RunsInThreads(Protocol):
    """Runs sync functions in threads, as those of a worker do."""

    async def run(
        self, function: Callable[..., Any], arguments: list[Any], on_abandoned: Callable[[], None], name: str = ""
    ) -> Any:
        """Return the result of *function*."""


class _Hook:
    """A function that is called with each failure, and whether it works.

    ``late`` are its calls that have not ended after their time limit. ``missed`` counts the failures that it has not
    reported since it last succeeded.
    """

    def __init__(self, function: OnFailure) -> None:
        self.function = function
        self.name = name_of(function)
        inner = without_partials(function)
        self.is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)
        self.failing = False
        self.missed = 0
        self.late: set[asyncio.Task[None]] = set()

    def record_error(self, error: BaseException) -> None:
        """Log the first error. A broken function would otherwise add a traceback to each failed delivery."""
        self.missed += 1
        if not self.failing:
            self.failing = True
            log.error(
                "The on_failure function %s raised %s. Its further errors are not logged until it succeeds again",
                self.name,
                type(error).__name__,
                exc_info=error,
            )

    def record_late(self, call: asyncio.Task[None]) -> None:
        """Log that *call* has not ended in time, and cancel it. One in a thread cannot be cancelled, and goes on."""
        self.late.add(call)
        call.add_done_callback(self.late.discard)
        if self.is_async:
            self.missed += 1
            call.cancel()
        if not self.failing:
            self.failing = True
            log.error(
                "The on_failure function %s has not ended after %g s. It is not called again until it has ended",
                self.name,
                HOOK_SECONDS,
            )

    def record_success(self) -> None:
        """Log that the function works again, if it did not before."""
        if self.failing:
            log.info("The on_failure function %s works again. It missed %d failures", self.name, self.missed)
            self.failing, self.missed = False, 0


class FailureHooks:
    """Calls the ``on_failure`` functions of a service, one failure after the other in each slot.

    Args:
        threads: Where sync functions run.
    """

    def __init__(self, functions: Sequence[OnFailure], threads: RunsInThreads) -> None:
        self._hooks = [_Hook(function) for function in functions]
        self._threads = threads

    async def call(self, failure: DeliveryFailure) -> None:
        """Call all functions concurrently, and wait until they have ended, for 5 s at most. Raise no error of theirs.

        If cancelled, cancel the calls. The message has been settled before, so nothing is lost.
        """
        calls: dict[asyncio.Task[None], _Hook] = {}
        for hook in self._hooks:
            if hook.late:  # the number of calls that hang stays limited
                hook.missed += 1
            else:
                calls[asyncio.get_running_loop().create_task(self._run(hook, failure))] = hook
        if not calls:
            return
        try:
            _, late = await asyncio.wait(calls, timeout=HOOK_SECONDS)
        except asyncio.CancelledError:
            for call, hook in calls.items():
                if hook.is_async:  # a thread would go on, and count as overdue
                    call.cancel()
            raise
        for call in late:
            calls[call].record_late(call)

    async def _run(self, hook: _Hook, failure: DeliveryFailure) -> None:
        task = asyncio.current_task()
        current_envelope.set(failure.envelope)  # the task has copied the context of the handler, or of an earlier one
        try:
            if hook.is_async:
                result: Any = hook.function(failure)
            else:
                result = await self._threads.run(hook.function, [failure], _ignore, hook.name)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError as error:
            if task is not None and task.cancelling():
                raise
            hook.record_error(error)  # the function has raised it
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit, too: a function that reports errors ends no worker
            hook.record_error(error)
        else:
            if task is None or not task.cancelling():  # otherwise it was late, and has swallowed its cancellation
                hook.record_success()


def validate_hook(function: F, service: str) -> F:
    """Return *function*.

    Raises:
        ConfigError: It cannot be called with a DeliveryFailure; the error names the function and *service*.
    """
    usage = "write @service.on_failure above def report(failure: DeliveryFailure)"
    if not callable(function) or isinstance(function, type):
        raise ConfigError(f"service {service!r}: on_failure({function!r}) is not a function: {usage}")
    name = name_of(function)
    inner = without_partials(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(f"service {service!r}: on_failure function {name} is a generator, so none of it would run")
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise ConfigError(f"service {service!r}: on_failure function {name}: {error}; {usage}") from None
    except ValueError:  # a built-in function has no signature
        pass
    return function


def _ignore() -> None:
    """Do nothing when a call is abandoned: the event loop has ended."""
