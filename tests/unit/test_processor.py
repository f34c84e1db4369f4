"""From one delivery to its outcome: which deliveries count as attempts, and which messages are not handled at all."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_incrementing

from smartpipe import (
    Batch,
    CircuitBreaker,
    ConfigError,
    Publisher,
    Queue,
    Reject,
    RetryPolicy,
    Service,
    StoreError,
    TransportError,
)
from smartpipe.consumer.decide import ACK, Ack, DeadLetter, Defer, RetryAfter
from smartpipe.consumer.leases import Lease
from smartpipe.consumer.processor import SKIPPED, Processor, Resources
from smartpipe.consumer.threads import Threads
from smartpipe.counters import Counters
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.stores.memory import MemoryStore
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.consumer.decide import Outcome, UnknownEvents
    from smartpipe.idempotency.store import Claim, ClaimOutcome

COUNTED = RetryPolicy(attempts=3, wait=wait_incrementing(start=10, increment=10))
"""The seconds of a retry show the number of the attempt: 10, then 20."""
LAST = 10


class Processing:
    """A processor whose handler of UserSignedUp fails with ``failure``, and counts its calls."""

    def __init__(
        self, *, unknown_events: UnknownEvents = "dead-letter", retry: RetryPolicy = COUNTED, **options: Any
    ) -> None:
        self.failure: BaseException | None = None
        self.calls = 0
        self.seconds = 0.0
        service = Service("mailer", queue=Queue("mailer"), retry=retry, unknown_events=unknown_events)

        async def handle(_: UserSignedUp) -> None:
            self.calls += 1
            await asyncio.sleep(self.seconds)
            if self.failure is not None:
                raise self.failure

        service.subscribe(UserSignedUp, **options)(handle)
        self.transport = FakeTransport()
        publisher = Publisher("mailer", transport=self.transport)
        self.threads = Threads(10)
        resources = Resources(publisher, self.threads, publisher.payloads)
        self.processor = Processor(service, "mailer", resources, Counters())

    async def process(
        self,
        body: Any = ADA,
        *,
        message_id: str = "m1",
        receive_count: int = 1,
        skipped: int = 0,
        returned: int = 0,
    ) -> Outcome:
        message = self.transport.message(body, receive_count=receive_count)._replace(message_id=message_id)
        lease = Lease(message, math.inf, math.inf, asyncio.get_running_loop().time)
        lease.skipped, lease.returned = skipped, returned
        return (await self.processor.process(message, lease)).outcome


def test_deliveries_that_no_handler_saw_are_not_attempts() -> None:
    async def main() -> None:
        processing = Processing()
        processing.failure = error = ValueError("x")
        assert await processing.process(receive_count=2) == RetryAfter(20, error)
        assert await processing.process(receive_count=2, skipped=1) == RetryAfter(10, error)
        assert await processing.process(receive_count=3) == DeadLetter("retries-exhausted", error)
        assert await processing.process(receive_count=9, skipped=7) == RetryAfter(20, error)

    run_virtually(main())


def test_deliveries_in_a_shortage_of_a_resource_are_not_attempts_of_this_message() -> None:
    async def main() -> None:
        processing, error = Processing(), ValueError("x")
        for receive_count in (1, 2):
            processing.failure = MemoryError()
            assert isinstance(await processing.process(receive_count=receive_count), Defer)
        processing.failure = error
        assert await processing.process(receive_count=3) == RetryAfter(10, error)
        assert await processing.process(receive_count=4) == RetryAfter(20, error)
        assert await processing.process(receive_count=5) == DeadLetter("retries-exhausted", error)
        assert await processing.process(message_id="other", receive_count=2) == RetryAfter(20, error)

    run_virtually(main())


def test_a_message_that_was_handled_in_spite_of_a_shortage_has_no_attempts_to_spare_if_it_comes_again() -> None:
    async def main() -> None:
        processing, error = Processing(), ValueError("x")
        for failure in (MemoryError(), None):
            for message_id in ("m1", "m2"):
                processing.failure = failure
                await processing.process(message_id=message_id, receive_count=1 + (failure is None))
        processing.failure = error
        assert await processing.process(receive_count=3) == DeadLetter("retries-exhausted", error)

    run_virtually(main())


@pytest.mark.parametrize(("receive_count", "longest"), [(1, 1), (2, 2), (4, 8), (9, 256), (60, 300)])
def test_the_wait_after_a_shortage_doubles_with_each_delivery_up_to_five_minutes(
    receive_count: int, longest: int
) -> None:
    async def main() -> list[int]:
        processing = Processing(retry=RetryPolicy(attempts=900))
        processing.failure = MemoryError()
        outcomes = [await processing.process(message_id=f"m{n}", receive_count=receive_count) for n in range(60)]
        assert all(isinstance(outcome, Defer) for outcome in outcomes)
        return [outcome.seconds for outcome in outcomes if isinstance(outcome, Defer)]

    waits = run_virtually(main())
    assert 1 <= min(waits) <= max(waits) <= longest
    assert max(waits) > longest / 2 or longest == 1  # 60 uniform draws miss the upper half once in 10^18


def test_while_s3_is_unreachable_a_message_is_deferred_with_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = TransportError("ConnectTimeoutError", "no answer", retryable=True)

    async def fail(_: Any) -> Any:
        raise error

    async def main() -> None:
        processing = Processing()
        monkeypatch.setattr(processing.processor._reader, "unwrap_and_read", fail)
        assert await processing.process() == Defer(1, error)
        assert processing.calls == 0

    run_virtually(main())


def test_deliveries_while_s3_was_unreachable_are_not_attempts_but_their_waits_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(_: Any) -> Any:
        raise TransportError("ConnectTimeoutError", "no answer", retryable=True)

    async def main() -> None:
        processing, error = Processing(), ValueError("x")
        with monkeypatch.context() as patch:
            patch.setattr(processing.processor._reader, "unwrap_and_read", fail)
            waits = [await processing.process(receive_count=count) for count in range(1, 9)]
        assert len({outcome.seconds for outcome in waits if isinstance(outcome, Defer)}) > 1
        processing.failure = error
        assert await processing.process(receive_count=9) == RetryAfter(10, error)
        assert await processing.process(receive_count=10, returned=9) == RetryAfter(20, error)
        assert await processing.process(receive_count=11, returned=10) == DeadLetter("retries-exhausted", error)

    run_virtually(main())


@pytest.mark.parametrize(
    ("receive_count", "returned", "handled"),
    [(LAST - 1, 0, True), (LAST, 0, False), (LAST, 1, True), (LAST + 1, 1, False), (LAST + 3, 4, True)],
)
def test_the_last_delivery_before_sqs_moves_the_message_is_not_handled(
    receive_count: int, returned: int, handled: bool
) -> None:
    async def main() -> None:
        processing = Processing()
        assert processing.processor.thresholds.lost == LAST
        for body in (ADA, "not even JSON"):
            outcome = await processing.process(body, receive_count=receive_count, returned=returned)
            kind = outcome.kind if isinstance(outcome, DeadLetter) else "handled"
            assert kind == (("handled" if body is ADA else "not-json") if handled else "worker-lost")
            if kind == "worker-lost":
                assert str(getattr(outcome, "error", "")).startswith(f"delivered {receive_count} times, and no worker")
        assert processing.calls == handled

    run_virtually(main())


@pytest.mark.parametrize("choice", ["dead-letter", "ignore", "retry"])
def test_the_service_decides_about_events_that_no_handler_takes(choice: UnknownEvents) -> None:
    async def main() -> None:
        outcome = await Processing(unknown_events=choice).process(UserLeft(name="x"))
        expected = {"dead-letter": DeadLetter, "ignore": Ack, "retry": RetryAfter}
        assert type(outcome) is expected[choice]

    run_virtually(main())


def test_while_its_circuit_is_open_a_message_is_retried_and_only_those_that_are_to_blame_are_dead_lettered() -> None:
    async def main() -> None:
        breaker = CircuitBreaker(failures=2, reset_seconds=44.6)
        processing = Processing(breaker=breaker, retry=RetryPolicy(attempts=1, never_on=(KeyError,)))
        processing.failure = error = ConnectionError("down")
        assert await processing.process() == DeadLetter("retries-exhausted", error)
        for _ in range(3):
            assert await processing.process() == RetryAfter(45, error)
        for failure, kind in ((Reject("x"), "rejected"), (KeyError("x"), "permanent-error")):
            processing.failure = failure
            assert await processing.process() == DeadLetter(kind, failure)
        processing.failure = None
        assert await processing.process() == ACK
        processing.processor.close()

    run_virtually(main())


@pytest.mark.parametrize(
    ("failures", "closed"),
    [
        ([ValueError("x"), ValueError("x")], False),
        ([ValueError("x"), None, ValueError("x")], True),
        ([ValueError("x"), Reject("x"), ValueError("x")], False),
        ([MemoryError(), MemoryError(), MemoryError()], True),
        ([KeyError("x"), KeyError("x"), KeyError("x")], True),
    ],
)
def test_a_circuit_counts_failures_of_the_handler_and_not_of_messages_or_resources(
    failures: list[Exception | None], closed: bool
) -> None:
    async def main() -> None:
        processing = Processing(breaker=CircuitBreaker(failures=2), retry=RetryPolicy(never_on=(KeyError,)))
        for processing.failure in failures:
            await processing.process()
        [circuit] = processing.processor.circuits
        assert circuit.closed == closed
        processing.processor.close()

    run_virtually(main())


def test_an_idempotent_handler_needs_a_store_and_a_queue_without_one_has_no_circuit_of_a_store() -> None:
    async def main() -> None:
        assert Processing().processor.circuits == []
        with pytest.raises(ConfigError, match="is idempotent, but this process has no idempotency store"):
            Processing(idempotent=True)

    run_virtually(main())


def test_a_message_that_waits_for_its_handlers_limit_is_skipped_when_the_processor_stops() -> None:
    async def main() -> None:
        processing = Processing(concurrency=1)
        processing.seconds = 1
        tasks = [asyncio.create_task(processing.process(message_id=message_id)) for message_id in ("m1", "m2")]
        await asyncio.sleep(0.5)
        processing.processor.stop()
        assert await asyncio.gather(*tasks) == [ACK, SKIPPED.outcome]
        assert await processing.process(message_id="m3") == ACK  # a free place is taken, even now

    run_virtually(main())


def test_items_of_a_batch_are_pending_until_it_is_flushed_or_the_processor_stops() -> None:
    sizes: list[int] = []
    service = Service("mailer", queue=Queue("mailer"))

    @service.subscribe(UserSignedUp, batch=Batch(size=5, linger_seconds=60))
    async def handle(events: list[UserSignedUp]) -> None:
        sizes.append(len(events))

    async def main() -> None:
        publisher = Publisher("mailer", transport=FakeTransport())
        processor = Processor(service, "mailer", Resources(publisher, Threads(10), publisher.payloads), Counters())
        assert processor.has_batch_handlers
        assert not Processing().processor.has_batch_handlers

        def process(number: int) -> asyncio.Task[Any]:
            message = FakeTransport().message(ADA)._replace(message_id=f"m{number}")
            lease = Lease(message, math.inf, math.inf, asyncio.get_running_loop().time)
            return asyncio.create_task(processor.process(message, lease))

        for end in (processor.flush, processor.flush, processor.stop):
            tasks = [process(number) for number in range(3)]
            await asyncio.sleep(1)
            assert (processor.pending, sizes) == (3, [])
            end()
            await asyncio.gather(*tasks)
            assert (processor.pending, sizes.pop()) == (0, 3)
        await asyncio.gather(*(process(number) for number in range(2)))  # nothing lingers after the stop
        assert sizes == [1, 1]
        assert asyncio.get_running_loop().time() == 3

    run_virtually(main())


class FailingStore(MemoryStore):
    down = False

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        if self.down:
            raise StoreError("down")
        return await super().claim(claims)


def test_a_store_that_fails_holds_receive_calls_back_until_a_claim_succeeds_even_beside_other_handlers() -> None:
    service, store = Service("mailer", queue=Queue("mailer")), FailingStore()

    @service.subscribe(UserSignedUp, idempotent=True)
    async def handle(_: UserSignedUp) -> None: ...

    @service.subscribe(UserLeft)
    async def leave(_: UserLeft) -> None: ...

    async def main() -> None:
        publisher, claims = Publisher("mailer", transport=FakeTransport()), Claims(store)
        resources = Resources(publisher, Threads(10), publisher.payloads, claims=claims)
        processor = Processor(service, "mailer", resources, Counters())
        [circuit] = processor.circuits
        assert circuit in processor.gates

        async def process(event: UserSignedUp | UserLeft) -> Outcome:
            lease = Lease(FakeTransport().message(event), math.inf, math.inf, asyncio.get_running_loop().time)
            return (await processor.process(lease.message, lease)).outcome

        for _ in range(2):
            assert await process(ADA) == ACK
            assert circuit.closed
            store.down = True
            outcome = await process(ADA)
            assert isinstance(outcome, Defer)
            assert 1 <= outcome.seconds <= 30
            assert (circuit.state, circuit.reset_seconds) == ("open", 1)
            assert await process(UserLeft(name="x")) == ACK  # it says nothing about the store
            assert not circuit.closed
            store.down = False
            await asyncio.sleep(1)
            assert await process(ADA) == ACK
        processor.close()
        await claims.aclose()

    run_virtually(main())
