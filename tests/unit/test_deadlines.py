"""What is cut off, and what only looks so."""

from __future__ import annotations

import asyncio
import math
from typing import Any, NoReturn

import pytest

from smartpipe.batching.timers import Deadlines, TimeIsUp
from smartpipe.testing.clock import virtual_time


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def test_a_call_that_takes_too_long_is_cancelled_and_the_task_goes_on() -> None:
    with virtual_time():
        with pytest.raises(TimeIsUp):
            await Deadlines().within(5, pause, 60)

        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(1)  # would raise if the cancellation were still to come


async def test_a_call_in_time_returns_what_it_returns() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(1)
        return 2 * number

    with virtual_time():
        assert await Deadlines().within(5, double, 21) == 42


async def test_the_shorter_of_many_limits_fires_first_and_the_others_still_fire() -> None:
    deadlines, ended = Deadlines(), []

    async def limited(seconds: float) -> None:
        with pytest.raises(TimeIsUp):
            await deadlines.within(seconds, pause, 1000)
        ended.append((seconds, asyncio.get_running_loop().time() - started))

    with virtual_time():
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(limited(seconds) for seconds in (50, 20, 300, 10)))

    assert [round(seconds) for seconds, _ in ended] == [10, 20, 50, 300]
    assert [after for _, after in ended] == pytest.approx([10, 20, 50, 300])


async def test_a_thousand_calls_of_one_length_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    call_at = loop.call_at
    deadlines = Deadlines()

    async def at_once(_: None) -> None: ...

    def counted(when: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *arguments, **more)

    with virtual_time():
        monkeypatch.setattr(loop, "call_at", counted)
        for _ in range(1000):
            await deadlines.within(300, at_once, None)

    assert len(timers) == 1


async def test_a_timeout_of_the_calls_own_is_not_its_deadline() -> None:
    async def impatient(_: None) -> NoReturn:
        raise TimeoutError("of a database")

    with pytest.raises(TimeoutError) as raised:
        await Deadlines().within(5, impatient, None)

    assert not isinstance(raised.value, TimeIsUp)


async def test_whoever_cancels_the_task_is_heard_even_if_its_time_is_up_too() -> None:
    deadlines = Deadlines()
    with virtual_time():
        task = asyncio.create_task(deadlines.within(5, pause, 60))
        asyncio.get_running_loop().call_later(5, task.cancel)

        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_limit_inside_of_another_is_its_own() -> None:
    deadlines = Deadlines()

    async def inner(_: None) -> str:
        with pytest.raises(TimeIsUp):
            await deadlines.within(1, pause, 60)
        await pause(1)
        return "went on"

    with virtual_time():
        assert await deadlines.within(5, inner, None) == "went on"
        with pytest.raises(TimeIsUp):
            await deadlines.within(1.5, inner, None)


async def test_infinite_seconds_are_no_limit() -> None:
    with virtual_time():
        await Deadlines().within(math.inf, pause, 1_000_000)


async def test_what_has_ended_is_forgotten() -> None:
    deadlines = Deadlines()

    async def at_once(_: None) -> None: ...

    with virtual_time():
        await deadlines.within(5, at_once, None)
        await asyncio.sleep(10)  # the timer fires, and must not cancel this task


async def test_what_is_set_strikes_at_its_time_and_what_is_cleared_does_not() -> None:
    deadlines, struck = Deadlines(), list[str]()
    with virtual_time():
        deadlines.set(5, lambda: struck.append("five"))
        cleared = deadlines.set(3, lambda: struck.append("three"))
        deadlines.set(7, lambda: struck.append("seven"))

        assert deadlines.clear(cleared)
        await asyncio.sleep(6)

        assert struck == ["five"]
        assert not deadlines.clear(cleared)
        await asyncio.sleep(2)

    assert struck == ["five", "seven"]


async def test_one_that_strikes_may_clear_another_or_set_a_new_one() -> None:
    deadlines, struck = Deadlines(), list[str]()

    def first() -> None:
        deadlines.clear(second)
        deadlines.set(1, lambda: struck.append("new"))

    with virtual_time():
        deadlines.set(5, first)
        second = deadlines.set(5, lambda: struck.append("cleared"))
        deadlines.set(60, lambda: struck.append("last"))
        await asyncio.sleep(10)

        assert struck == ["new"]
        await asyncio.sleep(60)

    assert struck == ["new", "last"]
