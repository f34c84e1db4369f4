from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from smartpipe import Queue, Service
from tests.support.consumers import consuming, drain, make_consumer, make_service
from tests.support.events import ADA, Paid, UserSignedUp
from tests.support.fakes import UNREACHABLE, FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.counters import Counters

PAID = Paid(account="ada")


def test_fault_02_at_a_stop_running_handlers_finish_and_other_messages_are_released() -> None:
    service, transport = make_service(), FakeTransport()
    finished: list[str] = []

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        await asyncio.sleep(15)
        finished.append(event.name)

    async def main() -> Counters:
        consumer = make_consumer(service, transport, concurrency=10)
        consumer.start()
        transport.put(*[ADA] * 4)
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_later(1, lambda: transport.put(*[ADA] * 6))  # into the open receive call
        await drain(consumer, budget_seconds=25)
        return consumer.counters

    counts = run_virtually(main())

    assert finished == ["Ada"] * 4
    assert transport.entries("change_visibility")[:6] == [(f"r{number}", 0) for number in range(5, 11)]
    released = [at for verb, _, _, at in transport.calls if verb == "change_visibility"]
    assert released[0] < 3  # within a second of their arrival
    assert sorted(transport.entries("delete")) == ["r1", "r2", "r3", "r4"]
    assert counts.as_dict() == {"received": 10, "handled": 4, "released": 6}


def test_fault_02_messages_received_in_the_same_step_as_the_stop_are_released_too() -> None:
    service, transport = Service("ledger", queue=Queue("ledger", fifo=True)), FakeTransport()

    @service.subscribe(Paid)
    async def handle(_: Paid) -> None:
        raise AssertionError("it must not begin")

    async def main() -> Counters:
        consumer = make_consumer(service, transport)
        consumer._accept([transport.message(PAID, received_at=0.0, group_id=group) for group in "abc"])
        await drain(consumer, budget_seconds=25)
        return consumer.counters

    counts = run_virtually(main())

    assert counts.as_dict() == {"received": 3, "released": 3}
    assert [seconds for _, seconds in transport.entries("change_visibility")] == [0, 0, 0]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a task cannot begin at once before Python 3.12")
def test_a_handler_of_a_standard_queue_begins_as_soon_as_its_message_is_received() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        if event.name != "Bob":
            await asyncio.sleep(1)

    async def main() -> tuple[list[int], Counters]:
        consumer, begun = make_consumer(service, transport), list[int]()
        for bodies in ([ADA.model_copy(update={"name": "Bob"})] * 3, [ADA] * 2):
            consumer._accept([transport.message(body, received_at=0.0) for body in bodies])
            begun.append(consumer.in_flight)
        await drain(consumer, budget_seconds=25)
        return begun, consumer.counters

    begun, counts = run_virtually(main())

    assert begun == [0, 2]
    assert counts.as_dict() == {"received": 5, "handled": 5}
    assert sorted(transport.entries("delete")) == ["r1", "r2", "r3", "r4", "r5"]


def test_fault_03_an_idle_receive_call_is_awaited_and_not_cancelled() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    async def main() -> tuple[float, int]:
        consumer = make_consumer(service, transport)
        consumer.start()
        await asyncio.sleep(5)
        await drain(consumer, budget_seconds=25)
        return asyncio.get_running_loop().time(), transport.open_receives

    assert run_virtually(main()) == (20, 0)
    assert len(transport.asked) == 1


def test_leases_are_extended_while_handlers_finish() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(100)

    async def main() -> Counters:
        async with consuming(service, transport) as consumer:
            transport.put(ADA)
            await asyncio.sleep(1)
        return consumer.counters

    counts = run_virtually(main())

    assert len(transport.entries("change_visibility")) >= 6
    assert counts.as_dict() == {"received": 1, "handled": 1}


def test_fault_25_at_the_deadline_handlers_are_cancelled_and_their_messages_released() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(1_000)

    async def main() -> tuple[Counters, float]:
        consumer = make_consumer(service, transport)
        consumer.start()
        transport.put(ADA, ADA)
        await asyncio.sleep(1)
        await drain(consumer, budget_seconds=25)
        return consumer.counters, asyncio.get_running_loop().time()

    counts, ended = run_virtually(main())

    assert counts.as_dict() == {"received": 2, "cancelled": 2}
    assert sorted(transport.entries("change_visibility")[-2:]) == [("r1", 0), ("r2", 0)]
    assert transport.entries("delete") == []
    assert 26 <= ended < 27


def test_fault_25_a_hard_stop_does_not_wait_for_the_deadline() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(1_000)

    async def main() -> tuple[Counters, float]:
        consumer, hard = make_consumer(service, transport, concurrency=2), asyncio.Event()
        consumer.start()
        transport.put(ADA)
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_later(2, hard.set)
        await drain(consumer, budget_seconds=1_000, hard=hard)
        return consumer.counters, asyncio.get_running_loop().time()

    counts, ended = run_virtually(main())

    assert counts.cancelled == 1
    assert 3 <= ended < 4
    # The second receive call, made at 0 s, may take messages until 20 s, and would strand one returned earlier.
    assert transport.entries("change_visibility") == [("r1", 17)]


def test_fault_13_deletes_are_flushed_after_the_last_handler() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(19.99)  # ends together with the open receive call, so its delete has no time to linger

    async def main() -> None:
        consumer = make_consumer(service, transport)
        transport.put(ADA)
        consumer.start()
        await asyncio.sleep(1)
        await drain(consumer, budget_seconds=25)

    run_virtually(main())

    assert transport.entries("delete") == ["r1"]


def test_fault_13_a_flush_that_fails_is_reported_and_does_not_hang() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["delete"].extend([UNREACHABLE] * 1_000)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    async def main() -> tuple[Counters, float]:
        consumer = make_consumer(service, transport)
        consumer.start()
        transport.put(ADA)
        await asyncio.sleep(15)
        transport.put(ADA)
        await asyncio.sleep(0.01)
        await drain(consumer, budget_seconds=25)
        return consumer.counters, asyncio.get_running_loop().time()

    counts, ended = run_virtually(main())

    assert counts.handled == 2
    assert counts.not_deleted == 2
    assert ended < 45


def test_fault_22_a_drain_returns_a_message_once_and_not_to_its_own_open_receive_calls() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(5)

    async def main() -> Counters:
        consumer = make_consumer(service, transport, concurrency=60)
        consumer.start()
        transport.put(*[ADA] * 20)  # two full responses: a third and a fourth receive call stay open
        await asyncio.sleep(1)
        assert transport.open_receives > 1
        asyncio.get_running_loop().call_later(1, lambda: transport.put(ADA))
        await drain(consumer, budget_seconds=25)
        return consumer.counters

    counts = run_virtually(main())

    calls = [(entries, at) for verb, _, entries, at in transport.calls if verb == "change_visibility"]
    [at] = [at for entries, at in calls if ("r21", 0) in entries]
    assert at >= 20  # when the last open receive call had ended; its lease was extended meanwhile
    assert counts.as_dict() == {"received": 21, "handled": 20, "released": 1}


def test_fault_25_a_handler_that_ignores_its_cancellation_does_not_delay_the_end() -> None:
    service, transport = make_service(), FakeTransport()
    release = asyncio.Event()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async def main() -> tuple[Counters, float]:
        consumer = make_consumer(service, transport)
        consumer.start()
        transport.put(ADA)
        await asyncio.sleep(1)
        await drain(consumer, budget_seconds=25)
        ended = asyncio.get_running_loop().time()
        release.set()
        await asyncio.sleep(1)
        return consumer.counters, ended

    counts, ended = run_virtually(main())

    assert counts.cancelled == 1
    assert transport.entries("change_visibility")[-1] == ("r1", 0)
    assert ended < 28


def test_fault_13_messages_that_could_not_be_deleted_in_time_are_counted() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["delete"].extend([60.0] * 5)  # at any number of attempts

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    async def main() -> Counters:
        consumer = make_consumer(service, transport)
        consumer.start()
        await asyncio.sleep(19)
        transport.put(ADA)
        await asyncio.sleep(0.5)
        await drain(consumer, budget_seconds=1)
        return consumer.counters

    counts = run_virtually(main())

    assert counts.handled == 1
    assert counts.not_deleted == 1


def test_a_message_whose_task_is_cancelled_before_it_began_is_returned() -> None:
    service, transport = Service("ledger", queue=Queue("ledger", fifo=True)), FakeTransport()

    @service.subscribe(Paid)
    async def handle(_: Paid) -> None: ...

    async def main() -> Counters:
        consumer = make_consumer(service, transport)
        consumer._accept([transport.message(PAID, received_at=0.0, group_id="a")])
        for task in consumer._runner.tasks:
            task.cancel()
        await drain(consumer, budget_seconds=25)
        return consumer.counters

    counts = run_virtually(main())

    assert transport.entries("change_visibility") == [("r1", 0)]
    assert counts.as_dict() == {"received": 1, "cancelled": 1}
