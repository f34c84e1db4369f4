"""Idempotent handlers in memory, on virtual time: a handler handles each event once, however often it is delivered."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import (
    Batch,
    CircuitBreaker,
    ConfigError,
    Delivery,
    Event,
    Queue,
    Reject,
    Retry,
    RetryPolicy,
    Service,
    StoreError,
    Topic,
)
from smartpipe.envelope import encode, wrap
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.store import Claim, Completed, HandlerName, Idempotency
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.names import Naming
from smartpipe.settings import WorkerSettings
from smartpipe.testing import MemoryBroker
from smartpipe.topology.derive import derive
from smartpipe.worker.worker import Worker
from tests.support.events import ADA, OrderPlaced, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.envelope import Envelope
    from smartpipe.idempotency.store import ClaimOutcome

LEASE_SECONDS = 30


def serving(handle: Callable[..., Any], event: type[Event] = UserSignedUp, **options: Any) -> Service:
    policy = options.pop("retry", RetryPolicy(attempts=3, base_seconds=1))
    service = Service("mailer", queue=Queue("mailer", visibility_timeout_seconds=LEASE_SECONDS), retry=policy)
    service.subscribe(event, **{"idempotent": True, **options})(handle)
    return service


def store_of(broker: MemoryBroker) -> MemoryStore:
    assert broker._claims is not None
    assert isinstance(broker._claims.store, MemoryStore)
    return broker._claims.store


def counts_of(broker: MemoryBroker) -> Any:
    return broker._consumers["mailer"].counters


def claim_of(service: Service, envelope: Envelope, token: str = "theirs", seconds: float = LEASE_SECONDS) -> Claim:
    """The claim that another worker would make."""
    [handler, *_] = service.handlers
    return Claim(Idempotency().key_of(handler.full_name(""), envelope), token, seconds, 600)


async def test_fault_08_a_duplicate_of_a_completed_event_is_deleted_without_being_handled() -> None:
    seen: list[Event] = []

    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    body = encode(wrap(ADA, source="test"))
    async with MemoryBroker(serving(handle)) as broker:
        await broker.send("mailer", body)
        await broker.drain()
        await broker.send("mailer", body)
        await broker.drain()

        assert (counts_of(broker).deduplicated, counts_of(broker).handled) == (1, 2)
    assert seen == [ADA]


async def test_duplicates_neither_close_a_circuit_nor_keep_it_from_opening() -> None:
    calls: list[str | None] = []
    broken = False

    async def handle(event: UserSignedUp) -> None:
        calls.append(event.name)
        if broken:
            raise OSError("down")

    service = serving(handle, breaker=CircuitBreaker(failures=3, reset_seconds=60))
    done = encode(wrap(ADA, source="test"))
    async with MemoryBroker(service, concurrency=1) as broker:
        [circuit] = [one for one in broker._consumers["mailer"].processor.circuits if "handle" in one.name]
        await broker.send("mailer", done)
        await broker.drain()
        broken = True
        for number in range(3):
            await broker.publish(ADA.model_copy(update={"name": f"new {number}"}))
            await broker.send("mailer", done)
        await asyncio.sleep(1)
        assert circuit.state == "open"
        calls.clear()
        for _ in range(50):
            await broker.send("mailer", done)
        await asyncio.sleep(300)
        assert circuit.state != "closed"
        assert len(calls) <= 3  # probes
        broken = False
        await broker.drain()
        assert circuit.closed


async def test_two_events_with_equal_content_are_both_handled() -> None:
    seen: list[Event] = []

    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    async with MemoryBroker(serving(handle)) as broker:
        await broker.publish(ADA)
        await broker.publish(ADA)
        await broker.drain()

    assert seen == [ADA, ADA]


async def test_fault_15_a_duplicate_of_an_event_in_progress_is_deferred_and_uses_no_attempt() -> None:
    times: list[float] = []

    async def handle(_: UserSignedUp) -> None:
        times.append(asyncio.get_running_loop().time())

    service = serving(handle, retry=RetryPolicy(attempts=1))
    envelope = wrap(ADA, source="test")
    async with MemoryBroker(service) as broker:
        begun = asyncio.get_running_loop().time()
        await store_of(broker).claim([claim_of(service, envelope, seconds=20)])
        await broker.send("mailer", encode(envelope))
        await broker.drain()

        assert counts_of(broker).deferred >= 1
        broker.assert_nothing_dead_lettered()
    [handled] = times
    assert 20 <= handled - begun <= 22


async def test_fault_32_a_crashed_workers_claim_is_taken_over_when_its_lease_ends() -> None:
    attempts: list[int] = []

    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        attempts.append(delivery.receive_count)

    service = serving(handle)
    envelope = wrap(ADA, source="test")
    async with MemoryBroker(service) as broker:
        await store_of(broker).claim([claim_of(service, envelope)])
        await asyncio.sleep(LEASE_SECONDS + 1)
        await broker.send("mailer", encode(envelope))
        await broker.drain()

    assert attempts == [1]


async def test_a_failure_releases_the_claim_and_the_store_counts_the_attempts() -> None:
    runs: list[float] = []

    async def handle(_: UserSignedUp) -> None:
        runs.append(asyncio.get_running_loop().time())
        if len(runs) < 3:
            raise ValueError("not yet")

    service = serving(handle, retry=RetryPolicy(attempts=3, base_seconds=0))
    envelope = wrap(ADA, source="test")
    async with MemoryBroker(service) as broker:
        store = store_of(broker)
        other = claim_of(service, envelope, seconds=5)
        await store.claim([other])  # two deferrals at least, whose deliveries are no attempts
        await broker.send("mailer", encode(envelope))
        await asyncio.sleep(1)
        await store.forget([other.key])
        await broker.drain()

        broker.assert_nothing_dead_lettered()
        assert counts_of(broker).retried == 2
    assert len(runs) == 3
    assert runs[2] - runs[0] < 3


def failing(error: Exception, attempts: list[int]) -> Any:
    """Return a handler that always fails, and adds the number of each attempt to *attempts*."""

    async def handle(event: UserSignedUp, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise error

    return handle


async def test_a_message_that_is_redriven_again_and_again_has_all_its_attempts_each_time() -> None:
    attempts: list[int] = []
    handle = failing(ValueError("not yet"), attempts)

    body = encode(wrap(ADA, source="test"))
    async with MemoryBroker(serving(handle)) as broker:
        for _ in range(5):
            await broker.send("mailer", body)
            await broker.drain()

        assert [dead.kind for dead in broker.dead_lettered()] == ["retries-exhausted"] * 5
    assert attempts == [1, 2, 3] * 5


async def test_attempts_are_counted_although_the_waits_between_them_are_longer_than_the_time_to_live() -> None:
    attempts: list[int] = []
    handle = failing(Retry("later", after_seconds=43_200), attempts)

    async with MemoryBroker(serving(handle, idempotent=Idempotency(ttl_seconds=60))) as broker:
        await broker.publish(ADA)
        await broker.drain(limit_seconds=200_000)
        assert [dead.kind for dead in broker.dead_lettered()] == ["retries-exhausted"]
    assert attempts == [1, 2, 3]


async def test_another_event_with_the_value_of_one_that_failed_has_attempts_of_its_own() -> None:
    attempts: list[int] = []
    handle = failing(ValueError("not yet"), attempts)

    async with MemoryBroker(serving(handle, idempotent=Idempotency(key="name"))) as broker:
        for _ in range(2):
            await broker.publish(ADA)
            await broker.drain()
    assert attempts == [1, 2, 3] * 2


async def test_an_event_that_keeps_failing_is_dead_lettered_and_a_redrive_handles_it_again() -> None:
    runs: list[Event] = []

    async def handle(event: UserSignedUp) -> None:
        runs.append(event)
        raise Reject("not this one")

    body = encode(wrap(ADA, source="test"))
    async with MemoryBroker(serving(handle)) as broker:
        for _ in range(2):
            await broker.send("mailer", body)
            await broker.drain()

        assert len(broker.dead_lettered(UserSignedUp)) == 2
    assert len(runs) == 2


async def test_fault_31_a_worker_that_lost_its_claim_does_not_delete_the_message() -> None:
    runs: list[Event] = []
    envelope = wrap(ADA, source="test")

    async def handle(event: UserSignedUp) -> None:
        runs.append(event)
        taken = claim_of(service, envelope)
        await store_of(broker).forget([taken.key])  # as if the lease had run out, and another had come and finished
        await store_of(broker).claim([taken])
        await store_of(broker).complete([taken])

    service = serving(handle)
    async with MemoryBroker(service) as broker:
        await broker.send("mailer", encode(envelope))
        await broker.drain()

        assert (counts_of(broker).fenced, counts_of(broker).deferred, counts_of(broker).deduplicated) == (1, 1, 1)
    assert len(runs) == 1


async def test_a_long_handler_keeps_its_claim_and_a_copy_waits_for_it() -> None:
    runs: list[Event] = []

    async def handle(event: UserSignedUp) -> None:
        runs.append(event)
        await asyncio.sleep(10 * LEASE_SECONDS)

    body = encode(wrap(ADA, source="test"))
    async with MemoryBroker(serving(handle, timeout_seconds=None)) as broker:
        await broker.send("mailer", body)
        await asyncio.sleep(1)
        await broker.send("mailer", body)
        await broker.drain()

        assert counts_of(broker).deduplicated == 1
        assert 3 <= counts_of(broker).deferred <= 6  # less and less often, for SQS counts
        broker.assert_nothing_dead_lettered()
    assert len(runs) == 1


def test_a_queue_of_idempotent_handlers_has_a_larger_receive_limit() -> None:
    async def handle(_: UserSignedUp) -> None: ...

    naming = Naming("aws", "eu-west-1", "123456789012")
    queues = derive([serving(handle)], naming).queues

    assert queues[naming.queue_arn("mailer")]["RedrivePolicy"]["maxReceiveCount"] == 100


async def test_a_chosen_field_identifies_duplicates() -> None:
    seen: list[str] = []

    async def handle(event: OrderPlaced) -> None:
        seen.append(event.order_id)

    service = serving(handle, OrderPlaced, idempotent=Idempotency(key="order_id"))
    async with MemoryBroker(service) as broker:
        for order_id in ("1", "1", "2"):
            await broker.publish(OrderPlaced(order_id=order_id))
        await broker.drain()

    assert sorted(seen) == ["1", "2"]


def test_a_key_that_is_not_a_field_is_rejected_at_the_registration() -> None:
    async def handle(_: OrderPlaced) -> None: ...

    with pytest.raises(ConfigError, match="its idempotency key 'id' is not a field of OrderPlaced"):
        serving(handle, OrderPlaced, idempotent=Idempotency(key="id"))


@pytest.mark.parametrize("seconds", [59, 31_536_001])
def test_a_memory_too_short_or_too_long_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="is outside of 60 to 31,536,000"):
        Idempotency(ttl_seconds=seconds)


class Long(Event, topic=Topic("long"), type="idempotency.long", version="1.0"):
    name: str


class Ordered(Event, topic=Topic("long"), type="idempotency.ordered", version="1.0"):
    order_id: str | int | None = None


NAME = HandlerName("test-", "billing", "billing", "app.charge")


def key_of(event: Event, name: HandlerName = NAME, *, key: str | None = None, **context: Any) -> str:
    return Idempotency(key=key).key_of(name, wrap(event, source="shop")._replace(**context))


def test_a_long_key_goes_by_its_hash() -> None:
    keys = {key_of(Long(name="x" * 600 + end), key="name") for end in "aab"}

    assert len(keys) == 2
    assert all(len(key) <= 512 for key in keys)


def test_a_key_names_environment_service_queue_handler_and_event() -> None:
    key = key_of(Ordered(), source="shop", id="4711")

    assert key == "claim/test-/billing/billing/app.charge/idempotency.ordered/id/shop/4711"


@pytest.mark.parametrize(
    "other",
    [
        HandlerName("", "billing", "billing", "app.charge"),
        HandlerName("test-", "mailing", "billing", "app.charge"),
        HandlerName("test-", "billing", "urgent", "app.charge"),
        HandlerName("test-", "billing", "billing", "app.refund"),
        HandlerName("test-billing", "", "billing", "app.charge"),
        HandlerName("test-", "billing/billing", "", "app.charge"),
    ],
    ids=str,
)
def test_two_environments_services_queues_or_handlers_never_share_a_claim(other: HandlerName) -> None:
    event = Ordered(order_id="4711")

    assert key_of(event, other, id="1") != key_of(event, id="1")
    assert key_of(event, other, key="order_id") != key_of(event, key="order_id")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"source": "a|b", "id": "c"}, {"source": "a", "id": "b|c"}),
        ({"source": "a/b", "id": "c"}, {"source": "a", "id": "b/c"}),
        ({"source": "a", "id": "/b"}, {"source": "a/", "id": "b"}),
        ({"source": "é", "id": "1"}, {"source": "e\u0301", "id": "1"}),
        ({"source": "a", "id": "x\0"}, {"source": "a", "id": "x"}),
    ],
)
def test_what_stands_in_source_and_id_confuses_no_two_events(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key_of(Ordered(), **one) != key_of(Ordered(), **other)


def test_an_event_without_a_value_cannot_take_the_key_of_one_that_has_it() -> None:
    """Its source and id are whatever its producer says."""
    order = key_of(Ordered(order_id="4711"), key="order_id")
    nothing = Ordered(order_id=None)

    assert key_of(nothing, key="order_id", source="idempotency.ordered", id="order_id=4711") != order
    assert key_of(nothing, key="order_id", source="order_id", id="str/4711") != order
    assert key_of(nothing, key="order_id", source="key/order_id/str", id="4711") != order


@pytest.mark.parametrize("nothing", [None, ""])
def test_events_with_an_empty_value_are_known_by_their_ids(nothing: str | None) -> None:
    keys = [key_of(Ordered(order_id=nothing), key="order_id", id=id_) for id_ in ("1", "2", "2")]

    assert keys[0] != keys[1] == keys[2]
    assert keys[1] == key_of(Ordered(order_id=nothing), id="2")


def test_values_of_different_types_have_different_claims() -> None:
    assert key_of(Ordered(order_id=1), key="order_id") != key_of(Ordered(order_id="1"), key="order_id")


async def test_events_with_an_empty_value_are_all_handled_and_copies_of_one_are_not() -> None:
    seen: list[Event] = []

    async def handle(event: Ordered) -> None:
        seen.append(event)

    service = serving(handle, Ordered, idempotent=Idempotency(key="order_id"))
    body = encode(wrap(Ordered(order_id=""), source="test"))
    async with MemoryBroker(service) as broker:
        for _ in range(3):
            await broker.publish(Ordered(order_id=""))
        await broker.send("mailer", body)
        await broker.send("mailer", body)
        await broker.drain()

    assert len(seen) == 4


async def test_two_services_with_a_handler_of_one_name_both_handle_an_event() -> None:
    handled_by: list[str] = []

    async def on_user(_: UserSignedUp, delivery: Delivery) -> None:
        handled_by.append(delivery.service)

    services = [Service("mailer"), Service("billing")]
    for service in services:
        service.subscribe(UserSignedUp, idempotent=True)(on_user)
    async with MemoryBroker(*services) as broker:
        for _ in range(20):
            await broker.publish(ADA)
        await broker.drain()

    assert sorted(handled_by) == ["billing"] * 20 + ["mailer"] * 20


async def test_one_function_on_two_queues_of_a_service_handles_an_event_on_each() -> None:
    handled_by: list[str] = []

    async def on_user(_: UserSignedUp, delivery: Delivery) -> None:
        handled_by.append(delivery.queue)

    service = Service("mailer")
    service.subscribe(UserSignedUp, idempotent=True)(on_user)
    service.subscribe(UserSignedUp, queue="urgent", idempotent=True)(on_user)
    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    assert sorted(handled_by) == ["mailer", "urgent"]


async def test_environments_that_share_a_store_both_handle_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that the worker was given, which knows of no prefix."""
    runs: list[Event] = []

    async def handle(event: UserSignedUp) -> None:
        runs.append(event)

    store, envelope = MemoryStore(), wrap(ADA, source="test")
    for prefix in ("staging-", "staging-eu-", "staging-"):
        monkeypatch.setenv("SMARTPIPE_PREFIX", prefix)
        transport = FakeTransport()
        transport.put(encode(envelope))
        settings = WorkerSettings.load(port=0, host="127.0.0.1", wait_seconds=1)
        worker = Worker(serving(handle), transport, settings, store=store)
        running = asyncio.create_task(worker.run())
        await until(lambda transport=transport: transport.entries("delete"))  # type: ignore[misc]
        worker.stop()
        await running

    assert len(runs) == 2


def closures() -> list[Callable[..., Any]]:
    def closure() -> Callable[..., Any]:
        async def handle(_: UserSignedUp, delivery: Delivery) -> None:
            del delivery

        return handle

    return [closure(), closure()]


@pytest.mark.parametrize(("one", "other"), [(True, True), (True, False), (False, True)])
def test_an_idempotent_handler_needs_a_unique_name_for_its_event_and_queue(one: bool, other: bool) -> None:
    first, second = closures()
    service = serving(first, idempotent=one)

    with pytest.raises(ConfigError, match="already has a handler of this name.*Give each function a name of its own"):
        service.subscribe(UserSignedUp, idempotent=other)(partial(second))
    service.subscribe(UserSignedUp, queue="another", idempotent=other)(second)


def test_handlers_of_one_name_are_numbered() -> None:
    service = Service("mailer")
    for closure in [*closures(), *closures()]:
        service.subscribe(UserSignedUp)(closure)

    assert [handler.name.rpartition(".")[2] for handler in service.handlers] == [
        "handle", "handle#2", "handle#3", "handle#4",
    ]  # fmt: skip


async def test_of_several_handlers_those_that_succeeded_are_not_called_again() -> None:
    runs: list[str] = []

    async def first(_: UserSignedUp) -> None:
        runs.append("first")

    service = serving(first, retry=RetryPolicy(attempts=3, base_seconds=0))

    @service.subscribe(UserSignedUp, idempotent=True)
    async def second(_: UserSignedUp) -> None:
        runs.append("second")
        if runs.count("second") < 2:
            raise ValueError("once")

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    assert runs == ["first", "second", "second"]


async def test_only_the_new_events_of_a_batch_are_handled() -> None:
    batches: list[list[str]] = []

    async def handle(events: list[UserLeft]) -> None:
        batches.append([event.name for event in events])

    bodies = {name: encode(wrap(UserLeft(name=name), source="test")) for name in "abc"}
    async with MemoryBroker(serving(handle, UserLeft, batch=Batch(size=3, linger_seconds=1))) as broker:
        await broker.send("mailer", bodies["a"])
        await broker.drain()
        for name in "abc":
            await broker.send("mailer", bodies[name])
        await broker.drain()

    assert [sorted(batch) for batch in batches] == [["a"], ["b", "c"]]


class Flaky(MemoryStore):
    """A store that can be down, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.down: set[str] = set()
        self.fault: Exception = StoreError("the store is down")
        self.calls: list[tuple[str, int]] = []

    def _called(self, verb: str, claims: Sequence[Claim]) -> None:
        self.calls.append((verb, len(claims)))
        if verb in self.down:
            raise copy(self.fault)  # the traceback of one that is raised again and again grows

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        self._called("claim", claims)
        return await super().claim(claims)

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        self._called("renew", claims)
        return await super().renew(claims)

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        self._called("complete", claims)
        return await super().complete(claims)

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        self._called("release", claims)
        return await super().release(claims)


@pytest.mark.parametrize("idempotent", [False, True])
async def test_deliveries_while_the_store_was_down_are_attempts_of_no_handler(idempotent: bool) -> None:
    attempts: list[int] = []

    async def first(_: UserSignedUp) -> None: ...

    service, store = serving(first), Flaky()

    @service.subscribe(UserSignedUp, idempotent=idempotent)
    async def second(_: UserSignedUp, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise ValueError("not yet")

    async with MemoryBroker(service, store=store) as broker:
        store.down = {"claim"}
        await broker.publish(ADA)
        await asyncio.sleep(300)
        store.down = set()
        await broker.drain()

        assert counts_of(broker).deferred > 3
        assert [dead.kind for dead in broker.dead_lettered()] == ["retries-exhausted"]
    assert attempts == [1, 2, 3]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Flaky:
    """The store of the brokers of a test."""
    store = Flaky()
    monkeypatch.setattr("smartpipe.testing.broker.MemoryStore", lambda: store)
    return store


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside a handler without claims"])
@pytest.mark.parametrize("fault", [StoreError("the store is down"), KeyError("of a store that breaks its word")])
async def test_fault_33_while_the_store_is_down_no_event_is_handled_and_few_are_received(
    flaky: Flaky, fault: Exception, others: bool
) -> None:
    seen: list[Event] = []
    flaky.fault = fault

    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    async def ignore(_: UserLeft) -> None: ...

    service = serving(handle)
    if others:
        service.subscribe(UserLeft)(ignore)
    flaky.down = {"claim", "release"}
    async with MemoryBroker(service) as broker:
        for _ in range(20):
            await broker.publish(ADA)
        await asyncio.sleep(600)

        assert seen == []
        assert counts_of(broker).received < 100  # a poll brings ten; then one at a time, 1, 2, 4 … 30 s apart
        assert broker._claims is not None
        assert broker._claims.failures > 0
        flaky.down = set()
        await broker.drain()

        assert broker._claims.failures == 0
        broker.assert_nothing_dead_lettered()
    assert len(seen) == 20


async def test_the_recovery_of_the_store_is_detected_even_without_messages(flaky: Flaky) -> None:
    async def handle(_: UserSignedUp) -> None: ...

    flaky.down = {"claim", "release"}
    async with MemoryBroker(serving(handle)) as broker:
        await broker.publish(ADA)
        await asyncio.sleep(20)
        broker.pause("mailer")
        failing = broker._claims.failures if broker._claims else 0
        flaky.down = set()
        await asyncio.sleep(20)

        assert failing > 0
        assert broker._claims is not None
        assert broker._claims.failures == 0


async def test_events_received_together_are_claimed_in_one_call_and_completed_in_one_call(flaky: Flaky) -> None:
    async def handle(_: UserSignedUp) -> None: ...

    service = serving(handle)
    async with MemoryBroker(service) as broker:
        broker.pause("mailer")
        await asyncio.sleep(25)
        for _ in range(10):
            await broker.publish(ADA)
        broker.resume("mailer")
        await broker.drain()

    assert flaky.calls == [("claim", 10), ("complete", 10)]


async def test_a_completion_is_retried_for_half_a_minute(flaky: Flaky) -> None:
    async def handle(_: UserSignedUp) -> None: ...

    flaky.down = {"complete"}
    body = encode(wrap(ADA, source="test"))
    async with MemoryBroker(serving(handle)) as broker:
        await broker.send("mailer", body)
        await asyncio.sleep(10)
        flaky.down = set()
        await broker.drain()
        await broker.send("mailer", body)
        await broker.drain()

        assert counts_of(broker).deduplicated == 1


async def test_a_handled_event_whose_completion_fails_is_not_handled_again_for_that(
    flaky: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []

    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    flaky.down = {"complete"}
    async with MemoryBroker(serving(handle)) as broker:
        await broker.publish(ADA)
        await broker.drain()

        assert counts_of(broker).handled == 1
    assert len(seen) == 1
    assert "Handled, but the idempotency store could not be updated" in caplog.text


@pytest.mark.parametrize(("handlers", "left"), [(1, 0), (2, 1)])
async def test_a_drain_that_ends_before_the_store_is_back_does_not_return_a_handled_message(
    flaky: Flaky, handlers: int, left: int
) -> None:
    calls: list[str] = []

    async def handle(_: UserSignedUp) -> None:
        calls.append("first")
        flaky.down = {"claim", "complete", "release", "renew"}

    async def handle_too(_: UserSignedUp) -> None:
        calls.append("second")

    service = serving(handle)
    if handlers > 1:
        service.subscribe(UserSignedUp)(handle_too)
    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await asyncio.sleep(1)
        until_then = asyncio.get_running_loop().time() + 20
        await broker._consumers["mailer"].drain(
            handlers_until=until_then, flush_until=until_then + 3, hard=asyncio.Event()
        )

        # The second handler may not begin any more, so the message is returned.
        assert (len(broker.transport.queue("mailer")), calls) == (left, ["first"])


async def test_a_claim_that_cannot_be_renewed_is_lost_when_its_lease_has_ended(flaky: Flaky) -> None:
    lost: list[bool] = []

    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        flaky.down = {"renew"}
        for _unused in range(3):
            await asyncio.sleep(LEASE_SECONDS / 2)
            lost.append(delivery.lease_lost)
        flaky.down = set()

    async with MemoryBroker(serving(handle)) as broker:
        await broker.publish(ADA)
        await broker.drain()

    assert lost[0] is False
    assert lost[2] is True


@pytest.mark.parametrize("batch", [None, Batch(size=1)])
async def test_the_claim_of_a_call_that_does_not_end_at_its_timeout_is_kept_until_its_lease_ends(
    batch: Batch | None,
) -> None:
    begun: list[float] = []

    async def stay() -> None:
        begun.append(asyncio.get_running_loop().time())
        while len(begun) == 1:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    async def handle(event: UserSignedUp) -> None:
        await stay()

    async def handle_many(events: list[UserSignedUp]) -> None:
        await stay()

    service = serving(handle if batch is None else handle_many, batch=batch, timeout_seconds=60)
    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    first, second = begun
    assert second - first > 60 + LEASE_SECONDS / 2


async def test_a_cancelled_handler_releases_its_claim() -> None:
    begun = asyncio.Event()

    async def handle(_: UserSignedUp) -> None:
        begun.set()
        await asyncio.sleep(10_000)

    service = serving(handle, timeout_seconds=None)
    envelope = wrap(ADA, source="test")
    store = MemoryStore()
    transport = FakeTransport()
    transport.put(encode(envelope))
    worker = Worker(service, transport, WorkerSettings.load(port=0, host="127.0.0.1", wait_seconds=1), store=store)
    running = asyncio.create_task(worker.run())
    await begun.wait()
    worker.kill()
    await running

    [outcome] = await store.claim([claim_of(service, envelope)])
    assert not isinstance(outcome, Completed)
    assert getattr(outcome, "attempt", None) == 2


async def test_a_claim_that_was_granted_but_not_answered_is_released() -> None:
    store = Flaky()
    claims = Claims(store)
    claim = Claim("key", "token", LEASE_SECONDS, 600)
    asking = asyncio.create_task(claims.claim(claim))
    await asyncio.sleep(0)

    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await claims.aclose()

    assert [verb for verb, _ in store.calls] == ["claim", "release"]


async def test_a_worker_without_a_store_names_the_missing_setting() -> None:
    async def handle(_: UserSignedUp) -> None: ...

    worker = Worker(serving(handle), FakeTransport(), WorkerSettings.load(port=0, host="127.0.0.1"))

    with pytest.raises(ConfigError, match="set SMARTPIPE_IDEMPOTENCY_URL, as in postgresql://"):
        await worker.run()


async def test_a_transaction_needs_an_idempotent_handler_and_a_store_with_transactions() -> None:
    faults: list[str] = []

    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        try:
            async with delivery.transaction():
                pass
        except ConfigError as error:
            faults.append(str(error))

    for idempotent in (True, False):
        async with MemoryBroker(serving(handle, idempotent=idempotent)) as broker:
            await broker.publish(ADA)
            await broker.drain()

    assert "to its postgresql:// URL" in faults[0]
    assert "is for idempotent handlers: add idempotent=True" in faults[1]
