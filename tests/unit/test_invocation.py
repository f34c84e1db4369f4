"""The call of a handler by itself: its arguments, its time limit, and what becomes of each end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Delivery, Reject, Retry, Service
from smartpipe.consumer.invoke import CANCEL_GRACE_SECONDS, HandlerTimeout, Invocation, NotHandledYet
from smartpipe.consumer.threads import Threads
from smartpipe.counters import Counters
from smartpipe.envelope.ids import current_cause
from smartpipe.exhaustion import ResourceExhausted
from tests.support.events import ADA, UserSignedUp
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.consumer.handlers import Handler


def make_cause() -> Any:
    """Return the part of a delivery that an invocation uses."""
    return SimpleNamespace(calls=0, log_fields={})


def handler_of(function: Callable[..., Any]) -> Handler:
    service = Service("mailer")
    service.subscribe(UserSignedUp)(function)
    return service.handlers[0]


class Invoking:
    def __init__(self, slots: int = 10) -> None:
        self.threads, self.counters = Threads(slots), Counters()
        self.capacity = self.threads.capacity
        self.invocation = Invocation(self.threads, self.counters)

    async def run(self, call: Callable[[Any], Any], seconds: float = 5, **more: Any) -> BaseException | None:
        return await self.invocation.run(call, make_cause(), seconds, **more)


def raising(error: BaseException) -> Callable[[Any], Any]:
    async def call(_: Any) -> None:
        raise error

    return call


def test_a_handler_gets_its_arguments_in_the_order_of_its_parameters_and_each_call_is_counted() -> None:
    got: list[tuple[object, ...]] = []

    async def alone(event: UserSignedUp) -> None:
        got.append((event,))

    async def swapped(delivery: Delivery, event: UserSignedUp) -> None:
        got.append((delivery, event))

    async def main() -> None:
        invocation, cause = Invoking().invocation, make_cause()
        functions: list[Callable[..., Any]] = [alone, swapped, alone]
        for count, function in enumerate(functions, start=1):
            await invocation.call(handler_of(function), ADA, cause)
            assert cause.calls == count
        assert got == [(ADA,), (cause, ADA), (ADA,)]

    run_virtually(main())


def test_no_call_begins_while_too_many_are_overdue() -> None:
    called: list[object] = []

    async def handle(event: UserSignedUp) -> None:
        called.append(event)

    async def main() -> None:
        invoking, cause = Invoking(2), make_cause()
        for call in (1, 2):
            invoking.capacity.add(call, "slow")
        with pytest.raises(ResourceExhausted, match="2 handler calls have not ended after their timeout"):
            await invoking.invocation.call(handler_of(handle), ADA, cause)
        assert (called, cause.calls) == ([], 0)
        invoking.capacity.remove(1)
        await invoking.invocation.call(handler_of(handle), ADA, cause)
        assert (called, cause.calls) == ([ADA], 1)

    run_virtually(main())


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_an_exception_of_the_handler_is_returned(error: BaseException) -> None:
    async def main() -> None:
        invoking = Invoking()
        for _ in range(2):
            assert await invoking.run(raising(error)) is error

    run_virtually(main())


def test_an_interrupt_from_the_keyboard_is_raised() -> None:
    async def main() -> None:
        await Invoking().run(raising(KeyboardInterrupt()))

    with pytest.raises(KeyboardInterrupt):
        run_virtually(main())


def test_the_cancellation_of_the_task_is_raised() -> None:
    async def main() -> None:
        running = asyncio.create_task(Invoking().run(lambda _: asyncio.sleep(60), 100))
        await asyncio.sleep(1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    run_virtually(main())


def test_a_call_that_takes_too_long_is_cancelled_and_one_in_time_is_not() -> None:
    async def main() -> None:
        invoking, clock = Invoking(), asyncio.get_running_loop().time
        for _ in range(2):
            assert await invoking.run(lambda _: asyncio.sleep(4.9)) is None
            began = clock()
            failure = await invoking.run(lambda _: asyncio.sleep(60), 2.5)
            assert isinstance(failure, HandlerTimeout)
            assert str(failure) == "it ran longer than 2.5 s"
            assert clock() - began == 2.5
        assert invoking.counters.as_dict() == {}

    run_virtually(main())


def test_what_runs_in_a_call_knows_its_cause_and_the_task_forgets_it_afterwards() -> None:
    seen: list[object] = []

    async def see(_: Any) -> None:
        seen.append(current_cause.get())

    async def main() -> None:
        cause = make_cause()
        await Invoking().invocation.run(see, cause, 5)
        assert seen == [cause]
        assert current_cause.get() is None

    run_virtually(main())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("of numpy"), "this process has run out of memory: MemoryError: of numpy"),
        (ResourceExhausted("too many calls"), "too many calls"),
    ],
)
def test_a_shortage_of_a_resource_defers_the_message_and_the_next_success_ends_it(
    error: Exception, reason: str
) -> None:
    async def main() -> None:
        invoking = Invoking(1)
        failure = await invoking.run(raising(error))
        assert isinstance(failure, NotHandledYet)
        assert (str(failure), failure.seconds, failure.exhausted, failure.store_failed) == (reason, 1, True, False)
        assert failure.__cause__ is error
        assert invoking.capacity.strained == isinstance(error, MemoryError)
        await asyncio.sleep(2)
        for _ in range(3):
            assert await invoking.run(lambda _: asyncio.sleep(0)) is None
        assert not invoking.capacity.strained

    run_virtually(main())


@pytest.mark.parametrize("error", [Retry("later"), Reject("never"), ValueError("x")])
def test_a_failure_that_no_resource_caused_is_not_deferred(error: Exception) -> None:
    async def main() -> None:
        invoking = Invoking()
        if not isinstance(error, ValueError):
            error.__cause__ = MemoryError()
        assert invoking.invocation.defer_if_exhausted(error) is None
        deferred = NotHandledYet("of its batch", 7)
        assert invoking.invocation.defer_if_exhausted(deferred) is deferred
        assert not invoking.capacity.strained

    run_virtually(main())


class Stubborn:
    """A call that swallows its cancellation and ends *seconds* later."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self, _: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1_000)
        await asyncio.sleep(self.seconds)


async def handle(event: UserSignedUp) -> None: ...


@pytest.mark.parametrize(("seconds", "overdue"), [(CANCEL_GRACE_SECONDS - 0.1, False), (60.0, True)])
def test_a_call_is_overdue_five_seconds_after_its_cancellation(
    seconds: float, overdue: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[float] = []

    async def main() -> None:
        invoking, handler = Invoking(), handler_of(handle)
        loop = asyncio.get_running_loop()
        canceller = invoking.invocation.make_canceller(handler, lambda *_: reported.append(loop.time() - began))
        for count in (1, 2):
            reported.clear()
            began = loop.time()
            running = asyncio.create_task(invoking.run(Stubborn(seconds), 10, on_timeout=canceller))
            await asyncio.sleep(10 + CANCEL_GRACE_SECONDS + 0.1)
            assert reported == ([15] if overdue else [])
            assert invoking.capacity.overdue == overdue
            assert await running is None  # the call returned after all
            assert invoking.capacity.overdue == 0
            assert invoking.counters.not_ended == count * overdue
            await asyncio.sleep(100)
        assert len(reported) == overdue
        invoking.invocation.close()

    with caplog.at_level(logging.WARNING):
        run_virtually(main())

    name = handler_of(handle).name
    expected = [
        f"Handler {name} does not end although it was cancelled 5 s ago, at its timeout",
        f"Handler {name} has now ended, 60 s after it was cancelled at its timeout",
    ]
    assert [message.partition(". ")[0] for message in caplog.messages] == (expected * 2 if overdue else [])


def test_a_call_that_ends_at_its_cancellation_is_a_timeout_and_never_overdue() -> None:
    reported: list[object] = []

    async def main() -> None:
        invoking = Invoking()
        canceller = invoking.invocation.make_canceller(handler_of(handle), lambda *_: reported.append(1))
        failure = await invoking.run(lambda _: asyncio.sleep(1_000), 10, on_timeout=canceller)
        assert isinstance(failure, HandlerTimeout)
        await asyncio.sleep(100)
        assert (reported, invoking.counters.not_ended, invoking.capacity.overdue) == ([], 0, 0)

    run_virtually(main())
