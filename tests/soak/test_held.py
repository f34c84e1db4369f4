"""Large runs that have held, in virtual time: many queues, many handlers, many groups, and a clock that jumps.

``make soak`` has the run with 200,000 poison messages, ``make fuzz`` mutated answers and envelopes, and
``tests/acceptance/test_unread_output.py`` a full disk and a closed pipe on standard output.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from itertools import cycle
from typing import TYPE_CHECKING

from smartpipe import Event, Publisher, Queue, RetryPolicy, Service, Topic, Worker
from smartpipe.settings import WorkerSettings
from smartpipe.testing import MemoryBroker
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from tests.support.consumers import consuming, make_service
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually
from tests.support.waiting import until

if TYPE_CHECKING:
    import pytest

HOUR, DAY, YEAR = 3_600.0, 86_400.0, 31_536_000.0


class Moved(Event, topic=Topic("held", fifo=True), type="held.moved", version="1.0", key="account"):
    account: str
    number: int


def test_a_thousand_concurrent_handlers_of_twenty_seconds_lose_no_lease_and_no_message() -> None:
    service, transport, at_once = make_service(), FakeTransport(), list[int]()
    running = 0

    @service.subscribe(UserSignedUp)
    async def work(_: UserSignedUp) -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        await asyncio.sleep(20)
        running -= 1

    async def main() -> dict[str, int]:
        transport.put(*[ADA] * 2_500)
        async with consuming(service, transport, concurrency=1_000) as consumer:
            await asyncio.sleep(90)
        return consumer.counters.as_dict()

    assert run_virtually(main()) == {"received": 2_500, "handled": 2_500}
    assert max(at_once) == 1_000
    assert len(transport.entries("delete")) == 2_500


async def test_a_worker_of_two_hundred_queues_handles_every_event_on_each_of_them() -> None:
    service, handled = Service("many"), list[tuple[int, str]]()

    def subscribe(number: int) -> None:
        @service.subscribe(UserLeft, queue=Queue(f"many-{number}"))
        async def handle(event: UserLeft) -> None:
            handled.append((number, event.name))

    for number in range(200):
        subscribe(number)
    transport = MemoryTransport()
    transport.apply(derive([service], NAMING))
    worker = Worker(service, transport, WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1), verify=None)
    running = asyncio.create_task(worker.run())
    async with Publisher("held", transport=transport) as publisher:
        await publisher.publish_many(UserLeft(name=str(name)) for name in range(10))
    await until(lambda: len(handled) >= 2_000)
    worker.stop()

    assert await running == 0
    assert sorted(handled) == sorted((number, str(name)) for number in range(200) for name in range(10))


async def test_four_thousand_groups_are_handled_without_a_gap_or_a_change_of_order() -> None:
    service = Service("groups", queue=Queue("groups", fifo=True), retry=RetryPolicy(attempts=5, base_seconds=1))
    attempts, handled = 0, defaultdict[str, list[int]](list)

    @service.subscribe(Moved)
    async def move(event: Moved) -> None:
        nonlocal attempts
        attempts += 1
        if attempts % 50 == 0:
            raise OSError("down for a moment")
        handled[event.account].append(event.number)

    async with MemoryBroker(service, concurrency=100) as broker:
        async with Publisher("held", transport=broker.transport) as publisher:
            await publisher.publish_many(
                Moved(account=str(account), number=number) for number in range(2) for account in range(4_000)
            )
        await broker.drain()

    assert len(handled) == 4_000
    assert set(map(tuple, handled.values())) == {(0, 1)}


async def test_a_clock_that_jumps_by_an_hour_to_a_year_changes_neither_retries_nor_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jumps, real = cycle([0.0, HOUR, -HOUR, DAY, -DAY, YEAR, -YEAR]), time.time
    service, attempts = (
        Service("clock", retry=RetryPolicy(attempts=4, base_seconds=8)),
        defaultdict[str, list[float]](list),
    )

    @service.subscribe(UserLeft, idempotent=True)
    async def leave(event: UserLeft) -> None:
        attempts[event.name].append(asyncio.get_running_loop().time())
        if len(attempts[event.name]) < 4:
            raise OSError("down")

    monkeypatch.setattr("time.time", lambda: real() + next(jumps))
    async with MemoryBroker(service, duplicate_share=0.3, seed=1) as broker:
        for number in range(50):
            await broker.publish(UserLeft(name=str(number)))
        await broker.drain()

    assert len(attempts) == 50
    assert {len(times) for times in attempts.values()} == {4}
    assert max(times[-1] - times[0] for times in attempts.values()) <= 600
