"""The virtual clock of smartpipe.testing, one step of the event loop at a time."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
import types
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from queue import SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.pytest_plugin import get_runner

from smartpipe import ConfigError
from smartpipe.testing import clock as virtual_clock
from smartpipe.testing import virtual_time
from smartpipe.testing.clock import SPEEDUP, THREAD_SECONDS, _VirtualSelector, _waits_for_the_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator


class Inner:
    """A selector that returns scripted events, and records how long it would sleep."""

    def __init__(self, *ready: list[str]) -> None:
        self.ready = list(ready)
        self.timeouts: list[float | None] = []
        self.sockets: dict[int, str] = {0: "the loop's own"}
        self.closed = False

    def select(self, timeout: float | None) -> list[str]:
        self.timeouts.append(timeout)
        return self.ready.pop(0) if self.ready else []

    def get_map(self) -> dict[int, str]:
        return self.sockets


def at_ten(inner: Inner, *busy: Callable[[], bool], timer: float = math.inf) -> _VirtualSelector:
    """Return a selector whose clock shows 10.0."""
    return _VirtualSelector(inner, 10.0, busy, lambda: timer, list[asyncio.Task[Any]])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The threads that are alive; the real clock gains a second at each look."""
    found: list[Any] = [threading.Thread(name="before")]
    times = iter(range(1_000))
    monkeypatch.setattr(virtual_clock, "threading", SimpleNamespace(enumerate=lambda: list(found)))
    monkeypatch.setattr(virtual_clock, "time", SimpleNamespace(monotonic=lambda: next(times)))
    return found


@pytest.mark.parametrize("timeout", [None, 0, -1.0, 5.0])
def test_events_that_are_ready_need_no_time(threads: list[Any], timeout: float | None) -> None:
    inner = Inner(["event"])
    selector = at_ten(inner)

    assert selector.select(timeout) == ["event"]
    assert (selector.now, inner.timeouts, len(threads)) == (10.0, [0], 1)


@pytest.mark.parametrize(
    ("timeout", "now", "timeouts"), [(0, 10.0, [0]), (-1.0, 10.0, [0]), (5.0, 15.0, [0]), (0.5, 10.5, [0])]
)
def test_the_clock_jumps_to_the_next_timer(
    threads: list[Any], timeout: float, now: float, timeouts: list[float]
) -> None:
    inner = Inner()
    selector = at_ten(inner)

    assert selector.select(timeout) == []
    assert (selector.now, inner.timeouts, len(threads)) == (now, timeouts, 1)


def test_the_clock_shows_the_time_of_the_timer_that_it_jumps_to_however_sums_are_rounded(threads: list[Any]) -> None:
    selector = at_ten(Inner(), timer=14.999999999999996)

    assert selector.select(5.0) == []
    assert (selector.now, len(threads)) == (14.999999999999996, 1)


@pytest.mark.parametrize("uptime", [8185.3, 32762.3])  # each is close to a power of two
async def test_waits_add_up_exactly_however_long_the_machine_has_run(
    monkeypatch: pytest.MonkeyPatch, uptime: float
) -> None:
    loop, waited = asyncio.get_running_loop(), list[float]()

    async def wait(*waits: float) -> None:
        began = loop.time()
        for seconds in waits:
            await asyncio.sleep(seconds)
        waited.append(loop.time() - began)

    with ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.BaseEventLoop, "time", lambda _: uptime)
            stack.enter_context(virtual_time())
        assert uptime <= loop.time() < uptime + 1
        await asyncio.gather(wait(10, 5), wait(*[0.1] * 33), wait(1 / 3, 7))

    assert waited[-1] == 15


def test_without_a_timer_the_loop_sleeps_as_in_real_time(threads: list[Any]) -> None:
    inner = Inner([], ["signal"])
    selector = at_ten(inner)

    assert selector.select() == ["signal"]
    assert (selector.now, inner.timeouts, len(threads)) == (10.0, [0, None], 1)


@pytest.mark.parametrize(("timeout", "slept"), [(None, 0.05), (5.0, 0.05), (0.01, 0.01)])
@pytest.mark.parametrize("busy", ["thread", "function"])
def test_time_is_real_while_a_known_thread_runs(
    threads: list[Any], busy: str, timeout: float | None, slept: float
) -> None:
    inner = Inner([], ["done"])
    selector = at_ten(inner, lambda: False, lambda: busy == "function")
    if busy == "thread":
        selector.threads.add("a future")

    assert selector.select(timeout) == ["done"]
    assert (selector.now, inner.timeouts, len(threads)) == (11.0, [0, slept], 1)
    assert THREAD_SECONDS == 0.05


@pytest.mark.parametrize("cause", ["socket", "thread"])
@pytest.mark.parametrize("ready", [[], ["answer"]])
def test_time_is_fifty_times_as_fast_while_something_may_wait_for_the_world(
    threads: list[Any], cause: str, ready: list[str]
) -> None:
    inner = Inner([], ready)
    selector = at_ten(inner)
    if cause == "socket":
        inner.sockets[1] = "a connection"
    else:
        threads.append(threading.Thread(name="unknown"))

    assert selector.select(5.0) == ready
    assert inner.timeouts == [0, 5.0 / SPEEDUP]
    assert selector.now == (10.0 if ready else 15.0)
    assert SPEEDUP == 50


async def wait_for_a_task() -> None:
    await asyncio.create_task(asyncio.sleep(3_600))


async def wait_for_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(3_600))


async def wait_in_a_timeout() -> None:
    async with asyncio.timeout(7_200):
        await asyncio.Queue[str]().get()


async def wait_for_a_connection() -> None:
    here, there = socket.socketpair()
    with there:
        reader, writer = await asyncio.open_connection(sock=here)
        try:
            await reader.readline()
        finally:
            writer.close()


async def wait_for_a_connection_of_anyio() -> None:
    here, there = socket.socketpair()
    with there:
        async with await anyio.abc.SocketStream.from_socket(here) as stream:
            await stream.receive()


async def wait_for_a_future() -> None:
    await asyncio.get_running_loop().create_future()


async def wait_for_a_shielded_task() -> None:
    await asyncio.shield(asyncio.create_task(asyncio.sleep(3_600)))


async def wait_for_a_shielded_future() -> None:
    await asyncio.shield(asyncio.get_running_loop().create_future())


async def wait_within(wait: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    await wait()
    yield


async def wait_to_enter(wait: Callable[[], Awaitable[object]]) -> None:
    async with asynccontextmanager(wait_within)(wait):
        pass


async def wait_to_iterate(wait: Callable[[], Awaitable[object]]) -> None:
    async for _ in wait_within(wait):
        pass


@types.coroutine
def wait_as_a_generator() -> Generator[Any, None, None]:
    yield from asyncio.get_running_loop().create_future().__await__()


async def wait_in_a_generator() -> None:
    await wait_as_a_generator()


@pytest.mark.parametrize(
    ("wait", "outer"),
    [
        (wait_for_a_task, False),
        (wait_for_a_group, False),
        (wait_in_a_timeout, False),
        (lambda: asyncio.sleep(3_600), False),
        (lambda: asyncio.wait_for(asyncio.Event().wait(), 3_600), False),
        (lambda: asyncio.Semaphore(0).acquire(), False),
        (lambda: anyio.sleep(3_600), False),
        (wait_for_a_shielded_task, False),
        (lambda: wait_to_enter(asyncio.Semaphore(0).acquire), False),
        (lambda: wait_to_iterate(lambda: asyncio.sleep(3_600)), False),
        (wait_for_a_connection, True),
        (wait_for_a_connection_of_anyio, True),
        (wait_for_a_future, True),
        (wait_for_a_shielded_future, True),
        (lambda: wait_to_enter(wait_for_a_connection), True),
        (lambda: wait_to_iterate(wait_for_a_connection), True),
        (wait_in_a_generator, True),
    ],
)
async def test_only_a_task_that_waits_for_a_timer_or_another_task_does_not_wait_for_the_world(
    wait: Callable[[], Coroutine[Any, Any, Any]], outer: bool
) -> None:
    task = asyncio.get_running_loop().create_task(wait())
    for _ in range(10):
        await asyncio.sleep(0)

    assert _waits_for_the_world(task) is outer
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_the_test_runner_of_anyio_waits_for_the_test_and_not_for_the_world() -> None:
    async def run() -> None:
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 2
        assert not any(map(_waits_for_the_world, asyncio.all_tasks()))

    with get_runner("asyncio", {}) as runner:
        runner.run_test(run, {})


class Slow(threading.Thread):
    """Calls the functions that it is given, each a moment later."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.functions: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def run(self) -> None:
        while (function := self.functions.get()) is not None:
            time.sleep(0.05)
            function()


@pytest.fixture
def slow() -> Iterator[Slow]:
    thread = Slow()
    thread.start()
    yield thread
    thread.functions.put(None)
    thread.join(30)


async def test_the_answer_of_a_thread_that_was_there_before_comes_before_a_timeout_of_ten_hours(slow: Slow) -> None:
    loop = asyncio.get_running_loop()
    with virtual_time():
        for _ in range(3):
            answer = loop.create_future()
            slow.functions.put(partial(loop.call_soon_threadsafe, answer.set_result, "!"))
            async with asyncio.timeout(36_000):
                assert await answer == "!"


async def test_the_answer_on_a_connection_that_was_there_before_comes_before_a_timeout_of_ten_hours(slow: Slow) -> None:
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    with virtual_time():
        for _ in range(3):
            slow.functions.put(partial(there.send, b"!"))
            async with asyncio.timeout(36_000):
                assert await reader.readexactly(1) == b"!"
    writer.close()
    there.close()


async def test_what_was_there_before_and_is_idle_does_not_slow_the_clock_down(slow: Slow) -> None:
    here, there = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=here)
    loop, event, queue = asyncio.get_running_loop(), asyncio.Event(), asyncio.Queue[str]()

    with virtual_time():
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            group.create_task(event.wait())
            group.create_task(queue.get())
            await asyncio.gather(*(asyncio.sleep(seconds) for seconds in (3_600, 36_000)))  # 12 minutes at that speed
            event.set()
            queue.put_nowait("end")
        assert loop.time() - began == 36_000
    assert slow.is_alive()
    writer.close()
    there.close()


@pytest.mark.parametrize("name", ["asyncio_0", "smartpipe-log"])
def test_threads_that_are_known_do_not_slow_the_clock_down(threads: list[Any], name: str) -> None:
    inner = Inner()
    selector = at_ten(inner)
    threads.append(threading.Thread(name=name))

    selector.select(5.0)

    assert inner.timeouts == [0]


def test_everything_else_is_that_of_the_loops_selector(threads: list[Any]) -> None:
    inner = Inner()

    assert threads
    assert at_ten(inner).closed is False


async def test_the_loop_has_its_own_selector_and_clock_again_afterwards() -> None:
    loop: Any = asyncio.get_running_loop()
    selector = loop._selector

    def is_busy() -> bool:
        return False

    with virtual_time():
        assert loop._selector.inner is selector
        with virtual_time(is_busy):
            assert is_busy in loop._selector.busy
        assert is_busy not in loop._selector.busy
        assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()
        await asyncio.sleep(0)
        assert loop._selector.threads == set()

    assert loop._selector is selector
    assert not {"time", "run_in_executor"} & vars(loop).keys()


async def test_another_event_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop: ...

    monkeypatch.setattr(asyncio, "get_running_loop", Loop)

    with pytest.raises(ConfigError, match=r"virtual time needs asyncio's own event loop, not .*Loop$"):
        virtual_time()


async def test_a_task_is_looked_at_once_for_each_future_that_it_waits_for(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = list[str]()

    def look(task: asyncio.Task[Any]) -> bool:
        looked_at.append(task.get_name())
        return _waits_for_the_world(task)

    monkeypatch.setattr(virtual_clock, "_waits_for_the_world", look)

    with virtual_time():
        idle = asyncio.create_task(asyncio.Event().wait(), name="idle")
        for _ in range(50):
            await asyncio.sleep(1)
        assert looked_at.count("idle") == 1
        idle.cancel()
    assert slow.is_alive()
