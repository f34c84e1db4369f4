"""A batch collector by itself: when a batch starts, how many run, and items that do not wait any more."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, cast

import pytest

from smartpipe import Batch, BatchDelivery, Delivery, Publisher, Service
from smartpipe.consumer.batches import BatchCollector
from smartpipe.consumer.invoke import CANCEL_GRACE_SECONDS, HandlerTimeout, Invocation
from smartpipe.consumer.leases import Lease
from smartpipe.consumer.threads import Threads
from smartpipe.counters import Counters
from smartpipe.envelope import wrap
from smartpipe.envelope.encode import current_envelope
from smartpipe.message import Message
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable

Outcomes = list[BaseException | None]


class Collecting:
    """A collector whose handler takes *seconds* for each batch. It records the batches and their times."""

    def __init__(self, batch: Batch, *, seconds: float = 1, **options: Any) -> None:
        self.seconds = seconds
        self.fail: Callable[[BatchDelivery], None] = lambda _: None
        self.begun: list[tuple[float, int]] = []
        self.calls: list[int] = []
        self.running = self.most = self.cancelled = 0
        self.outcomes: Outcomes = []
        service = Service("index")
        service.subscribe(UserSignedUp, batch=batch, **options)(self.handle)
        self.publisher = Publisher("index", transport=FakeTransport())
        self.counters = Counters()
        self.collector = BatchCollector(
            service.handlers[0],
            batch,
            Invocation(Threads(10), self.counters),
            self.publisher,
            on_outcome=self.outcomes.append,
        )

    async def handle(self, events: list[UserSignedUp], batch: BatchDelivery) -> None:
        assert current_envelope.get() is None
        self.begun.append((asyncio.get_running_loop().time(), len(events)))
        self.calls += [delivery.calls for delivery in batch.deliveries]
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
            self.fail(batch)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def add(self, count: int = 1) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self._add(number)) for number in range(count)]

    async def _add(self, number: int) -> None:
        envelope = wrap(ADA, source="test")
        current_envelope.set(envelope)
        message = Message(f"m{number}", f"r{number}", "{}")
        lease = Lease(message, math.inf, math.inf, asyncio.get_running_loop().time)
        delivery = Delivery[Any](
            envelope, message, handler="h", service="index", queue="index", lease=lease, publisher=self.publisher
        )
        await self.collector(delivery)


async def results_of(tasks: list[asyncio.Task[None]]) -> Outcomes:
    return cast("Outcomes", await asyncio.gather(*tasks, return_exceptions=True))


@pytest.mark.parametrize("concurrency", [1, 2, None])
def test_as_many_batches_run_as_the_handlers_concurrency_allows(concurrency: int | None) -> None:
    async def main() -> None:
        collecting = Collecting(Batch(size=2, linger_seconds=5), concurrency=concurrency)
        for _ in range(2):
            assert await results_of(collecting.add(8)) == [None] * 8
        assert collecting.most == (concurrency or 4)
        assert asyncio.get_running_loop().time() == 2 * 4 / (concurrency or 4)

    run_virtually(main())


@pytest.mark.parametrize("end", ["error", "timeout"])
def test_a_batch_that_fails_leaves_its_place_to_the_next(end: str) -> None:
    def fail(_: BatchDelivery) -> None:
        raise ValueError("the whole batch")

    async def main() -> None:
        collecting = Collecting(Batch(size=2, linger_seconds=5), concurrency=1, timeout_seconds=10)
        if end == "error":
            collecting.fail = fail
        else:
            collecting.seconds = 100
        first = await results_of(collecting.add(2))
        assert [type(one) for one in first] == [ValueError if end == "error" else HandlerTimeout] * 2
        assert collecting.outcomes == [first[0]]
        collecting.seconds, collecting.fail = 1, lambda _: None
        assert await results_of(collecting.add(2)) == [None, None]

    run_virtually(main())


def test_a_batch_starts_when_it_is_full_and_otherwise_after_its_own_linger() -> None:
    async def main() -> None:
        collecting = Collecting(Batch(size=3, linger_seconds=5))
        tasks = collecting.add(3)
        await asyncio.sleep(4)
        tasks += collecting.add(2)
        await asyncio.sleep(4.5)  # the linger of the first batch would be over
        assert collecting.collector.pending == 2
        tasks += collecting.add(2)
        assert await results_of(tasks) == [None] * 7
        assert collecting.begun == [(0, 3), (8.5, 3), (13.5, 1)]
        assert collecting.calls == [1] * 7
        assert collecting.outcomes == [None] * 3

    run_virtually(main())


def test_a_flush_starts_the_pending_batch_and_a_close_every_later_one_too() -> None:
    async def main() -> None:
        collecting = Collecting(Batch(size=3, linger_seconds=300))
        collecting.collector.flush()  # nothing is pending
        tasks = collecting.add(2)
        await asyncio.sleep(1)
        collecting.collector.flush()
        await asyncio.sleep(1)
        tasks += collecting.add(1)
        await asyncio.sleep(1)
        assert (collecting.begun, collecting.collector.pending) == ([(1, 2)], 1)
        collecting.collector.close()
        await asyncio.sleep(1)
        tasks += collecting.add(2)
        assert await results_of(tasks) == [None] * 5
        assert collecting.begun == [(1, 2), (3, 1), (4, 1), (4, 1)]

    run_virtually(main())


def test_each_item_has_its_own_failure_and_the_batch_counts_as_one_only_if_all_have_failed() -> None:
    errors = [ValueError("first"), ValueError("second"), ValueError("third")]

    async def main() -> None:
        collecting = Collecting(Batch(size=3, linger_seconds=5))

        def fail_two(batch: BatchDelivery) -> None:
            for index in (0, 2):
                batch.fail(index, errors[index])

        def fail_all(batch: BatchDelivery) -> None:
            for index in range(3):
                batch.fail(index, errors[index])

        collecting.fail = fail_two
        assert await results_of(collecting.add(3)) == [errors[0], None, errors[2]]
        assert collecting.outcomes == [None]
        collecting.fail = fail_all
        assert await results_of(collecting.add(3)) == errors
        assert collecting.outcomes == [None, errors[0]]

    run_virtually(main())


def test_an_item_that_is_cancelled_before_its_batch_starts_is_not_part_of_it() -> None:
    async def main() -> None:
        collecting = Collecting(Batch(size=3, linger_seconds=5))
        first, second = collecting.add(2)
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.sleep(1)
        assert collecting.collector.pending == 1
        await second
        assert collecting.begun == [(5, 1)]

        [alone] = collecting.add(1)
        await asyncio.sleep(1)
        alone.cancel()
        await asyncio.sleep(10)
        assert (len(collecting.begun), collecting.outcomes) == (1, [None])  # nothing is called for no item

    run_virtually(main())


def test_a_running_batch_is_cancelled_with_the_last_item_that_waits_for_it() -> None:
    async def main() -> None:
        collecting = Collecting(Batch(size=3, linger_seconds=5), seconds=100, timeout_seconds=None)
        for round_ in (1, 2):
            first, second, third = collecting.add(3)
            await asyncio.sleep(1)
            for task in (first, third):
                task.cancel()
            await asyncio.sleep(1)
            assert (collecting.running, collecting.cancelled) == (1, round_ - 1)
            second.cancel()
            await asyncio.sleep(1)
            assert (collecting.running, collecting.cancelled) == (0, round_)

    run_virtually(main())


def test_a_batch_whose_handler_does_not_end_fails_its_items_and_frees_its_place() -> None:
    released = asyncio.Event()

    async def main() -> None:
        collecting = Collecting(Batch(size=2, linger_seconds=5), concurrency=1, timeout_seconds=10)

        endless = Endless(released)
        service = Service("index")
        service.subscribe(UserSignedUp, batch=Batch(size=2), concurrency=1, timeout_seconds=10)(endless.handle)
        collecting.collector = BatchCollector(
            service.handlers[0],
            Batch(size=2),
            Invocation(Threads(10), collecting.counters),
            collecting.publisher,
            on_outcome=collecting.outcomes.append,
        )
        failures = await results_of(collecting.add(2))
        assert asyncio.get_running_loop().time() == 10 + CANCEL_GRACE_SECONDS
        assert [str(failure) for failure in failures] == ["its batch ran into its timeout, and does not end"] * 2
        assert all(isinstance(failure, HandlerTimeout) for failure in failures)
        assert collecting.counters.not_ended == 1
        endless.ends = True
        assert await results_of(collecting.add(2)) == [None, None]
        released.set()
        await asyncio.sleep(1)
        assert len(collecting.outcomes) == 2  # the late end changes nothing
        assert await results_of(collecting.add(2)) == [None, None]

    run_virtually(main())


class Endless:
    def __init__(self, released: asyncio.Event) -> None:
        self.released = released
        self.ends = False

    async def handle(self, events: list[UserSignedUp]) -> None:
        while not self.ends and not self.released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.released.wait()
