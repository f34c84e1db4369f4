"""A message that may kill its process is handled last and alone, and finally dead-lettered with that reason."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from smartpipe import CircuitBreaker, Delivery, Queue, RetryPolicy, Service
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.consumer.handlers import Handler
from smartpipe.consumer.isolation import PATIENCE_SECONDS, Isolation, Thresholds, claim_thresholds_of, thresholds_of
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.testing import MemoryBroker, virtual_time
from smartpipe.transports.open import use_transport
from tests.support.consumers import consuming, drain, make_consumer, make_service
from tests.support.events import ADA, Paid, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually
from tests.unit.test_lambda import failed, record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.idempotency.store import Claim, ClaimOutcome

THREE = RetryPolicy(attempts=3, wait=wait_fixed(1))
SUSPECT = 4
LAST = 10


def kinds(transport: FakeTransport) -> list[str]:
    return [json.loads(message.attributes[REASON_ATTRIBUTE].value)["kind"] for message in transport.entries("send")]


def subscribed(service: Service, log: list[str]) -> Callable[..., Any]:
    """Handlers of ten seconds that record when they begin and end."""

    @service.subscribe(UserLeft)
    async def handle(event: UserLeft) -> None:
        log.append(f"{event.name} begins")
        await asyncio.sleep(10)
        log.append(f"{event.name} ends")

    return handle


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        (Service("s", retry=RetryPolicy(attempts=8)), Thresholds(8, 24)),
        (Service("s", retry=RetryPolicy(attempts=1)), Thresholds(1, 10)),
        (Service("s", queue=Queue("s", max_receive_count=14)), Thresholds(8, math.inf)),
        (Service("s", queue=Queue("s", max_receive_count=15)), Thresholds(8, 15)),
        (Service("s", queue=Queue("s", fifo=True)), Thresholds(48, 96)),
    ],
)
def test_more_deliveries_than_failures_explain_make_a_suspect(service: Service, expected: Thresholds) -> None:
    @service.subscribe(Paid)
    async def handle(event: Paid) -> None: ...

    assert thresholds_of(service.bindings[0], service.handlers) == expected


def test_breaker_probes_and_claims_of_others_explain_half_of_the_receives_and_a_halted_group_all() -> None:
    breaking, halting, claiming = Service("s"), Service("t", queue=Queue("t", fifo=True)), Service("u")

    @breaking.subscribe(UserLeft, breaker=CircuitBreaker())
    async def leave(event: UserLeft) -> None: ...

    @halting.subscribe(Paid, retry=RetryPolicy(on_exhausted="halt"))
    async def pay(event: Paid) -> None: ...

    @claiming.subscribe(UserLeft, idempotent=True)
    async def forget(event: UserLeft) -> None: ...

    assert thresholds_of(breaking.bindings[0], breaking.handlers) == Thresholds(50, 100)
    assert thresholds_of(claiming.bindings[0], claiming.handlers) == Thresholds(50, 100)
    assert claim_thresholds_of(claiming.handlers[0]) == Thresholds(9, 16)
    assert claim_thresholds_of(breaking.handlers[0]) == Thresholds(9, math.inf)
    assert thresholds_of(halting.bindings[0], halting.handlers) == Thresholds(1_000, math.inf)
    assert claim_thresholds_of(halting.handlers[0]) == Thresholds(1_000, math.inf)


def test_a_suspect_begins_when_all_others_have_ended_and_nothing_begins_beside_it() -> None:
    log: list[str] = []

    async def main() -> None:
        service, transport = make_service(retry=THREE), FakeTransport()
        subscribed(service, log)
        transport.put(UserLeft(name="suspect"), receive_count=SUSPECT)
        transport.put(UserLeft(name="a"), UserLeft(name="b"), receive_count=3)
        async with consuming(service, transport):
            await asyncio.sleep(35)  # a receive call of 20 s was open
            transport.put(UserLeft(name="c"))
            await asyncio.sleep(60)

    run_virtually(main())

    assert sorted(log[:4]) == ["a begins", "a ends", "b begins", "b ends"]
    assert log[4:] == ["suspect begins", "suspect ends", "c begins", "c ends"]


def test_a_suspect_begins_when_the_deletes_of_handled_messages_are_confirmed() -> None:
    begun: dict[str, float] = {}

    async def main() -> None:
        service, transport = make_service(retry=THREE), FakeTransport()

        @service.subscribe(UserLeft)
        async def handle(event: UserLeft) -> None:
            begun[event.name] = asyncio.get_running_loop().time()

        transport.script["delete"].append(2.5)
        transport.put(UserLeft(name="suspect"), receive_count=SUSPECT)
        transport.put(UserLeft(name="handled"))
        async with consuming(service, transport):
            await asyncio.sleep(60)

    run_virtually(main())

    # Otherwise SQS would deliver the handled message again if the suspect killed the process.
    assert begun["suspect"] - begun["handled"] >= 2.5


def test_suspects_of_all_queues_are_handled_one_after_the_other() -> None:
    log: list[str] = []

    async def main() -> None:
        isolation = Isolation()
        consumers = []
        for name in ("s", "t"):
            service, transport = Service(name, retry=THREE), FakeTransport()
            subscribed(service, log)
            transport.put(UserLeft(name=f"{name}1"), UserLeft(name=f"{name}2"), receive_count=SUSPECT)
            transport.put(UserLeft(name="other"))
            consumers.append(make_consumer(service, transport, isolation=isolation))
        for consumer in consumers:
            consumer.start()
        await asyncio.sleep(200)
        for consumer in consumers:
            await drain(consumer)

    run_virtually(main())

    assert log[:4] == ["other begins", "other begins", "other ends", "other ends"]
    assert [line.partition(" ")[2] for line in log[4:]] == ["begins", "ends"] * 4
    assert {line.partition(" ")[0] for line in log[4:]} == {"s1", "s2", "t1", "t2"}


def test_a_suspect_waits_a_minute_at_most_for_a_handler_that_takes_longer() -> None:
    begun: list[float] = []

    async def main() -> None:
        service, transport = make_service(retry=THREE, timeout_seconds=None), FakeTransport()

        @service.subscribe(UserLeft)
        async def handle(event: UserLeft) -> None:
            begun.append(asyncio.get_running_loop().time())
            await asyncio.sleep(3_600)

        transport.put(UserLeft(name="long"))
        transport.put(UserLeft(name="suspect"), receive_count=SUSPECT)
        transport.put(UserLeft(name="another"), receive_count=SUSPECT)
        consumer = make_consumer(service, transport)
        consumer.start()
        await asyncio.sleep(500)
        transport.put(UserLeft(name="later"))
        await asyncio.sleep(100)
        await drain(consumer, budget_seconds=10)

    run_virtually(main())

    assert begun[0] == 0
    assert PATIENCE_SECONDS <= begun[1] <= PATIENCE_SECONDS + 1
    assert 2 * PATIENCE_SECONDS <= begun[2] <= 2 * PATIENCE_SECONDS + 1
    assert begun[3] == pytest.approx(500)  # and it does not hold receive calls back for longer either


def test_nothing_begins_beside_a_suspect_that_did_not_wait_for_a_slow_handler() -> None:
    begun: list[float] = []

    async def main() -> None:
        service, transport = make_service(retry=THREE, timeout_seconds=None), FakeTransport()

        @service.subscribe(UserLeft)
        async def handle(event: UserLeft) -> None:
            begun.append(asyncio.get_running_loop().time())
            await asyncio.sleep({1: 70, 2: 40}.get(len(begun), 1))

        for number in range(3):
            transport.put(UserLeft(name=f"{number}"), receive_count=SUSPECT)
        async with consuming(service, transport):
            await asyncio.sleep(500)

    run_virtually(main())

    first, second, third = begun
    assert PATIENCE_SECONDS <= second - first < 70  # the first takes longer than the others wait for their turn
    assert third - second >= 40


def test_a_stopping_worker_returns_a_suspect_that_has_not_had_its_turn() -> None:
    log: list[str] = []

    async def main() -> Any:
        service, transport = make_service(retry=THREE), FakeTransport()
        subscribed(service, log)
        transport.put(UserLeft(name="a"))
        transport.put(UserLeft(name="suspect"), receive_count=SUSPECT)
        consumer = make_consumer(service, transport)
        consumer.start()
        await asyncio.sleep(1)
        await drain(consumer)
        return consumer.counters, transport

    counts, transport = run_virtually(main())

    assert log == ["a begins", "a ends"]
    assert (counts.handled, counts.released, counts.cancelled) == (1, 1, 0)
    assert len(transport.entries("change_visibility")) >= 1


def test_the_retry_policy_decides_about_a_suspect_that_fails() -> None:
    async def main() -> FakeTransport:
        service, transport = make_service(retry=THREE), FakeTransport()

        @service.subscribe(UserLeft)
        async def handle(event: UserLeft) -> None:
            raise OSError("down")

        transport.put(UserLeft(name="suspect"), receive_count=SUSPECT)
        async with consuming(service, transport):
            await asyncio.sleep(60)
        return transport

    assert kinds(run_virtually(main())) == ["retries-exhausted"]


def test_the_last_delivery_that_sqs_allows_is_dead_lettered_without_an_attempt() -> None:
    log: list[str] = []

    async def main() -> FakeTransport:
        service, transport = make_service(retry=THREE), FakeTransport()
        subscribed(service, log)
        transport.put(UserLeft(name="the last but one"), receive_count=LAST - 1)
        transport.put(UserLeft(name="the last"), "not even JSON", receive_count=LAST)
        async with consuming(service, transport):
            await asyncio.sleep(120)
        return transport

    transport = run_virtually(main())

    assert log == ["the last but one begins", "the last but one ends"]
    assert kinds(transport) == ["worker-lost", "worker-lost"]
    assert len(transport.entries("delete")) == 3


@pytest.mark.parametrize(("lost_claims", "runs"), [(9, 1), (10, 0)])
def test_an_event_claimed_without_a_result_too_often_is_handled_alone_and_finally_not_at_all(
    lost_claims: int, runs: int
) -> None:
    """The store counts claims, where SQS also counts deliveries that found the claim held by another worker."""
    service, transport, store = make_service(retry=THREE), FakeTransport(), MemoryStore()
    ran: list[UserLeft] = []
    others: list[str] = []

    @service.subscribe(UserLeft, idempotent=True)
    async def handle(event: UserLeft) -> None:
        ran.append(event)
        others.append("killer")

    @service.subscribe(UserSignedUp)
    async def welcome(event: UserSignedUp) -> None:
        await asyncio.sleep(290)  # the lost claims take 270 of them
        others.append("other")

    class Crashed(MemoryStore):
        """Workers have claimed this before, and died with it."""

        async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
            for number in range(lost_claims):
                await store.claim([claim._replace(token=f"lost {number}") for claim in claims])
                await asyncio.sleep(claims[0].lease_seconds)
            return await store.claim(claims)

        async def complete(self, claims: Sequence[Claim]) -> list[bool]:
            return await store.complete(claims)

        async def release(self, claims: Sequence[Claim]) -> list[bool]:
            return await store.release(claims)

    async def main() -> None:
        claims = Claims(Crashed())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("smartpipe.idempotency.claims.CALL_SECONDS", 1_000)
            consumer = make_consumer(service, transport, claims=claims)
            transport.put(UserLeft(name="killer"), receive_count=lost_claims + 1)
            transport.put(ADA)
            consumer.start()
            await asyncio.sleep(500)
            await drain(consumer)
        await claims.aclose()

    run_virtually(main())

    assert len(ran) == runs
    assert others == ["other", "killer"][: 1 + runs]
    assert kinds(transport) == ["worker-lost"] * (1 - runs)


async def test_breaker_probes_of_this_process_do_not_make_a_suspect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Returned messages have not killed the process, so SQS moves the message after the maximum number of receives."""
    service, calls = Service("s", queue=Queue("s", max_receive_count=15), retry=THREE), 0

    @service.subscribe(UserLeft, breaker=CircuitBreaker(failures=3))
    async def handle(event: UserLeft) -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError("down")

    async with MemoryBroker(service) as broker:
        await broker.publish(UserLeft(name="innocent"))
        await broker.drain()

        assert broker.assert_dead_lettered(UserLeft, kind="redriven")
    assert calls == 15
    assert "handled last and alone" not in caplog.text


async def test_a_message_that_runs_out_of_memory_every_time_is_deferred_until_sqs_moves_it() -> None:
    service, calls = Service("s", queue=Queue("s", max_receive_count=10), retry=THREE), 0

    @service.subscribe(UserLeft)
    async def handle(event: UserLeft) -> None:
        nonlocal calls
        calls += 1
        raise MemoryError

    async with MemoryBroker(service) as broker:
        await broker.publish(UserLeft(name="too large"))
        await broker.drain()

        assert broker.assert_dead_lettered(UserLeft, kind="redriven")
    assert calls == 10


def test_a_suspect_in_the_middle_of_its_group_waits_for_its_turn_too() -> None:
    log: list[str] = []

    async def main() -> None:
        service = Service("s", queue=Queue("s", fifo=True, max_receive_count=20), retry=THREE)
        transport = FakeTransport()

        @service.subscribe(Paid)
        async def handle(event: Paid, delivery: Delivery) -> None:
            log.append(f"{delivery.message.group_id} begins")
            await asyncio.sleep(10)
            log.append(f"{delivery.message.group_id} ends")

        transport.put(Paid(account="a", number=1), group_id="a")
        transport.put(Paid(account="a", number=1), group_id="a", receive_count=11)
        async with consuming(service, transport):
            await asyncio.sleep(5)
            transport.put(Paid(account="a", number=1), group_id="b")
            await asyncio.sleep(100)

    run_virtually(main())

    assert log == ["a begins", "b begins", "a ends", "b ends", "a begins", "a ends"]


async def test_lambda_handles_suspects_behind_the_others_and_deletes_those_before() -> None:
    service, transport = Service("mailer", retry=THREE), FakeTransport()
    log: list[str] = []
    subscribed(service, log)
    records = [record(UserLeft(name=f"{number}"), number) for number in range(4)]
    for number in (0, 2):
        records[number]["attributes"]["ApproximateReceiveCount"] = str(SUSPECT)

    with use_transport(transport), virtual_time():
        handler = service.lambda_handler()

        @service.subscribe(UserSignedUp)
        async def also(event: UserSignedUp) -> None: ...

        response = await handler.handle({"Records": records})
        await handler.aclose()

    assert failed(response) == []
    assert log[:4] == ["1 begins", "3 begins", "1 ends", "3 ends"]
    assert log[4:] in (
        ["0 begins", "0 ends", "2 begins", "2 ends"],
        ["2 begins", "2 ends", "0 begins", "0 ends"],
    )
    assert transport.entries("delete") == ["receipt-1", "receipt-3"]


def test_handlers_of_one_queue_share_the_longest_retry_policy() -> None:
    service = Service("s", retry=RetryPolicy(attempts=2))

    @service.subscribe(UserLeft, retry=RetryPolicy(attempts=5))
    async def leave(event: UserLeft) -> None: ...

    assert isinstance(service.handlers[0], Handler)
    assert thresholds_of(service.bindings[0], service.handlers) == Thresholds(5, 15)
