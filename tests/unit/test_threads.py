from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from smartpipe.handling.threads import Threads
from tests.support.consumers import consuming, make_service
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

here: ContextVar[str] = ContextVar("here")


def nobody() -> None:
    raise AssertionError("nothing was abandoned")


async def test_a_function_runs_in_a_thread_with_the_callers_context() -> None:
    threads = Threads(1)
    here.set("the caller's")

    name, value = await threads.run(lambda: (threading.current_thread().name, here.get()), [], nobody)
    threads.close()

    assert name.startswith("smartpipe-handler")
    assert value == "the caller's"


async def test_an_abandoned_function_does_not_take_the_thread_of_the_next() -> None:
    threads, release, told = Threads(1), threading.Event(), list[str]()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await threads.run(release.wait, [30], lambda: told.append("abandoned"))

    assert threads.abandoned == 1
    assert await threads.run(lambda: "next", [], nobody) == "next"
    assert told == ["abandoned"]
    release.set()
    threads.close()


async def test_sync_handlers_run_in_threads_and_in_parallel() -> None:
    service, transport, barrier = make_service(), FakeTransport(), threading.Barrier(3, timeout=20)

    @service.subscribe(UserSignedUp)
    def handle(_: UserSignedUp) -> None:
        barrier.wait()

    transport.put(ADA, ADA, ADA)
    async with consuming(service, transport, poll_seconds=1) as consumer:
        await until(lambda: consumer.counts.handled == 3)

    assert len(transport.entries("delete")) == 3


async def test_fault_29_a_sync_handler_past_its_timeout_is_abandoned_and_reported() -> None:
    service, transport, release = make_service(timeout_seconds=0.05), FakeTransport(), threading.Event()

    @service.subscribe(UserSignedUp)
    def handle(_: UserSignedUp) -> None:
        release.wait(30)

    transport.put(ADA)
    async with consuming(service, transport, poll_seconds=1) as consumer:
        await until(lambda: consumer.counts.retried == 1)
        release.set()

    assert consumer.counts.abandoned_threads == 1
    assert transport.entries("delete") == []
