"""Lets the effect of one handler on one event happen once: claim → handle → complete, or release."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from smartpipe.consumer.decide import WorkerLost
from smartpipe.consumer.invoke import Deferred, HandlerTimeout
from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.store import Claim, Claimed, Completed, InProgress
from smartpipe.retry import OUTAGE_WAITS, backoff_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from smartpipe.consumer.handlers import Handler
    from smartpipe.consumer.isolation import Isolation, Thresholds
    from smartpipe.consumer.leases import Lease
    from smartpipe.counters import Counters
    from smartpipe.delivery import Delivery
    from smartpipe.idempotency.claims import Claims
    from smartpipe.idempotency.store import Idempotency

log = logging.getLogger("smartpipe.idempotency")

MIN_LEASE_SECONDS = 10.0
PATIENT_DELIVERIES = 3
MAX_DEFERRAL_SECONDS = 300.0


class GuardedResult(NamedTuple):
    """How a guarded call ended.

    Args:
        failure: What the handler raised, or Deferred; None when the effect has happened, now or before.
        attempt: Which attempt it was, by the store's own count; None where no handler ran.
    """

    failure: BaseException | None
    attempt: int | None = None


HANDLED = GuardedResult(None)


class IdempotencyGuard:
    """The guard of one handler.

    Args:
        lease_seconds: How long a crashed worker's claim keeps others waiting: its queue's visibility timeout.
        thresholds: Of the number of claims of one message.
        isolation: Where messages that may kill the process take turns; None: only their claims are counted.
    """

    def __init__(
        self,
        handler: Handler,
        options: Idempotency,
        claims: Claims,
        *,
        lease_seconds: float,
        thresholds: Thresholds,
        isolation: Isolation | None,
        counters: Counters,
    ) -> None:
        self._handler = handler
        self._name = handler.named(claims.prefix)
        self._options = options
        self._claims = claims
        self._lease_seconds = max(MIN_LEASE_SECONDS, lease_seconds)
        self._thresholds = thresholds
        self._isolation = isolation
        self._counters = counters

    async def run(
        self, delivery: Delivery, lease: Lease, call: Callable[[], Awaitable[BaseException | None]], *, spared: int = 0
    ) -> GuardedResult:
        """Run *call*, which returns what the handler raised, unless its effect has happened or is happening elsewhere.

        A message that was claimed more often than failures explain may have killed its workers: *call* is run alone,
        and in the end not at all. Cancelled, it gives the claim back.

        Args:
            spared: How many claims of it were no attempts, because a resource had run out.
        """
        key = self._options.key_of(self._name, delivery.envelope)
        claim = Claim(key, uuid4().hex, self._lease_seconds, self._options.ttl_seconds)
        asked_at = asyncio.get_running_loop().time()
        try:
            outcome = await self._claims.claim(claim)
        except StoreError as error:
            self._claims.release_soon(claim)  # it may have been granted, and only the answer lost
            seconds = max(1.0, backoff_seconds(OUTAGE_WAITS, self._claims.failures, error))
            return GuardedResult(Deferred(f"not handled unprotected: {error}", seconds, store_failed=True))
        if isinstance(outcome, Completed):
            self._counters.deduplicated += 1
            log.debug("deduplicated", extra={"fields": delivery.log_fields})
            return HANDLED
        if isinstance(outcome, InProgress):
            seconds = _deferral(outcome.seconds, delivery.receive_count, self._lease_seconds)
            return GuardedResult(Deferred("it is being handled elsewhere", seconds))
        if outcome.attempt - spared > self._thresholds.lost:
            await self._claims.release(claim)
            lost = WorkerLost(
                f"claimed {outcome.attempt} times, and no worker reported a result: it probably killed them, by "
                "running out of memory for instance, or they gave it back"
            )
            return GuardedResult(lost, outcome.attempt)
        self._claims.hold(claim, asked_at, partial(_lose, lease))
        if (
            outcome.attempt - spared > self._thresholds.suspect
            and self._isolation is not None
            and not self._isolation.is_alone(lease)
        ):
            log.warning(
                "Claimed more often than failures explain, so it is handled last and alone",
                extra={"fields": delivery.log_fields},
            )
            call = partial(_call_alone, self._isolation, lease, call)
        return await self._held(claim, outcome, delivery, call)

    async def _held(
        self, claim: Claim, outcome: Claimed, delivery: Delivery, call: Callable[[], Awaitable[BaseException | None]]
    ) -> GuardedResult:
        holding = ClaimHandle(self._claims, claim, outcome.attempt)
        delivery.holding = holding
        try:
            failure = await call()
        except asyncio.CancelledError:
            if not holding.completed:
                self._claims.release_soon(claim)
            raise
        finally:
            self._claims.drop(claim)
        if holding.completed:
            return GuardedResult(failure, outcome.attempt)
        if failure is None:
            return await self._complete(claim, outcome, delivery)
        if not isinstance(failure, HandlerTimeout) or self._handler.is_async:  # an abandoned thread goes on
            await self._claims.release(claim)
        return GuardedResult(failure, outcome.attempt)

    async def _complete(self, claim: Claim, outcome: Claimed, delivery: Delivery) -> GuardedResult:
        """Let the effect be remembered; what the store cannot be told is deleted all the same, for it has happened."""
        try:
            remembered = await self._claims.complete(claim)
        except StoreError as error:
            log.error(  # noqa: TRY400 - the store's words say it
                "handled, but the store could not be told: another copy of this event would be handled again: %s",
                error,
                extra={"fields": delivery.log_fields},
            )
            remembered = True
        if remembered:
            return GuardedResult(None, outcome.attempt)
        self._counters.fenced += 1
        log.warning(
            "handled after its claim had gone to another worker: the effect may have happened twice",
            extra={"fields": delivery.log_fields},
        )
        return GuardedResult(Deferred("its claim had gone to another worker", 1.0), outcome.attempt)


def _deferral(lease_left_seconds: float, receive_count: int, lease_seconds: float) -> float:
    """Return when to look again: after what is left of the lease and, the third time on, less and less often.

    Each look is a delivery, and SQS dead-letters after so many. The price: a holder that crashes late is noticed late.
    """
    longer = lease_seconds * 2.0 ** min(receive_count - PATIENT_DELIVERIES, 10)
    return max(lease_left_seconds, min(longer, MAX_DEFERRAL_SECONDS)) if longer > lease_seconds else lease_left_seconds


async def _call_alone(
    isolation: Isolation, lease: Lease, call: Callable[[], Awaitable[BaseException | None]]
) -> BaseException | None:
    async with isolation.alone(lease):
        return Deferred("its worker stops", 0.0) if isolation.stopped else await call()


def _lose(lease: Lease) -> None:
    lease.lose()


class ClaimHandle:
    """A claim while its handler runs, as the delivery knows it; *attempt* is the store's count, this one included."""

    def __init__(self, claims: Claims, claim: Claim, attempt: int) -> None:
        self.attempt = attempt
        self._claims = claims
        self._claim = claim
        self.completed = False

    def abandon(self) -> None:
        """Stop renewing the claim of a handler that does not end: others may have it when its lease is over."""
        self._claims.drop(self._claim)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """Yield a connection inside of a transaction that commits the handler's effect and the claim's completion.

        Raises:
            ConfigError: The store is no PostgreSQL.
            ClaimLost: Another worker has the claim by now; everything is rolled back.
        """
        store: Any = self._claims.store
        if not hasattr(store, "complete_in"):
            msg = (
                "delivery.transaction() needs the claims in the same PostgreSQL: set SMARTPIPE_IDEMPOTENCY_URL to its "
                "postgresql:// URL"
            )
            raise ConfigError(msg)
        if self.completed:
            msg = "delivery.transaction() can be used once: its commit completes the delivery"
            raise ConfigError(msg)
        async with store.acquire() as connection:
            async with connection.transaction():
                yield connection
                if not await store.complete_in(connection, self._claim):
                    raise ClaimLost("another worker has the claim by now; nothing was committed")
            self.completed = True


class ClaimLost(Exception):
    """The claim had gone to another worker before the transaction was to commit."""
