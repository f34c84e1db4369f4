"""Messages that are received ahead of free slots: how many, and that they are settled like all others."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from smartpipe import CircuitBreaker, Queue, Service, Worker
from smartpipe.consumer.prefetch import (
    MAX_PREFETCHED,
    MAX_PREFETCHED_BYTES,
    MAX_WAIT_SECONDS,
    SPREAD,
    Prefetch,
    ReceivedAhead,
)
from smartpipe.consumer.slots import Slots
from smartpipe.settings import WorkerSettings
from tests.support.consumers import consuming, drain, make_consumer
from tests.support.events import ADA, Paid, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.consumer.consumer import Consumer
    from smartpipe.message import Failure, Message

ROUND_TRIP_SECONDS = 0.015


class FarTransport(FakeTransport):
    """A transport with a round trip of 15 ms, that redelivers no message."""

    async def receive(self, queue: str, **options: Any) -> list[Message]:
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        return await super().receive(queue, **options)

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        return await super().delete(queue, receipts)

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        return await super().change_visibility(queue, leases)

    @property
    def returned(self) -> list[str]:
        """The receipts of the messages that were returned to the queue."""
        return [receipt for receipt, seconds in self.entries("change_visibility") if seconds == 0]


def measure(prefetch: Prefetch, rate: float, seconds: float = ROUND_TRIP_SECONDS, *, bytes_each: float = 500) -> int:
    """Let two seconds pass, in which *rate* messages a second are handled."""
    start = prefetch._began if prefetch._began > 0 else 100.0
    for step in range(1, 21):
        now = start + step / 10
        prefetch.record_receive(now - seconds, now, handled=int(rate * now), bytes_each=bytes_each)
    return prefetch.count


@pytest.mark.parametrize(
    ("rate", "seconds", "count"),
    [
        (1_000, 0.015, 30),
        (1_000, 0.080, 160),
        (10_000, 0.001, 20),
        (150, 0.015, 0),
        (166, 0.015, 0),
        (167, 0.0151, 5),
        (100_000, 0.015, MAX_PREFETCHED),
    ],
)
def test_two_round_trips_of_handled_messages_are_received_ahead_if_that_is_half_of_the_slots(
    rate: float, seconds: float, count: int
) -> None:
    assert measure(Prefetch(10), rate, seconds) == pytest.approx(count, abs=1)


@pytest.mark.parametrize(
    ("concurrency", "rate", "count"),
    [(10, 990, 0), (10, 1_010, 10), (1, 1_010, 10), (1, 990, 0), (80, 1_010, 0), (80, 7_900, 0), (80, 8_100, 10)],
)
def test_one_call_is_received_ahead_if_all_slots_are_used_again_within_ten_milliseconds(
    concurrency: int, rate: float, count: int
) -> None:
    assert measure(Prefetch(concurrency), rate, 0.0001) == count


def test_few_large_messages_are_received_ahead() -> None:
    assert measure(Prefetch(10), 10_000, 0.08, bytes_each=262_144) == MAX_PREFETCHED_BYTES // 262_144 == 64


def test_a_busy_event_loop_lengthens_the_round_trip_four_times_at_most_and_a_longer_way_does_after_some_seconds() -> (
    None
):
    prefetch = Prefetch(10)
    near = measure(prefetch, 1_000, 0.015)

    assert measure(prefetch, 1_000, 0.600) == pytest.approx(SPREAD * near, abs=SPREAD)
    for _ in range(4):
        measure(prefetch, 100, 0.600)
    assert prefetch.count == pytest.approx(120, abs=1)


def test_for_round_trips_of_varying_length_their_mean_counts() -> None:
    prefetch, now, counts = Prefetch(10), 100.0, list[int]()
    for step in range(200):
        now += 0.1
        seconds = 0.01 if step % 2 else 0.03
        counts.append(prefetch.record_receive(now - seconds, now, handled=int(1_000 * now), bytes_each=500))

    # Each new one has a quarter of the weight, so the mean is now 1.4 ms longer and now as much shorter than 20 ms.
    assert counts[-2:] == pytest.approx([42, 37], abs=1)


def test_after_a_reset_nothing_is_received_ahead_until_the_rate_has_been_measured() -> None:
    prefetch = Prefetch(10)
    assert measure(prefetch, 1_000) > 0

    prefetch.reset()

    assert prefetch.count == 0
    assert measure(prefetch, 10) == 0


def test_the_rate_is_a_moving_average_of_measurements_at_least_a_twentieth_of_a_second_apart() -> None:
    prefetch, counts = Prefetch(10), list[int]()
    prefetch.record_receive(99.98, 100.0, handled=0, bytes_each=500)
    for now, handled in ((100.04, 10_000), (100.5, 1_000), (101.0, 2_000), (101.04, 90_000), (101.5, 3_000)):
        counts.append(prefetch.record_receive(now - 0.02, now, handled=handled, bytes_each=500))

    # A quarter of 2,000/s, then three quarters of that and another quarter, each for two round trips of 20 ms.
    assert counts == pytest.approx([0, 20, 35, 35, 46], abs=1)


def test_the_least_round_trip_is_that_of_this_period_of_five_seconds_and_the_one_before() -> None:
    prefetch, counts = Prefetch(1), list[int]()
    prefetch._rate_per_second, prefetch._began = 1_000.0, 100.0
    for second in range(1, 22):
        seconds = 0.001 if second == 7 else 0.05
        now = 100.0 + second
        counts.append(prefetch.record_receive(now - seconds, now, handled=1_000 * second, bytes_each=500))

    assert counts[:6] == pytest.approx([100] * 6, abs=1)
    shorter = [second for second, count in enumerate(counts, 1) if count < 30]
    assert shorter == list(range(7, 19))


@pytest.mark.parametrize(("bytes_each", "count"), [(0, 1_000), (16_777, 1_000), (16_800, 998), (2**24, 1), (2**25, 0)])
def test_at_most_a_thousand_messages_and_16_megabytes_are_received_ahead(bytes_each: float, count: int) -> None:
    assert measure(Prefetch(10), 10_000_000, bytes_each=bytes_each) == count


def service_of(handle: Callable[[UserSignedUp], Awaitable[None]], **options: Any) -> Service:
    service = Service("mailer")
    service.subscribe(UserSignedUp, **options)(handle)
    return service


class Work:
    """A handler that takes a time that may change, and counts its calls."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self.begun = 0
        self.running = 0
        self.most = 0

    async def handle(self, event: UserSignedUp) -> None:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1


async def run_until(condition: Callable[[], object]) -> float:
    """Return when *condition* holds, in steps of 1 ms."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        assert loop.time() - began < 1_000
        await asyncio.sleep(0.001)
    return loop.time() - began


@pytest.mark.parametrize("prefetch", [True, False])
def test_fast_handlers_do_not_wait_for_the_network_and_never_run_beyond_the_concurrency(prefetch: bool) -> None:
    transport, work = FarTransport(), Work(0.001)
    transport.put(*[ADA] * 5_000)

    async def main() -> float:
        async with consuming(service_of(work.handle), transport, prefetch=prefetch) as consumer:
            seconds = await run_until(lambda: consumer.counters.handled == 5_000)
            assert transport.returned == []  # none of them has waited for long
            return seconds

    seconds = run_virtually(main())

    assert work.most == 10
    if prefetch:
        assert seconds < 3 * 5_000 * 0.001 / 10  # three times what ten handlers need, for it starts slowly
    else:
        assert seconds > 5_000 / 10 * ROUND_TRIP_SECONDS


def test_responses_of_a_broker_that_is_now_fast_and_now_slow_do_not_hold_fast_handlers_back() -> None:
    class Uneven(FakeTransport):
        number = 0

        async def receive(self, queue: str, **options: Any) -> list[Message]:
            self.number += 1
            await asyncio.sleep(0.005 if self.number % 5 == 0 else 0.025)
            return await super().receive(queue, **options)

    transport, work = Uneven(), Work(0.001)
    transport.put(*[ADA] * 5_000)

    async def main() -> float:
        async with consuming(service_of(work.handle), transport) as consumer:
            return await run_until(lambda: consumer.counters.handled == 5_000)

    assert run_virtually(main()) < 3 * 5_000 * 0.001 / 10


def test_slow_handlers_get_no_message_ahead() -> None:
    transport, work = FarTransport(), Work(0.1)
    transport.put(*[ADA] * 300)
    most = 0

    async def main() -> None:
        nonlocal most
        async with consuming(service_of(work.handle), transport) as consumer:
            while consumer.counters.handled < 250:
                most = max(most, consumer.in_flight)
                await asyncio.sleep(0.01)

    run_virtually(main())

    assert most == 10


async def fill(consumer: Consumer) -> None:
    """Return while at least 30 messages wait for a slot."""
    await run_until(lambda: len(consumer._ahead.groups) >= 30)


def settled(transport: FarTransport) -> set[str]:
    return {*transport.entries("delete"), *transport.returned}


def test_slow_handlers_after_fast_ones_return_what_was_received_ahead() -> None:
    transport, work = FarTransport(), Work(0.001)
    transport.put(*[ADA] * 3_000)

    async def main() -> None:
        async with consuming(service_of(work.handle), transport) as consumer:
            await fill(consumer)
            work.seconds = 60
            await asyncio.sleep(3)

            assert consumer.in_flight == 10
            assert len(transport.returned) >= 20
            begun = work.begun
            await asyncio.sleep(30)
            assert (consumer.in_flight, work.begun) == (10, begun)
            work.seconds = 0.001

    run_virtually(main())

    assert transport.asked[-1] <= 10


def test_after_an_empty_response_nothing_is_received_ahead() -> None:
    transport, work = FarTransport(), Work(0.001)
    transport.put(*[ADA] * 2_000)

    async def main() -> None:
        async with consuming(service_of(work.handle), transport, poll_seconds=1) as consumer:
            await run_until(lambda: consumer.counters.handled == 2_000)
            await asyncio.sleep(2)
            work.seconds = 60
            transport.put(*[ADA] * 100)
            await asyncio.sleep(0.5)

            assert consumer.in_flight == 10
            work.seconds = 0.001

    run_virtually(main())


@pytest.mark.parametrize(("prefetch", "most"), [("true", 11), ("false", 10)])
async def test_a_setting_turns_it_off(monkeypatch: pytest.MonkeyPatch, prefetch: str, most: int) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFETCH", prefetch)
    transport, work = FarTransport(), Work(0.001)
    transport.put(*[ADA] * 1_500)
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, drain_seconds=10)
    worker = Worker(service_of(work.handle), transport, settings)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.ready)

    in_flight = 0
    while worker.consumers[0].counters.handled < 1_500:
        in_flight = max(in_flight, worker.consumers[0].in_flight)
        await asyncio.sleep(0)
    worker.stop()

    assert await running == 0
    assert in_flight >= most if prefetch == "true" else in_flight <= most


@pytest.mark.parametrize("stop", ["drain", "pause"])
def test_a_stop_returns_what_was_received_ahead_and_loses_nothing(stop: str) -> None:
    transport, work = FarTransport(), Work(0.001)
    transport.put(*[ADA] * 3_000)

    async def main() -> None:
        consumer = make_consumer(service_of(work.handle), transport, poll_seconds=1)
        consumer.start()
        await fill(consumer)
        if stop == "pause":
            consumer.pause()
            begun = work.begun
            await asyncio.sleep(2)
            assert work.begun <= begun + 10
            assert (consumer.in_flight, consumer.open_calls) == (0, 0)
        await drain(consumer)

    run_virtually(main())

    received = 3_000 - len(transport._inbox)
    assert len(settled(transport)) == received < 3_000
    assert len(transport.returned) >= 20


def test_an_open_circuit_returns_what_was_received_ahead() -> None:
    transport, work = FarTransport(), Work(0.001)
    transport.put(*[ADA] * 3_000)
    failing = False

    async def handle(event: UserSignedUp) -> None:
        await work.handle(event)
        if failing:
            raise ConnectionError

    async def main() -> None:
        nonlocal failing
        service = service_of(handle, breaker=CircuitBreaker(failures=5, reset_seconds=600))
        async with consuming(service, transport) as consumer:
            await fill(consumer)
            failing, begun = True, work.begun
            await asyncio.sleep(2)
            assert consumer.in_flight == 0
            assert work.begun <= begun + 25
            failing = False

    run_virtually(main())


def test_the_order_of_each_group_holds_for_messages_that_were_received_ahead() -> None:
    transport, seen = FarTransport(), list[tuple[str | None, int]]()
    for number in range(300):
        for account in "abcdefghijklmnopqrst":
            transport.put(Paid(account=account, number=number), group_id=account)

    async def main() -> None:
        service = Service("ledger", queue=Queue("ledger", fifo=True))

        @service.subscribe(Paid)
        async def book(event: Paid) -> None:
            seen.append((event.account, event.number))
            await asyncio.sleep(0.001)

        async with consuming(service, transport) as consumer:
            await run_until(lambda: consumer.counters.handled == 6_000)

    run_virtually(main())

    for account in "abcdefghijklmnopqrst":
        assert [number for name, number in seen if name == account] == list(range(300))


@pytest.mark.parametrize("slow", [0, 1])
async def test_waiting_messages_whose_handlers_wait_for_nothing_begin_a_few_in_each_turn_of_the_loop(slow: int) -> None:
    class EagerRunner:
        """Starts groups whose tasks end at once, but for the first two."""

        def __init__(self) -> None:
            self.tasks: dict[str, Any] = {}
            self.started: list[Any] = []
            self.stopping = False
            self.on_end: Any = None

        def start_group(self, group: Any) -> None:
            self.started.append(group)
            if len(self.started) <= 2:
                self.tasks[group[0].name] = group

    runner, groups = EagerRunner(), [[SimpleNamespace(name=str(number), lost=False)] for number in range(12)]
    ahead = ReceivedAhead(cast("Any", runner), Slots(2), Prefetch(2))
    for group in groups:
        ahead.start(cast("Any", group), ahead=True)
    assert runner.started == groups[:2]

    counts = []
    while len(runner.tasks) > slow:
        runner.tasks.popitem()
    runner.on_end()
    ahead.start(cast("Any", late := [SimpleNamespace(name="late", lost=False)]), ahead=True)
    while ahead.groups:
        counts.append(len(runner.started))
        await asyncio.sleep(0)

    assert counts == [4, 6, 8, 10, 12]
    assert runner.started == [*groups, late]
    assert runner.on_end is None


async def test_a_wait_that_ends_early_by_the_resolution_of_the_clock_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[Any] = []
    runner = SimpleNamespace(tasks={"a": 1}, stopping=False, on_end=None, return_unhandled=returned.append)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 1_000.0)
    ahead = ReceivedAhead(cast("Any", runner), Slots(1), Prefetch(1))
    received_at = 1_000.0 - MAX_WAIT_SECONDS + 1e-9
    group = [SimpleNamespace(message=SimpleNamespace(received_at=received_at))]
    ahead.groups.append(cast("Any", group))

    ahead._end_wait()

    assert returned == [group]


def test_messages_that_wait_begin_when_another_task_takes_a_hanging_one_over() -> None:
    begun: list[str] = []
    released = asyncio.Event()

    async def handle(event: UserSignedUp) -> None:
        begun.append(event.name)
        while event.name == "hang" and not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()

    async def main() -> list[str]:
        transport = FakeTransport()
        consumer = make_consumer(service_of(handle, timeout_seconds=1), transport, concurrency=1)

        def receive(*names: str) -> None:
            now = asyncio.get_running_loop().time()
            events = [ADA.model_copy(update={"name": name}) for name in names]
            consumer._accept([transport.message(event, received_at=now) for event in events], ahead=True)

        receive("hang")
        await asyncio.sleep(5.7)
        receive("a", "b")
        await asyncio.sleep(0.5)  # it is taken over 6 s after it began
        found = list(begun)
        released.set()
        await drain(consumer)
        return found

    assert run_virtually(main()) == ["hang", "a", "b"]
