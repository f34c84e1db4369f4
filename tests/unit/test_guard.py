"""What the guard of an idempotent handler makes of each answer of the store, and of each end of the handler."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import pytest

from smartpipe import Delivery, Queue, Service, StoreError
from smartpipe.consumer.decide import WorkerLost
from smartpipe.consumer.guard import CallResult, IdempotencyGuard
from smartpipe.consumer.invoke import HandlerTimeout, NotHandledYet
from smartpipe.consumer.isolation import Isolation, Thresholds
from smartpipe.consumer.leases import Lease
from smartpipe.counters import Counters
from smartpipe.envelope import wrap
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.store import Claimed, Completed, InProgress
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.message import Message
from tests.support.events import ADA, UserSignedUp
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.consumer.handlers import Handler
    from smartpipe.idempotency.store import Claim, ClaimOutcome

SUSPECT, LOST = 9, 16


async def handle(event: UserSignedUp) -> None: ...
def handle_in_a_thread(event: UserSignedUp) -> None: ...


def handler_of(function: Callable[[UserSignedUp], Any]) -> Handler:
    service = Service("mailer", queue=Queue("mailer"))
    service.subscribe(UserSignedUp, idempotent=True)(function)
    return service.handlers[0]


class Answering(MemoryStore):
    """A store that gives one answer to every claim, or raises it. It records its calls."""

    def __init__(self, answer: ClaimOutcome | Exception) -> None:
        super().__init__()
        self.answer = answer
        self.completes: bool | Exception = True
        self.calls: Counter[str] = Counter()
        self.claims: list[Claim] = []

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        self.claims += claims
        if isinstance(self.answer, Exception):
            raise self.answer
        return [self.answer] * len(claims)

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        self.calls["complete"] += len(claims)
        if isinstance(self.completes, Exception):
            raise self.completes
        return [self.completes] * len(claims)

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        self.calls["release"] += len([claim for claim in claims if claim in self.claims])
        return [True] * len(claims)

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        self.calls["renew"] += len(claims)
        return [True] * len(claims)


class Guarded:
    """A guard and its store, and the number of calls of the handler."""

    def __init__(
        self,
        answer: ClaimOutcome | Exception = Claimed(1),  # noqa: B008 - a tuple
        *,
        lease_seconds: float = 30,
        function: Callable[[UserSignedUp], Any] = handle,
        isolation: Isolation | None = None,
    ) -> None:
        self.store, self.counters = Answering(answer), Counters()
        self.claims = Claims(self.store)
        self.isolation = isolation
        handler = handler_of(function)
        assert handler.options.idempotency is not None
        self.guard = IdempotencyGuard(
            handler,
            handler.options.idempotency,
            self.claims,
            lease_seconds=lease_seconds,
            thresholds=Thresholds(SUSPECT, LOST),
            isolation=isolation,
            counters=self.counters,
        )
        self.calls = 0
        self.alone: list[bool] = []

    def make_lease(self, receive_count: int = 1) -> Lease:
        message = Message("m1", "r1", "{}", receive_count)
        return Lease(message, math.inf, math.inf, asyncio.get_running_loop().time)

    async def run(
        self,
        failure: BaseException | None = None,
        *,
        receive_count: int | None = None,
        not_counted: int = 0,
        seconds: float = 0,
    ) -> CallResult:
        """Run the guard. By default, the message has been received once for each claim of the answer."""
        answer = self.store.answer
        count = receive_count or (answer.attempt if isinstance(answer, Claimed) else 1)

        async def call() -> BaseException | None:
            self.calls += 1
            self.alone.append(self.isolation is not None and not self.isolation.passive)
            await asyncio.sleep(seconds)
            return failure

        return await self.run_with(self.make_lease(count), call, not_counted)

    async def run_with(
        self, lease: Lease, call: Callable[[], Awaitable[BaseException | None]], not_counted: int = 0
    ) -> CallResult:
        delivery = Delivery[Any](
            wrap(ADA, source="test"), lease.message, handler="h", service="mailer", queue="mailer", lease=lease,
            publisher=cast("Any", None),
        )  # fmt: skip
        try:
            return await self.guard.run(delivery, lease, call, not_counted=not_counted)
        finally:
            await asyncio.sleep(0.1)  # for releases that nothing waits for


def test_a_claim_lasts_as_long_as_the_visibility_timeout_but_ten_seconds_at_least() -> None:
    async def main() -> list[float]:
        leases = []
        for seconds in (0, 9, 10, 11, 43_200):
            guarded = Guarded(lease_seconds=seconds)
            assert await guarded.run() == CallResult(None, 1)
            leases.append(guarded.store.claims[0].lease_seconds)
            await guarded.claims.aclose()
        return leases

    assert run_virtually(main()) == [10, 10, 10, 11, 43_200]


def test_every_call_has_a_token_of_its_own() -> None:
    async def main() -> None:
        guarded = Guarded()
        for _ in range(3):
            await guarded.run()
        assert len({claim.token for claim in guarded.store.claims}) == 3
        assert len({claim.ttl_seconds for claim in guarded.store.claims}) == 1
        assert guarded.store.calls == {"complete": 3}

    run_virtually(main())


def test_an_event_that_was_handled_before_is_counted_and_not_handled() -> None:
    async def main() -> None:
        guarded = Guarded(Completed())
        for count in (1, 2):
            assert await guarded.run() == CallResult(None, None)
            assert guarded.counters.as_dict() == {"deduplicated": count}
        assert (guarded.calls, guarded.store.calls) == (0, {})

    run_virtually(main())


@pytest.mark.parametrize(("receive_count", "seconds"), [(1, 12), (3, 12), (4, 60)])
def test_an_event_that_another_worker_handles_is_deferred_for_the_rest_of_its_lease(
    receive_count: int, seconds: float
) -> None:
    async def main() -> None:
        guarded = Guarded(InProgress(12))
        failure, attempt = await guarded.run(receive_count=receive_count)
        assert isinstance(failure, NotHandledYet)
        assert (failure.seconds, failure.store_failed, failure.exhausted, attempt) == (seconds, False, False, None)
        assert (guarded.calls, guarded.store.calls) == (0, {})

    run_virtually(main())


def test_without_the_store_an_event_is_deferred_for_longer_each_time_and_its_claim_released() -> None:
    async def main() -> list[float]:
        guarded, waits = Guarded(StoreError("down")), list[float]()
        for failed in range(1, 60):
            failure, attempt = await guarded.run()
            assert isinstance(failure, NotHandledYet)
            assert (failure.store_failed, attempt) == (True, None)
            assert str(failure) == "not handled without the idempotency store: down"
            assert guarded.store.calls["release"] >= failed
            waits.append(failure.seconds)
            guarded.claims.failures = failed
        assert guarded.calls == 0
        await guarded.claims.aclose()
        return waits

    waits = run_virtually(main())
    assert waits[0] == 1  # the first waits of an outage are shorter, and would be a busy loop of deliveries
    assert all(1 <= wait <= 30 for wait in waits)
    assert max(waits) > 10


def test_a_message_has_no_more_attempts_than_deliveries_even_if_its_event_was_claimed_before() -> None:
    async def main() -> None:
        for receive_count, not_counted, expected in ((1, 0, 1), (2, 0, 2), (2, 1, 3)):
            guarded = Guarded(Claimed(LOST + 5), isolation=Isolation())
            failure, attempt = await guarded.run(KeyError("x"), receive_count=receive_count, not_counted=not_counted)
            assert (type(failure), attempt, guarded.alone) == (KeyError, expected, [False])

    run_virtually(main())


@pytest.mark.parametrize("not_counted", [0, 5])
def test_an_event_that_was_claimed_too_often_is_not_handled_any_more(not_counted: int) -> None:
    async def main() -> None:
        last = Guarded(Claimed(LOST + not_counted))
        assert (await last.run(not_counted=not_counted)).failure is None
        assert last.calls == 1

        lost = Guarded(Claimed(LOST + not_counted + 1))
        failure, attempt = await lost.run(not_counted=not_counted)
        assert isinstance(failure, WorkerLost)
        assert str(failure).startswith(f"claimed {LOST + not_counted + 1} times, and no worker reported a result")
        assert (lost.calls, attempt, lost.store.calls) == (0, LOST + not_counted + 1, {"release": 1})

    run_virtually(main())


@pytest.mark.parametrize("not_counted", [0, 5])
def test_an_event_that_was_claimed_more_often_than_failures_explain_is_handled_alone(
    not_counted: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for claimed, alone in ((SUSPECT, False), (SUSPECT + 1, True), (LOST, True)):
            caplog.clear()
            guarded = Guarded(Claimed(claimed + not_counted), isolation=Isolation())
            assert await guarded.run(not_counted=not_counted) == CallResult(None, claimed + not_counted)
            assert guarded.alone == [alone]
            assert len(caplog.messages) == alone
            assert guarded.store.calls == {"complete": 1}

    with caplog.at_level(logging.WARNING):
        run_virtually(main())


def test_an_event_that_has_its_turn_already_does_not_wait_for_another(caplog: pytest.LogCaptureFixture) -> None:
    async def succeed() -> None: ...

    async def main() -> None:
        isolation = Isolation()
        guarded = Guarded(Claimed(SUSPECT + 1), isolation=isolation)
        lease = guarded.make_lease()
        async with isolation.alone(lease):
            assert (await guarded.run_with(lease, succeed)).failure is None
        assert isolation.passive

    run_virtually(main())
    assert caplog.messages == []


def test_a_suspect_of_a_stopping_worker_is_returned_immediately_and_its_claim_released() -> None:
    async def main() -> None:
        isolation = Isolation()
        isolation.stop()
        guarded = Guarded(Claimed(SUSPECT + 1), isolation=isolation)
        failure, attempt = await guarded.run()
        assert isinstance(failure, NotHandledYet)
        assert (failure.seconds, str(failure), attempt) == (0, "its worker is stopping", SUSPECT + 1)
        assert (guarded.calls, guarded.store.calls) == (0, {"release": 1})

    run_virtually(main())


@pytest.mark.parametrize(
    ("function", "failure", "released"),
    [
        (handle, ValueError("x"), 1),
        (handle, HandlerTimeout("it ran too long"), 1),
        (handle, HandlerTimeout("it still runs", running=True), 0),
        (handle_in_a_thread, ValueError("x"), 1),
        (handle_in_a_thread, HandlerTimeout("its thread still runs"), 0),
    ],
)
def test_a_failure_releases_the_claim_unless_a_thread_still_runs(
    function: Callable[[UserSignedUp], Any], failure: Exception, released: int
) -> None:
    async def main() -> None:
        guarded = Guarded(Claimed(3), function=function)
        assert await guarded.run(failure) == CallResult(failure, 3)
        assert guarded.store.calls["release"] == released
        assert guarded.store.calls["complete"] == 0

    run_virtually(main())


def test_a_claim_is_renewed_while_its_handler_runs_and_not_afterwards() -> None:
    async def main() -> None:
        guarded = Guarded()
        await guarded.run(seconds=35)
        assert guarded.store.calls == {"renew": 3, "complete": 1}
        await asyncio.sleep(100)
        assert guarded.store.calls["renew"] == 3
        await guarded.claims.aclose()

    run_virtually(main())


def test_a_cancelled_call_releases_its_claim_and_is_renewed_no_more() -> None:
    async def main() -> None:
        guarded = Guarded()
        running = asyncio.create_task(guarded.run(seconds=1_000))
        await asyncio.sleep(15)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert guarded.store.calls == {"renew": 1, "release": 1}
        await asyncio.sleep(100)
        assert guarded.store.calls == {"renew": 1, "release": 1}
        await guarded.claims.aclose()

    run_virtually(main())


def test_a_call_that_lost_its_claim_is_counted_and_its_message_comes_back_a_second_later() -> None:
    async def main() -> None:
        guarded = Guarded(Claimed(2))
        guarded.store.completes = False
        for count in (1, 2):
            failure, attempt = await guarded.run()
            assert isinstance(failure, NotHandledYet)
            assert (failure.seconds, failure.store_failed, attempt) == (1, False, 2)
            assert guarded.counters.as_dict() == {"fenced": count}

    run_virtually(main())


def test_an_event_whose_completion_fails_counts_as_handled() -> None:
    async def main() -> None:
        guarded = Guarded(Claimed(2))
        guarded.store.completes = StoreError("down")
        assert await guarded.run() == CallResult(None, 2)
        assert guarded.counters.as_dict() == {}
        assert guarded.store.calls["release"] == 0
        await guarded.claims.aclose()

    run_virtually(main())
