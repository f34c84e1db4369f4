"""Timeouts and delayed calls."""

from __future__ import annotations

import asyncio
import contextlib
import math
from contextvars import ContextVar
from typing import Any, NoReturn

import pytest

from smartpipe.batching.timers import TimerExpired, Timers
from smartpipe.testing.clock import virtual_time


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def test_a_call_that_takes_too_long_is_cancelled_and_the_task_continues() -> None:
    with virtual_time():
        with pytest.raises(TimerExpired):
            await Timers().timeout(5, pause, 60)

        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(1)  # would raise if the cancellation were still to come


async def test_a_call_in_time_returns_its_result() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(1)
        return 2 * number

    with virtual_time():
        assert await Timers().timeout(5, double, 21) == 42


async def test_the_shorter_of_many_limits_fires_first_and_the_others_still_fire() -> None:
    timers, ended = Timers(), []

    async def limited(seconds: float) -> None:
        with pytest.raises(TimerExpired):
            await timers.timeout(seconds, pause, 1000)
        ended.append((seconds, asyncio.get_running_loop().time() - started))

    with virtual_time():
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(limited(seconds) for seconds in (50, 20, 300, 10)))

    assert [round(seconds) for seconds, _ in ended] == [10, 20, 50, 300]
    assert [after for _, after in ended] == pytest.approx([10, 20, 50, 300])


async def test_a_thousand_calls_of_one_length_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    scheduled: list[float] = []
    call_at = loop.call_at
    timers = Timers()

    async def at_once(_: None) -> None: ...

    def counted(when: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        scheduled.append(when)
        return call_at(when, *arguments, **more)

    with virtual_time():
        monkeypatch.setattr(loop, "call_at", counted)
        for _ in range(1000):
            await timers.timeout(300, at_once, None)

    assert len(scheduled) == 1


async def test_a_timeout_error_raised_by_the_call_is_passed_on() -> None:
    async def impatient(_: None) -> NoReturn:
        raise TimeoutError("of a database")

    with pytest.raises(TimeoutError) as raised:
        await Timers().timeout(5, impatient, None)

    assert not isinstance(raised.value, TimerExpired)


async def test_a_cancellation_of_the_task_counts_even_if_the_timeout_has_expired_too() -> None:
    timers = Timers()
    with virtual_time():
        task = asyncio.create_task(timers.timeout(5, pause, 60))
        asyncio.get_running_loop().call_later(5, task.cancel)

        with pytest.raises(asyncio.CancelledError):
            await task


async def test_nested_timeouts_are_independent() -> None:
    timers = Timers()

    async def inner(_: None) -> str:
        with pytest.raises(TimerExpired):
            await timers.timeout(1, pause, 60)
        await pause(1)
        return "went on"

    with virtual_time():
        assert await timers.timeout(5, inner, None) == "went on"
        with pytest.raises(TimerExpired):
            await timers.timeout(1.5, inner, None)


async def test_infinite_seconds_mean_no_timeout() -> None:
    with virtual_time():
        await Timers().timeout(math.inf, pause, 1_000_000)


async def test_ended_calls_are_removed() -> None:
    timers = Timers()

    async def at_once(_: None) -> None: ...

    with virtual_time():
        await timers.timeout(5, at_once, None)
        await asyncio.sleep(10)  # the timer fires, and must not cancel this task


async def test_a_delayed_call_is_made_at_its_time_unless_it_was_cancelled() -> None:
    timers, struck = Timers(), list[str]()
    with virtual_time():
        timers.call_later(5, lambda: struck.append("five"))
        cleared = timers.call_later(3, lambda: struck.append("three"))
        timers.call_later(7, lambda: struck.append("seven"))

        assert timers.cancel(cleared)
        await asyncio.sleep(6)

        assert struck == ["five"]
        assert not timers.cancel(cleared)
        await asyncio.sleep(2)

    assert struck == ["five", "seven"]


async def test_a_delayed_call_may_cancel_another_or_add_a_new_one() -> None:
    timers, struck = Timers(), list[str]()

    def first() -> None:
        timers.cancel(second)
        timers.call_later(1, lambda: struck.append("new"))

    with virtual_time():
        timers.call_later(5, first)
        second = timers.call_later(5, lambda: struck.append("cleared"))
        timers.call_later(60, lambda: struck.append("last"))
        await asyncio.sleep(10)

        assert struck == ["new"]
        await asyncio.sleep(60)

    assert struck == ["new", "last"]


async def test_a_delayed_call_runs_in_an_empty_context() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []
    with virtual_time():
        timers = Timers()
        for name in ("first", "second"):
            variable.set(name)
            timers.call_later(1, lambda: seen.append(variable.get()))
            await asyncio.sleep(2)

    assert seen == ["none", "none"]


async def test_a_timeout_may_be_handled_by_a_function_which_gets_the_task_and_the_argument() -> None:
    timers, seen = Timers(), list[tuple[object, float]]()

    def on_timeout(task: asyncio.Task[Any], seconds: float) -> None:
        seen.append((task, seconds))
        task.cancel()

    with virtual_time():
        for _ in range(2):
            with pytest.raises(TimerExpired):
                await timers.timeout(5, pause, 60, on_timeout)
            assert seen.pop() == (asyncio.current_task(), 60)
            await timers.timeout(5, pause, 4, on_timeout)
            await asyncio.sleep(10)
            assert seen == []


async def test_a_cancellation_before_the_timeout_is_passed_on_and_a_call_that_swallows_the_timeout_returns() -> None:
    with virtual_time():
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(cancel_itself(Timers()))
        assert await asyncio.create_task(outlive(Timers())) == "late"


async def cancel_itself(timers: Timers) -> None:
    """The task's own cancellation, before the timeout, is no timeout."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(1, task.cancel)
    await timers.timeout(5, pause, 60)


async def outlive(timers: Timers) -> str:
    async def stubborn(_: None) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await pause(60)
        return "late"

    result = await timers.timeout(5, stubborn, None)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    return result


async def test_a_callback_that_raises_does_not_stop_later_calls() -> None:
    timers, struck, errors = Timers(), list[str](), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    def fail() -> None:
        raise ValueError("of the callback")

    with virtual_time():
        timers.call_later(1, fail)
        timers.call_later(1, lambda: struck.append("with it"))
        timers.call_later(3, lambda: struck.append("after it"))
        await asyncio.sleep(5)

    assert struck == ["with it", "after it"]
    assert len(errors) == 1


async def test_a_closed_timer_makes_no_call_until_another_one_starts_it_again() -> None:
    timers, struck = Timers(), list[str]()
    with virtual_time():
        timers.close()
        timers.call_later(1, lambda: struck.append("one"))
        timers.close()
        await asyncio.sleep(5)
        assert struck == []

        timers.call_later(2, lambda: struck.append("two"))
        await asyncio.sleep(1)
        assert struck == []
        await asyncio.sleep(2)

    assert struck == ["one", "two"]


async def test_an_earlier_call_moves_the_timer_and_the_later_one_still_comes() -> None:
    timers, struck = Timers(), list[float]()
    loop = asyncio.get_running_loop()
    with virtual_time():
        start = loop.time()
        for seconds in (9, 3, 6, 1):
            timers.call_later(seconds, lambda: struck.append(round(loop.time() - start, 3)))
        timers.call_later(math.inf, lambda: struck.append(math.inf))
        await asyncio.sleep(20)

    assert struck == [1, 3, 6, 9]
