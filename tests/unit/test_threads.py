from __future__ import annotations

import asyncio
import sys
import threading
import time
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import RetryPolicy
from smartpipe.consumer.capacity import Capacity
from smartpipe.consumer.threads import LoopExecutor, Threads, use_loop_executor
from tests.support.consumers import consuming, make_service
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.hanging import Hanging
from tests.support.virtual_time import movable_time
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

here: ContextVar[str] = ContextVar("here")


def ignore() -> None:
    raise AssertionError("nothing was abandoned")


@pytest.fixture
def undisturbed() -> Iterator[None]:
    """A thread runs until it waits for something: none takes the interpreter away from it."""
    seconds = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(seconds)


async def test_a_function_runs_in_a_thread_with_the_callers_context() -> None:
    threads = Threads(1)
    here.set("the caller's")

    name, value = await threads.run(lambda: (threading.current_thread().name, here.get()), [], ignore)
    threads.close()

    assert name.startswith("smartpipe-handler")
    assert value == "the caller's"


async def test_an_abandoned_function_does_not_take_the_thread_of_the_next() -> None:
    threads, began, release, reported = Threads(1), threading.Event(), threading.Event(), list[str]()

    def hang() -> None:
        began.set()
        release.wait(30)

    hanging = asyncio.create_task(threads.run(hang, [], lambda: reported.append("abandoned")))
    await until(began.is_set)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging

    assert threads.abandoned == 1
    assert await threads.run(lambda: "next", [], ignore) == "next"
    assert reported == ["abandoned"]
    release.set()
    threads.close()


@pytest.mark.usefixtures("undisturbed")
async def test_functions_that_end_while_the_loop_is_busy_wake_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, release, began, wakes = Threads(20), threading.Event(), list[int](), 0
    loop = asyncio.get_running_loop()
    wake = loop.call_soon_threadsafe

    def count(*arguments: Any, **options: Any) -> asyncio.Handle:
        nonlocal wakes
        wakes += 1
        return wake(*arguments, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)

    def work(number: int) -> int:
        began.append(number)
        release.wait(60)
        return number

    running = [asyncio.create_task(threads.run(work, [number], ignore)) for number in range(20)]
    await until(lambda: len(began) == 20)  # those that only wait for a thread would be short, and not wake the loop
    completions, scheduled = threads._completions, list[None]()
    assert completions is not None
    schedule = completions.schedule
    monkeypatch.setattr(completions, "schedule", lambda: scheduled.append(schedule()))
    release.set()
    while len(scheduled) < 20:  # a function has ended a moment before its thread asks to wake the loop
        time.sleep(0.01)  # noqa: ASYNC251 - the loop is busy

    assert await asyncio.gather(*running) == list(range(20))
    assert wakes == 1
    threads.close()


async def test_the_failure_of_a_function_reaches_its_caller() -> None:
    threads = Threads(1)

    def fail() -> None:
        raise KeyError("missing")

    for _ in range(2):
        with pytest.raises(KeyError, match="missing"):
            await threads.run(fail, [], ignore)
    threads.close()


async def test_a_function_whose_caller_was_cancelled_before_it_began_never_runs() -> None:
    threads, ran = Threads(1), list[str]()
    threads._threads = 1  # one that has not been scheduled yet
    task = asyncio.create_task(threads.run(lambda: ran.append("run"), [], ignore))
    await until(lambda: threads._waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    threads.close()

    await asyncio.to_thread(threads._work)  # the thread comes too late

    assert (ran, threads.abandoned, threads._busy) == ([], 0, 0)


@pytest.mark.usefixtures("undisturbed")
async def test_short_functions_of_one_turn_of_the_loop_run_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.consumer.threads.CHECK_SECONDS", 30)  # a busy machine may take a millisecond
    monkeypatch.setattr("smartpipe.consumer.threads.SHORT_SECONDS", 30)  # likewise
    threads, barrier, found, wakes = Threads(10), threading.Barrier(10, timeout=30), list[int](), list[Any]()
    await asyncio.gather(*(threads.run(barrier.wait, [], ignore) for _ in range(10)))
    await until(lambda: len(threads._asleep) == 10)
    loop, woken, choose = asyncio.get_running_loop(), 0, threads._choose_to_wake

    def count() -> Any:
        nonlocal woken
        thread = choose()
        woken += thread is not None
        return thread

    await threads.run(lambda: None, [], ignore)  # so short functions are expected
    await until(lambda: len(threads._asleep) == 10)
    monkeypatch.setattr(threads, "_choose_to_wake", count)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", wakes.append)  # which would let other threads run
        running = [
            asyncio.create_task(threads.run(lambda: found.append(threading.get_ident()), [], ignore)) for _ in range(10)
        ]
        await until(lambda: len(found) == 10)
    for wake in wakes:
        wake()
    await asyncio.gather(*running)

    assert len(set(found)) == 1
    assert woken == 1
    threads.close()


@pytest.mark.parametrize("behind", [0, 1, 2])
async def test_a_long_function_among_short_ones_holds_up_neither_them_nor_those_behind_it(behind: int) -> None:
    threads, release = Threads(4), threading.Event()
    for _ in range(20):
        await threads.run(lambda: None, [], ignore)
    await until(lambda: len(threads._asleep) == threads._threads)

    for _ in range(20):
        before = asyncio.create_task(threads.run(lambda: 0, [], ignore))
        held = asyncio.create_task(threads.run(release.wait, [30], ignore))
        others = [asyncio.create_task(threads.run(lambda: 1, [], ignore)) for _ in range(behind)]

        assert await asyncio.gather(before, *others) == [0, *[1] * behind]
        assert not held.done()
        release.set()
        await held
        release.clear()
    threads.close()


async def test_long_functions_after_a_short_one_wake_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.consumer.threads.CHECK_SECONDS", 0.5)
    threads, release, begun, checks = Threads(10), threading.Event(), list[int](), 0
    barrier, check = threading.Barrier(10, timeout=30), threads._check

    def count(*arguments: Any) -> None:
        nonlocal checks
        checks += 1
        check(*arguments)

    await asyncio.gather(*(threads.run(barrier.wait, [], ignore) for _ in range(10)))
    await until(lambda: len(threads._asleep) == 10)
    monkeypatch.setattr(threads, "_check", count)
    await threads.run(lambda: None, [], ignore)
    await until(lambda: len(threads._asleep) == 10)

    def wait(number: int) -> None:
        begun.append(number)
        release.wait(30)

    running = [asyncio.create_task(threads.run(wait, [number], ignore)) for number in range(10)]
    await until(lambda: len(begun) == 10)

    assert checks <= 3
    release.set()
    await asyncio.gather(*running)
    threads.close()


async def test_a_long_function_does_not_hold_up_those_behind_it() -> None:
    threads, release = Threads(3), threading.Event()

    held = [asyncio.create_task(threads.run(release.wait, [30], ignore)) for _ in range(2)]
    for number in range(20):
        assert await threads.run(lambda number=number: number, [], ignore) == number
    release.set()
    assert await asyncio.gather(*held) == [True, True]
    threads.close()


async def test_no_more_threads_are_started_than_functions_run_at_a_time() -> None:
    threads = Threads(4)

    for _ in range(50):
        await asyncio.gather(*(threads.run(time.sleep, [0], ignore) for _ in range(4)))

    assert threads._threads <= 4
    threads.close()
    await until(lambda: threads._threads == 0)


async def test_a_sleeping_thread_keeps_no_event_in_memory() -> None:
    threads = Threads(1)

    class Argument: ...

    argument = Argument()
    reference = weakref.ref(argument)
    await threads.run(lambda _: None, [argument], ignore)
    del argument

    await until(lambda: reference() is None)
    assert threads._asleep
    threads.close()


async def test_after_close_a_function_is_refused_and_those_that_run_go_on() -> None:
    threads, release = Threads(2), threading.Event()
    running = asyncio.create_task(threads.run(release.wait, [30], ignore))
    await until(lambda: threads._busy == 1)

    threads.close()
    threads.close()

    with pytest.raises(RuntimeError, match="threads are closed"):
        await threads.run(lambda: None, [], ignore)
    release.set()
    assert await running is True
    await until(lambda: threads._threads == 0)


async def test_sync_handlers_run_in_threads_and_in_parallel() -> None:
    service, transport, barrier = make_service(), FakeTransport(), threading.Barrier(3, timeout=20)

    @service.subscribe(UserSignedUp)
    def handle(_: UserSignedUp) -> None:
        barrier.wait()

    transport.put(ADA, ADA, ADA)
    async with consuming(service, transport, poll_seconds=1) as consumer:
        await until(lambda: consumer.counters.handled == 3)

    assert len(transport.entries("delete")) == 3


async def test_fault_29_a_sync_handler_past_its_timeout_is_abandoned_and_reported() -> None:
    service, transport = make_service(timeout_seconds=60), FakeTransport()
    begun, release = threading.Event(), threading.Event()

    @service.subscribe(UserSignedUp)
    def handle(_: UserSignedUp) -> None:
        begun.set()
        release.wait(60)

    transport.put(ADA)
    with movable_time() as move:
        async with consuming(service, transport, poll_seconds=1) as consumer:
            await until(begun.is_set)
            move(60)
            await until(lambda: consumer.counters.retried == 1)
            release.set()

    assert consumer.counters.abandoned_threads == 1
    assert transport.entries("delete") == []


async def test_functions_that_hang_in_the_loops_executor_count_as_overdue_and_do_not_block_others() -> None:
    capacity, release = Capacity(100), threading.Event()
    executor = LoopExecutor(capacity)
    asyncio.get_running_loop().set_default_executor(executor)
    size = executor._max_workers

    waiting = [asyncio.create_task(asyncio.to_thread(release.wait, 60)) for _ in range(size)]
    queued = asyncio.create_task(asyncio.to_thread(lambda: "queued"))
    await until(lambda: executor._work_queue.qsize() == 1)
    for task in waiting:
        task.cancel()

    assert await asyncio.wait_for(queued, 30) == "queued"
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "later"), 30) == "later"
    assert capacity.overdue == size
    release.set()
    await until(lambda: capacity.overdue == 0)
    assert executor._max_workers == size


async def test_a_function_cancelled_before_it_began_or_after_it_ended_is_not_abandoned() -> None:
    capacity = Capacity(100)
    executor = LoopExecutor(capacity)

    done = executor.submit(lambda: 1)
    done.result(30)
    done.cancel()

    assert capacity.overdue == 0
    executor.shutdown()


async def test_async_handlers_that_hang_in_threads_stop_receive_calls() -> None:
    service, transport = make_service(retry=RetryPolicy(attempts=50, base_seconds=0)), FakeTransport()
    hanging = Hanging()

    @service.subscribe(UserSignedUp, timeout_seconds=60)
    async def hang(_: UserSignedUp) -> None:
        await asyncio.to_thread(hanging.wait)

    transport.put(*[ADA] * 100)
    async with consuming(service, transport, concurrency=5, poll_seconds=1) as consumer:
        capacity = consumer.processor._resources.threads.capacity
        use_loop_executor(capacity)
        await hanging.fill(consumer, seconds=60)
        assert capacity.overdue <= 10
        assert "Hanging.wait" in capacity.reasons[0]
        hanging.release.set()
        transport._inbox.clear()
        transport.put(ADA)
        await until(lambda: consumer.counters.handled == 1)

    assert consumer.counters.dead_lettered == 0


async def test_a_function_that_raises_stop_iteration_fails_and_its_caller_does_not_wait_for_ever() -> None:
    threads = Threads(2)

    def stop() -> None:
        raise StopIteration

    for _ in range(3):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(threads.run(stop, [], lambda: None), 30)
    threads.close()
