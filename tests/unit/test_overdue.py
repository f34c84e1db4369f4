"""Handlers that do not end at their timeout: messages are settled, slots are freed, and their number is limited."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import field_validator
from tenacity import wait_fixed

from smartpipe import Batch, BatchDelivery, Delivery, Event, Queue, Retry, RetryPolicy, Service, Topic
from smartpipe.consumer.invoke import CANCEL_GRACE_SECONDS
from smartpipe.envelope import encode, wrap
from smartpipe.testing import MemoryBroker
from tests.support.consumers import VISIBILITY_SECONDS, consuming, make_service
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.hanging import Hanging
from tests.support.virtual_time import run_virtually
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Coroutine

SEVEN = RetryPolicy(attempts=3, wait=wait_fixed(7))
TIMEOUT = 10.0


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it on virtual time; at its end, release the handlers that still ignore their cancellation."""

    async def released() -> None:
        try:
            await main
        finally:
            for handler in EndlessHandler.all:
                handler.released.set()
            EndlessHandler.all.clear()
            await asyncio.sleep(1)

    run_virtually(released())


def returned(transport: FakeTransport) -> list[tuple[str, float]]:
    """Return the messages that were made visible again, without the extensions of leases."""
    return sorted(entry for entry in transport.entries("change_visibility") if entry[1] < VISIBILITY_SECONDS)


class EndlessHandler:
    """Swallows every cancellation until it is released."""

    all: ClassVar[list[EndlessHandler]] = []

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.swallowed = 0
        self.ended = 0
        self.all.append(self)

    async def __call__(self) -> None:
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.swallowed += 1
        self.ended += 1


def test_a_handler_that_swallows_its_cancellation_is_settled_as_timed_out_and_frees_its_slot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        service, transport, handler, seen = (
            make_service(retry=SEVEN, timeout_seconds=TIMEOUT),
            FakeTransport(),
            EndlessHandler(),
            [],
        )

        @service.subscribe(UserSignedUp)
        async def handle(event: UserSignedUp) -> None:
            if event == ADA:
                await handler()
            seen.append(event)

        transport.put(*[ADA] * 4)
        async with consuming(service, transport, concurrency=4) as consumer:
            await asyncio.sleep(TIMEOUT + CANCEL_GRACE_SECONDS - 0.1)
            assert returned(transport) == []
            await asyncio.sleep(0.2)
            assert returned(transport) == [(f"r{n}", 7) for n in range(1, 5)]
            assert consumer.in_flight == 0
            assert (consumer.counters.retried, consumer.counters.not_ended) == (4, 4)
            handler.released.set()
            await asyncio.sleep(1)
        assert handler.ended == 4
        assert transport.entries("delete") == []
        assert consumer.counters.handled == 0

    with caplog.at_level(logging.INFO):
        run(main())

    [first, *_] = [record for record in caplog.records if "does not end although" in record.message]
    assert "handle" in first.message
    assert "5 s ago" in first.message
    assert first.fields["event_id"]  # type: ignore[attr-defined]
    assert sum("has now ended" in record.message for record in caplog.records) == 4


def test_a_handler_that_ends_soon_after_it_swallowed_its_cancellation_is_not_overdue() -> None:
    async def main() -> None:
        service, transport = make_service(retry=SEVEN, timeout_seconds=TIMEOUT), FakeTransport()

        @service.subscribe(UserSignedUp)
        async def handle(_: UserSignedUp) -> None:
            try:
                await asyncio.sleep(1_000)
            except asyncio.CancelledError:
                await asyncio.sleep(CANCEL_GRACE_SECONDS - 1)

        transport.put(ADA)
        async with consuming(service, transport) as consumer:
            await asyncio.sleep(60)
        assert consumer.counters.as_dict() == {"received": 1, "handled": 1}

    run(main())


def test_as_many_overdue_calls_as_slots_stop_receiving_until_some_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        service, transport, handler = (
            make_service(retry=SEVEN, timeout_seconds=TIMEOUT),
            FakeTransport(),
            EndlessHandler(),
        )

        @service.subscribe(UserSignedUp)
        async def handle(_: UserSignedUp) -> None:
            await handler()

        @service.subscribe(UserLeft)
        async def good(_: UserLeft) -> None: ...

        transport.put(*[ADA] * 3)
        async with consuming(service, transport, concurrency=3) as consumer:
            capacity = consumer.processor._resources.threads.capacity
            await asyncio.sleep(TIMEOUT + CANCEL_GRACE_SECONDS + 1)
            assert capacity.full
            assert not capacity.alive
            assert not capacity.ready
            transport.put(UserLeft(name="7"))
            await asyncio.sleep(300)
            assert consumer.counters.handled == 0
            handler.released.set()
            await asyncio.sleep(30)
            assert consumer.counters.handled == 1
            assert (capacity.full, capacity.alive, capacity.ready, capacity.overdue) == (False, True, True, 0)

    with caplog.at_level(logging.INFO):
        run(main())

    [stopped] = [record.message for record in caplog.records if record.message.startswith("Receiving no more")]
    assert "handle (3)" in stopped
    assert sum(record.message.startswith("Receiving messages again") for record in caplog.records) == 1


def test_a_drain_does_not_wait_for_overdue_handlers() -> None:
    async def main() -> None:
        service, transport, handler = (
            make_service(retry=SEVEN, timeout_seconds=TIMEOUT),
            FakeTransport(),
            EndlessHandler(),
        )

        @service.subscribe(UserSignedUp)
        async def handle(_: UserSignedUp) -> None:
            await handler()

        transport.put(ADA)
        async with consuming(service, transport):
            await asyncio.sleep(TIMEOUT + CANCEL_GRACE_SECONDS + 1)
            before = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - before <= 21
        await asyncio.sleep(0)
        assert handler.swallowed == 2
        handler.released.set()

    run(main())


def test_a_fifo_group_continues_behind_a_handler_that_does_not_end() -> None:
    async def main() -> None:
        users = Topic("users", fifo=True)

        class Moved(Event, topic=users, type="user.moved", version="1.0", key="who"):
            who: str
            number: int

        service = Service("mover", queue=Queue("mover", fifo=True), retry=SEVEN, timeout_seconds=TIMEOUT)
        handler, seen = EndlessHandler(), list[tuple[int, int]]()

        @service.subscribe(Moved)
        async def handle(event: Moved, delivery: Delivery) -> None:
            if event.number == 1 and delivery.receive_count == 1:
                await handler()
                assert delivery.lease_lost
            else:
                seen.append((event.number, delivery.receive_count))

        async with MemoryBroker(service, virtual=False) as broker:
            for number in (1, 2, 3):
                await broker.publish(Moved(who="ada", number=number))
            await broker.drain()
            assert [number for number, _ in seen] == [1, 2, 3]
            handler.released.set()
            await asyncio.sleep(0)

    run(main())


def test_the_items_of_a_batch_whose_handler_does_not_end_are_settled_separately() -> None:
    async def main() -> None:
        service, transport, handler = make_service(retry=SEVEN), FakeTransport(), EndlessHandler()
        calls = list[int]()

        @service.subscribe(UserSignedUp, batch=Batch(size=3, linger_seconds=1), timeout_seconds=TIMEOUT, concurrency=1)
        async def handle(events: list[UserSignedUp], _: BatchDelivery) -> None:
            calls.append(len(events))
            if len(calls) == 1:
                await handler()

        transport.put(*[ADA] * 3)
        async with consuming(service, transport) as consumer:
            await asyncio.sleep(TIMEOUT + CANCEL_GRACE_SECONDS + 2)
            assert returned(transport) == [(f"r{n}", 7) for n in range(1, 4)]
            transport.put(*[ADA] * 3)
            await asyncio.sleep(5)
            assert consumer.counters.as_dict() == {"received": 6, "handled": 3, "retried": 3, "not_ended": 1}
            handler.released.set()
            await asyncio.sleep(1)
        assert calls == [3, 3]

    run(main())


def test_an_event_whose_idempotent_handler_ends_late_is_not_handled_again() -> None:
    async def main() -> None:
        service = Service("mailer", retry=RetryPolicy(attempts=5, wait=wait_fixed(100)), timeout_seconds=TIMEOUT)
        begun = list[int]()

        @service.subscribe(UserSignedUp, idempotent=True)
        async def handle(_: UserSignedUp, delivery: Delivery) -> None:
            begun.append(delivery.receive_count)
            try:
                await asyncio.sleep(1_000)
            except asyncio.CancelledError:
                await asyncio.sleep(20)

        async with MemoryBroker(service, virtual=False) as broker:
            await broker.publish(ADA)
            await broker.drain()
            assert begun == [1]
            assert len(broker.retried()) == 1
            assert len(broker.handled(UserSignedUp)) == 1

    run(main())


def test_a_handler_with_concurrency_1_takes_the_next_message_when_the_first_is_overdue() -> None:
    async def main() -> None:
        service, transport, handler = make_service(retry=SEVEN), FakeTransport(), EndlessHandler()
        handled = list[UserSignedUp]()

        @service.subscribe(UserSignedUp, timeout_seconds=TIMEOUT, concurrency=1)
        async def handle(event: UserSignedUp) -> None:
            if not handled:
                handled.append(event)
                await handler()
            handled.append(event)

        @service.subscribe(UserLeft, concurrency=9)
        async def other(_: UserLeft) -> None: ...

        transport.put(ADA, ADA)
        async with consuming(service, transport) as consumer:
            await asyncio.sleep(60)
            assert consumer.counters.handled == 1
            handler.released.set()
            await asyncio.sleep(1)
            transport.put(ADA)
            await asyncio.sleep(1)
            assert consumer.counters.handled == 2

    run(main())


def test_the_attempts_of_a_handler_that_never_ends_run_out() -> None:
    async def main() -> None:
        service, handler = Service("mailer", retry=SEVEN, timeout_seconds=TIMEOUT), EndlessHandler()

        @service.subscribe(UserSignedUp)
        async def handle(_: UserSignedUp) -> None:
            await handler()

        async with MemoryBroker(service, virtual=False) as broker:
            await broker.publish(ADA)
            await broker.drain()
            assert broker.assert_dead_lettered(UserSignedUp).kind == "retries-exhausted"
            handler.released.set()

    run(main())


async def test_the_number_of_abandoned_threads_is_limited_and_other_messages_wait_for_them_to_end() -> None:
    service, transport = make_service(retry=RetryPolicy(attempts=3, base_seconds=0)), FakeTransport()
    hanging, alive = Hanging(), threading.active_count()

    @service.subscribe(UserSignedUp, timeout_seconds=60)
    def hang(_: UserSignedUp) -> None:
        hanging.wait()

    @service.subscribe(UserLeft)
    def good(_: UserLeft) -> None: ...

    transport.put(*[ADA] * 300)
    async with consuming(service, transport, concurrency=5, poll_seconds=1) as consumer:
        capacity = consumer.processor._resources.threads.capacity
        await hanging.fill(consumer, seconds=60)
        received = consumer.counters.received
        assert threading.active_count() - alive <= 2 * 5
        assert received <= 5 * 5
        transport._inbox.clear()
        transport.put(*[UserLeft(name="7")] * 20)
        await asyncio.sleep(0.1)
        assert consumer.counters.handled == 0
        hanging.release.set()
        await until(lambda: consumer.counters.handled == 20)

    assert consumer.counters.dead_lettered == 0
    assert capacity.overdue == 0
    assert transport.entries("send") == []


async def test_if_a_thread_cannot_start_the_message_is_deferred_and_nothing_runs_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, transport = make_service(retry=RetryPolicy(attempts=1)), FakeTransport()
    ran, start, refuse = list[str](), threading.Thread.start, [True]

    def refused(thread: threading.Thread) -> None:
        if thread.name == "smartpipe-handler" and refuse:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)

    @service.subscribe(UserSignedUp)
    def handle(_: UserSignedUp) -> None:
        ran.append("handled")

    transport.put(ADA)
    async with consuming(service, transport, poll_seconds=1) as consumer:
        await until(lambda: consumer.counters.deferred == 1)
        capacity = consumer.processor._resources.threads.capacity
        assert not capacity.ready
        assert ran == []
        refuse.clear()
        transport.put(ADA, receive_count=2)
        await until(lambda: consumer.counters.handled == 1)
        assert capacity.ready

    assert ran == ["handled"]
    assert transport.entries("send") == []


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files"), RuntimeError("x")], ids=repr)
def test_a_message_deferred_because_of_a_shortage_has_all_its_attempts_afterwards(error: Exception) -> None:
    wrapped = RuntimeError("can't start new thread") if isinstance(error, RuntimeError) else error

    async def main() -> None:
        service = Service("mailer", retry=RetryPolicy(attempts=2, wait=wait_fixed(1)))
        failures = iter([wrapped] * 5 + [ValueError("the handler's own")])

        @service.subscribe(UserSignedUp)
        async def handle(_: UserSignedUp) -> None:
            for failure in failures:
                raise failure

        async with MemoryBroker(service, virtual=False) as broker:
            await broker.publish(ADA)
            await broker.drain()
            assert len(broker.handled(UserSignedUp)) == 1
            broker.assert_nothing_dead_lettered()

    run(main())


@pytest.mark.parametrize("batch", [None, Batch(size=2, linger_seconds=0.5)], ids=["single", "batch"])
def test_an_idempotent_handler_releases_its_claim_when_a_resource_ran_out(batch: Batch | None) -> None:
    async def main() -> None:
        service = Service("mailer", retry=RetryPolicy(attempts=1))
        failures = iter([OSError(24, "Too many open files")] * 3)
        handled = list[Any]()

        async def single(event: UserSignedUp) -> None:
            for failure in failures:
                raise ValueError("wrapped") from failure
            handled.append(event)

        async def many(events: list[UserSignedUp]) -> None:
            await single(events[0])

        if batch is None:
            service.subscribe(UserSignedUp, idempotent=True)(single)
        else:
            service.subscribe(UserSignedUp, idempotent=True, batch=batch)(many)

        async with MemoryBroker(service, virtual=False) as broker:
            await broker.publish(ADA)
            await broker.drain()
            assert len(handled) == 1
            broker.assert_nothing_dead_lettered()

    run(main())


def test_retry_and_reject_count_even_if_a_resource_ran_out() -> None:
    async def main() -> None:
        service = Service("mailer")

        @service.subscribe(UserSignedUp)
        async def handle(_: UserSignedUp, delivery: Delivery) -> None:
            if delivery.receive_count == 1:
                try:
                    raise OSError(24, "Too many open files")
                except OSError as error:
                    raise Retry("the handler knows", after_seconds=77) from error

        async with MemoryBroker(service, virtual=False) as broker:
            await broker.publish(ADA)
            await broker.drain()
            assert [retried.after_seconds for retried in broker.retried()] == [77]

    run(main())


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")], ids=repr)
def test_a_message_that_could_not_be_read_because_of_a_shortage_is_deferred(error: Exception) -> None:
    class Read(Event, topic=Topic("reading"), type="read.once", version="1.0"):
        name: str

        @field_validator("name")
        @classmethod
        def check(cls, name: str) -> str:
            if name == "too much":
                raise error
            return name

    async def main() -> None:
        service, transport = Service("reader", retry=RetryPolicy(attempts=1)), FakeTransport()

        @service.subscribe(Read)
        async def handle(_: Read) -> None: ...

        body = encode(wrap(Read(name="fine"), source="test"))
        transport.put(*[body.replace("fine", "too much")] * 3, body)
        async with consuming(service, transport, concurrency=1) as consumer:
            await asyncio.sleep(60)
        assert consumer.counters.as_dict() == {"received": 4, "handled": 1, "deferred": 3}

    run(main())


def test_a_handler_that_ends_while_its_message_is_being_dead_lettered_does_not_delete_it() -> None:
    async def main() -> None:
        service, transport, handler = (
            make_service(retry=SEVEN, timeout_seconds=TIMEOUT),
            FakeTransport(),
            EndlessHandler(),
        )

        @service.subscribe(UserSignedUp)
        async def handle(_: UserSignedUp) -> None:
            await handler()

        transport.script["send"].append(3.0)
        transport.put(ADA, receive_count=3)
        async with consuming(service, transport) as consumer:
            await asyncio.sleep(TIMEOUT + CANCEL_GRACE_SECONDS + 1)
            handler.released.set()
            await asyncio.sleep(1)
            assert (handler.ended, transport.entries("delete")) == (1, [])  # the copy is not accepted yet
            await asyncio.sleep(10)
            assert transport.entries("delete") == ["r1"]
        assert consumer.counters.as_dict() == {"received": 1, "dead_lettered": 1, "not_ended": 1}

    run(main())
