"""What a consumer reports about itself, and what it waits for and logs when it drains."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Batch, Publisher, Queue, RetryPolicy, Service, TransportError
from smartpipe.consumer.consumer import Consumer
from smartpipe.consumer.decide import Ack, RetryAfter
from smartpipe.consumer.processor import Resources
from smartpipe.consumer.receive_health import ReceiveHealth
from smartpipe.consumer.threads import Threads
from tests.support.consumers import consuming, drain, make_consumer, make_service
from tests.support.events import ADA, Paid, UserLeft, UserSignedUp
from tests.support.fakes import UNREACHABLE, FakeTransport
from tests.support.virtual_time import run_virtually
from tests.unit.test_prefetch import FarTransport

if TYPE_CHECKING:
    from smartpipe.consumer.settle import Settled


def quick_service(*, batch: bool = False) -> Service:
    service = make_service()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(0.001)

    if batch:

        @service.subscribe(UserLeft, batch=Batch(size=5, linger_seconds=0.1))
        async def index(_: list[UserLeft]) -> None: ...

    return service


def slow_service(seconds: float, **options: Any) -> Service:
    service = make_service(timeout_seconds=None, **options)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(seconds)

    return service


@pytest.mark.parametrize(("batch", "ahead"), [(False, True), (True, False)])
def test_messages_are_received_ahead_by_default_but_not_beside_a_handler_of_batches(batch: bool, ahead: bool) -> None:
    service, transport = quick_service(batch=batch), FarTransport()
    transport.put(*[ADA] * 1_000)
    most = most_in_flight = most_work = 0

    async def main() -> None:
        nonlocal most, most_in_flight, most_work
        publisher = Publisher(service.name, transport=transport)
        resources = Resources(publisher, Threads(10), publisher.payloads)
        consumer = Consumer(service, service.queue, transport, resources=resources, concurrency=10, poll_seconds=1)
        consumer.start()
        while consumer.counters.handled < 1_000:
            await asyncio.sleep(0.001)
            most = max(most, consumer.slots.prefetched)
            most_in_flight = max(most_in_flight, consumer.in_flight)
            most_work = max(most_work, consumer.open_work - consumer.open_calls - consumer.slots.unsettled)
        await drain(consumer)

    run_virtually(main())
    assert (most > 0) == ahead
    assert most_in_flight == most_work  # those that wait for a slot are included
    assert (most_in_flight > 10) == ahead


def test_a_consumer_counts_its_messages_its_calls_and_its_unsettled_work() -> None:
    service, transport = slow_service(10), FakeTransport()
    transport.script["delete"].append(5.0)

    async def main() -> None:
        async with consuming(service, transport, concurrency=3) as consumer:
            await asyncio.sleep(1)
            assert (consumer.in_flight, consumer.open_calls, consumer.open_work) == (0, 1, 1)
            transport.put(*[ADA] * 2)
            await asyncio.sleep(1)
            assert (consumer.in_flight, consumer.open_calls, consumer.open_work) == (2, 1, 3)
            await asyncio.sleep(10)  # both are handled, and their deletes are under way
            assert (consumer.in_flight, consumer.open_calls, consumer.open_work) == (0, 1, 3)
            await asyncio.sleep(5)
            assert (consumer.in_flight, consumer.open_calls, consumer.open_work) == (0, 1, 1)

    run_virtually(main())


def test_messages_of_one_fifo_group_are_one_piece_of_open_work() -> None:
    service, transport = Service("ledger", queue=Queue("ledger", fifo=True)), FakeTransport()

    @service.subscribe(Paid)
    async def book(_: Paid) -> None:
        await asyncio.sleep(10)

    async def main() -> None:
        async with consuming(service, transport, concurrency=10) as consumer:
            transport.put(*[Paid(account="a", number=number) for number in range(3)], group_id="a")
            transport.put(Paid(account="b"), group_id="b")
            await asyncio.sleep(1)
            assert (consumer.in_flight, consumer.open_work - consumer.open_calls) == (4, 2)

    run_virtually(main())


@pytest.mark.parametrize("poll_seconds", [1, 20])
def test_an_open_receive_call_may_bring_messages_for_the_time_that_it_waits(poll_seconds: int) -> None:
    service, transport = slow_service(1_000), FakeTransport()

    async def main() -> None:
        consumer = make_consumer(service, transport, concurrency=1, poll_seconds=poll_seconds)
        assert (consumer.seconds_until_closed(), consumer.open_calls) == (0, 0)
        consumer.start()
        await asyncio.sleep(poll_seconds * 3.25)
        assert consumer.seconds_until_closed() == poll_seconds * 0.75
        transport.put(ADA)
        await asyncio.sleep(0.1)
        assert (consumer.seconds_until_closed(), consumer.open_calls) == (0, 0)
        await drain(consumer, budget_seconds=1)

    run_virtually(main())


def test_the_time_since_the_last_success_counts_from_each_response_and_only_while_a_call_is_open() -> None:
    service, transport = slow_service(500), FakeTransport()

    async def main() -> None:
        async with consuming(service, transport, concurrency=1) as consumer:
            assert consumer.seconds_since_success() == 0
            await asyncio.sleep(25)
            assert (consumer.seconds_since_success(), consumer.failing) == (5, False)
            transport.script["receive"].extend([UNREACHABLE] * 3)
            await asyncio.sleep(25)
            assert consumer.failing or consumer.seconds_since_success() < 25
            transport.put(ADA)
            await asyncio.sleep(100)
            assert (consumer.seconds_since_success(), consumer.failing) == (0, False)  # every slot is taken
            await asyncio.sleep(450)
            assert consumer.open_calls == 1
            assert consumer.seconds_since_success() <= 20

    run_virtually(main())


def test_the_observer_sees_each_delivery_that_has_a_result() -> None:
    seen: list[tuple[str, type, float | None]] = []
    service, transport = make_service(retry=RetryPolicy(attempts=3, base_seconds=0)), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        if event.name == "bad":
            raise ValueError(event.name)
        if event.name == "slow":
            await asyncio.sleep(1_000)

    def observe(settled: Settled) -> None:
        seen.append((settled.queue, type(settled.processed.outcome), settled.redelivery_seconds))

    async def main() -> None:
        publisher = Publisher(service.name, transport=transport)
        resources = Resources(publisher, Threads(10), publisher.payloads)
        consumer = Consumer(
            service, service.queue, transport, resources=resources, concurrency=10, poll_seconds=1, observer=observe
        )
        consumer.start()
        for name in ("good", "bad", "slow"):
            transport.put(ADA.model_copy(update={"name": name}))
            await asyncio.sleep(1)
        await drain(consumer, budget_seconds=1)  # the slow one is cancelled, which is no result
        assert consumer.counters.cancelled == 1

    run_virtually(main())
    assert seen == [("mailer", Ack, None), ("mailer", RetryAfter, 0)]


def test_a_receive_call_that_is_still_open_at_the_end_of_the_drain_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for budget_seconds in (5, 50):
            consumer = make_consumer(quick_service(), FakeTransport())
            consumer.start()
            await asyncio.sleep(1)
            await drain(consumer, budget_seconds=budget_seconds)

    with caplog.at_level(logging.WARNING, "smartpipe.consumer"):
        run_virtually(main())
    assert caplog.messages == [
        "Queue mailer: a receive call was still open; its messages will reappear after the visibility timeout"
    ]


def test_messages_that_could_not_be_settled_in_time_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    service, transport = quick_service(), FakeTransport()
    transport.script["delete"].extend([1_000.0] * 100)

    async def main() -> tuple[int, float]:
        consumer = make_consumer(service, transport, poll_seconds=1)
        consumer.start()
        transport.put(*[ADA] * 3)
        await asyncio.sleep(1.5)
        began = asyncio.get_running_loop().time()
        await drain(consumer, budget_seconds=2)
        return consumer.counters.not_deleted, asyncio.get_running_loop().time() - began

    with caplog.at_level(logging.ERROR, "smartpipe.consumer"):
        not_deleted, seconds = run_virtually(main())
    assert not_deleted == 3
    assert 5.9 <= seconds <= 6.1  # two for handlers, and four for deletes
    assert caplog.messages == ["Queue mailer: 3 messages could not be settled in time and will be delivered again"]


def test_a_flush_has_a_second_even_if_the_time_of_the_drain_is_over() -> None:
    service, transport = slow_service(1_000), FakeTransport()
    transport.script["change_visibility"].append(0.9)

    async def main() -> float:
        consumer = make_consumer(service, transport, concurrency=1)
        consumer.start()
        transport.put(ADA)
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await consumer.drain(handlers_until=began - 5, flush_until=began - 1, hard=asyncio.Event())
        assert consumer.counters.not_deleted == 0
        return loop.time() - began

    assert 0.8 < run_virtually(main()) < 1.1
    assert transport.entries("change_visibility") == [("r1", 0)]


def test_the_ticker_lasts_as_long_as_deletes_are_under_way_and_ends_with_the_drain() -> None:
    service, transport = quick_service(), FakeTransport()
    transport.script["delete"].append(2.9)

    async def main() -> None:
        consumer = make_consumer(service, transport, poll_seconds=1)
        consumer.start()
        transport.put(ADA)
        await asyncio.sleep(0.5)
        draining = asyncio.create_task(drain(consumer))
        await asyncio.sleep(2)
        assert consumer._ticker is not None
        assert not consumer._ticker.done()
        await draining
        await asyncio.sleep(0)
        assert consumer._ticker.cancelled()

    run_virtually(main())


def test_a_paused_consumer_makes_no_receive_call_until_it_is_resumed() -> None:
    service, transport = quick_service(), FakeTransport()

    async def main() -> None:
        async with consuming(service, transport, poll_seconds=1) as consumer:
            for round_ in (1, 2):
                consumer.pause()
                consumer.pause()
                await asyncio.sleep(2)
                calls = len(transport.asked)
                transport.put(ADA)
                await asyncio.sleep(60)
                assert (len(transport.asked), consumer.open_calls) == (calls, 0)
                consumer.resume()
                consumer.resume()
                await asyncio.sleep(1)
                assert consumer.counters.handled == round_

    run_virtually(main())


def test_messages_that_are_being_handled_are_not_returned_with_those_that_wait() -> None:
    service, transport = slow_service(5), FakeTransport()

    async def main() -> dict[str, int]:
        async with consuming(service, transport, concurrency=2) as consumer:
            transport.put(*[ADA] * 2)
            await asyncio.sleep(1)
            consumer.return_waiting()  # nothing waits, and those that are being handled go on
            await asyncio.sleep(10)
        return consumer.counters.as_dict()

    assert run_virtually(main()) == {"received": 2, "handled": 2}


def test_each_outage_of_receive_calls_is_logged_with_each_new_error_and_the_number_of_failed_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = TransportError("AccessDenied", "not allowed", retryable=False)
    bug = ValueError("truncated JSON")

    async def main() -> list[float]:
        health, stopping = ReceiveHealth("mailer"), asyncio.Event()
        clock = asyncio.get_running_loop().time
        waits = []
        for _ in range(2):
            for error in (UNREACHABLE, UNREACHABLE, other, bug, bug):
                began = clock()
                await health.back_off(error, stopping)
                waits.append(clock() - began)
                assert health.failing
            health.recover()
            assert not health.failing
        stopping.set()
        began = clock()
        await health.back_off(UNREACHABLE, stopping)
        assert (clock() - began, health.failing) == (0, False)
        return waits

    with caplog.at_level(logging.INFO, "smartpipe.poller"):
        waits = run_virtually(main())

    assert [0.2 <= wait <= limit for wait, limit in zip(waits, [0.5, 1, 2, 4, 8] * 2, strict=True)] == [True] * 10
    outage = [
        f"Cannot receive from queue mailer, retrying: {UNREACHABLE}",
        f"Cannot receive from queue mailer, retrying: {other}",
        "Cannot receive from queue mailer, retrying: truncated JSON",
        "Receiving from queue mailer again after 5 failed calls",
    ]
    assert caplog.messages == outage * 2
    assert [bool(record.exc_info) for record in caplog.records] == [False, False, True, False] * 2


def test_a_stop_ends_the_wait_after_a_failed_receive_call() -> None:
    async def main() -> None:
        health, stopping = ReceiveHealth("mailer"), asyncio.Event()
        for _ in range(20):
            waiting = asyncio.create_task(health.back_off(UNREACHABLE, stopping))
            await asyncio.sleep(31)
            assert waiting.done()
        waiting = asyncio.create_task(health.back_off(UNREACHABLE, stopping))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        stopping.set()
        await asyncio.sleep(0.01)
        assert waiting.done()

    run_virtually(main())
