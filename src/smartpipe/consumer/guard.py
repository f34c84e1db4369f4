"""Lets a handler handle each event once: claim the event, call the handler, then complete or release the claim."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from smartpipe.connections import SESSIONS, begin, kind_of, open_connection
from smartpipe.consumer.decide import WorkerLost
from smartpipe.consumer.invoke import HandlerTimeout, NotHandledYet
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
TRANSACTION = "delivery.transaction()"


class CallResult(NamedTuple):
    """The result of a handler's call.

    Args:
        failure: The exception that the handler raised, or NotHandledYet; None if it succeeded, now or before.
        attempt: The attempt number by the store's own count; None if the handler did not run, or has no guard.
    """

    failure: BaseException | None
    attempt: int | None = None


HANDLED = CallResult(None)


class IdempotencyGuard:
    """The guard of one handler.

    Args:
        lease_seconds: How long a crashed worker's claim keeps others waiting: its queue's visibility timeout.
        thresholds: The numbers of claims from which a message is handled alone, or dead-lettered.
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
        self._name = handler.full_name(claims.prefix)
        self._options = options
        self._claims = claims
        self._lease_seconds = max(MIN_LEASE_SECONDS, lease_seconds)
        self._thresholds = thresholds
        self._isolation = isolation
        self._counters = counters

    async def run(
        self,
        delivery: Delivery,
        lease: Lease,
        call: Callable[[], Awaitable[BaseException | None]],
        *,
        not_counted: int = 0,
    ) -> CallResult:
        """Run *call*, which returns the handler's failure, unless the event was handled or another worker handles it.

        A message that was claimed more often than failures explain may have killed its workers: *call* is run alone,
        and in the end not at all. If cancelled, release the claim.

        Args:
            not_counted: The number of claims that were not attempts, because a resource had run out.
        """
        key = self._options.key_of(self._name, delivery.envelope)
        claim = Claim(key, uuid4().hex, self._lease_seconds, self._options.ttl_seconds)
        asked_at = asyncio.get_running_loop().time()
        try:
            outcome = await self._claims.claim(claim)
        except StoreError as error:
            # The store may have granted the claim, with only the response lost. It must not block the next delivery.
            self._claims.release_soon(claim)
            seconds = max(1.0, backoff_seconds(OUTAGE_WAITS, self._claims.failures, error))
            reason = f"not handled without the idempotency store: {error}"
            return CallResult(NotHandledYet(reason, seconds, store_failed=True))
        if isinstance(outcome, Completed):
            self._counters.deduplicated += 1
            log.debug("Deduplicated", extra={"fields": delivery.log_fields})
            return HANDLED
        if isinstance(outcome, InProgress):
            seconds = _seconds_until_retry(outcome.seconds, delivery.receive_count, self._lease_seconds)
            return CallResult(NotHandledYet("another worker is handling it", seconds))
        # The store remembers the attempts of an event beyond the life of a message. A message that comes from its
        # dead-letter queue, or another event with the same value of the key, has attempts of its own.
        outcome = Claimed(min(outcome.attempt, delivery.attempt + not_counted))
        if outcome.attempt - not_counted > self._thresholds.lost:
            await self._claims.release(claim)
            lost = WorkerLost(
                f"claimed {outcome.attempt} times, and no worker reported a result: it probably killed them, for "
                "instance by running out of memory, or they returned it to the queue"
            )
            return CallResult(lost, outcome.attempt)
        delivery.attempt = max(1, outcome.attempt - not_counted)
        self._claims.hold(claim, asked_at, partial(_lose, lease))  # before waiting for a turn, which takes a while
        if (
            outcome.attempt - not_counted > self._thresholds.suspect
            and self._isolation is not None
            and not self._isolation.is_alone(lease)
        ):
            log.warning(
                "Claimed more often than failures explain: it will be handled last and alone",
                extra={"fields": delivery.log_fields},
            )
            call = partial(_call_alone, self._isolation, lease, call)
        return await self._run_claimed(claim, outcome, delivery, call)

    async def _run_claimed(
        self, claim: Claim, outcome: Claimed, delivery: Delivery, call: Callable[[], Awaitable[BaseException | None]]
    ) -> CallResult:
        handle = ClaimHandle(self._claims, claim, outcome.attempt)
        delivery.claim = handle
        try:
            failure = await call()
        except asyncio.CancelledError:
            if not handle.completed:
                self._claims.release_soon(claim)
            raise
        finally:
            self._claims.drop(claim)
        if handle.completed:  # by `delivery.transaction()`, even if the handler failed afterwards
            return CallResult(failure, outcome.attempt)
        if failure is None:
            return await self._complete(claim, outcome, delivery)
        # An abandoned thread continues to run, and so may a batch. The claim is kept until its lease ends, so that no
        # other call overlaps.
        if not isinstance(failure, HandlerTimeout) or (self._handler.is_async and not failure.running):
            await self._claims.release(claim)
        return CallResult(failure, outcome.attempt)

    async def _complete(self, claim: Claim, outcome: Claimed, delivery: Delivery) -> CallResult:
        """Complete the claim. If the store is unavailable, count the event as handled all the same: it has been.

        If cancelled at the end of a drain while the store is unavailable, do not wait for it any longer.
        """
        try:
            completed = await self._claims.complete(claim)
        except (StoreError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not self._is_given_up():
                raise
            log.error(  # noqa: TRY400 - the store's error says it all
                "Handled, but the idempotency store could not be updated: a duplicate of this event would be handled "
                "again: %s",
                str(error) or "the worker is stopping",
                extra={"fields": delivery.log_fields},
            )
            completed = True
        if completed:
            return CallResult(None, outcome.attempt)
        self._counters.fenced += 1
        log.warning(
            "Handled after another worker had taken over the claim: the event may have been handled twice",
            extra={"fields": delivery.log_fields},
        )
        return CallResult(NotHandledYet("another worker has taken over its claim", 1.0), outcome.attempt)

    def _is_given_up(self) -> bool:
        """Return whether the store has failed until the end of a drain, so that its record of the event is lost."""
        return self._isolation is not None and self._isolation.stopped and self._claims.failures > 0


def _seconds_until_retry(lease_left_seconds: float, receive_count: int, lease_seconds: float) -> float:
    """Return when to try to claim again: after the rest of the lease, and less and less often from the third time on.

    Each try is a delivery, and SQS dead-letters a message after a number of them. The price: if the holder crashes
    late, the next try comes late.
    """
    longer = lease_seconds * 2.0 ** min(receive_count - PATIENT_DELIVERIES, 10)
    return max(lease_left_seconds, min(longer, MAX_DEFERRAL_SECONDS)) if longer > lease_seconds else lease_left_seconds


async def _call_alone(
    isolation: Isolation, lease: Lease, call: Callable[[], Awaitable[BaseException | None]]
) -> BaseException | None:
    async with isolation.alone(lease):
        return NotHandledYet("its worker is stopping", 0.0) if isolation.stopped else await call()


def _lose(lease: Lease) -> None:
    lease.lose()


class ClaimHandle:
    """A claim while its handler runs, for the delivery; *attempt* is the store's count, this claim included."""

    def __init__(self, claims: Claims, claim: Claim, attempt: int) -> None:
        self.attempt = attempt
        self._claims = claims
        self._claim = claim
        self.completed = False

    def abandon(self) -> None:
        """Stop renewing the claim of a handler that does not end. Others may claim the event when its lease ends."""
        self._claims.drop(self._claim)

    @asynccontextmanager
    async def transaction(self, source: Any = None) -> AsyncIterator[Any]:
        """Yield a connection in a transaction that commits the handler's changes and completes the claim.

        Args:
            source: See Delivery.transaction; None: a connection of the store.

        Raises:
            ConfigError: The store is not PostgreSQL, or *source* cannot be used or leads to another database.
            ClaimLost: Another worker has taken over the claim; everything is rolled back.
        """
        if self.completed:
            msg = f"{TRANSACTION} can be used once: its commit completes the delivery"
            raise ConfigError(msg)
        store: Any = self._claims.store
        if self._claims.transaction is not None:
            async with self._claims.transaction(*([] if source is None else [source])) as connection:
                yield connection
            if not await self._claims.complete(self._claim):
                raise ClaimLost("another worker has taken over the claim after the transaction of the test")
            self.completed = True
            return
        if not hasattr(store, "complete_in"):
            msg = (
                f"{TRANSACTION} needs the claims in the same PostgreSQL database: set SMARTPIPE_IDEMPOTENCY_URL to its "
                "postgresql:// URL. In a test, write MemoryBroker(idempotency_url='postgresql://...', virtual=False), "
                "or MemoryBroker(transaction=...) with a transaction of the test's own"
            )
            raise ConfigError(msg)
        async with store.acquire() if source is None else open_connection(source, TRANSACTION) as connection:
            async with begin(connection, TRANSACTION):
                if source is not None:
                    await store.check_database(connection, self._claim, TRANSACTION)
                yield connection
                if kind_of(connection) in SESSIONS:
                    await connection.flush()  # the errors of the caller's objects come before the claim is locked
                # Last, and in the same transaction: the claim and the handler's changes are committed together.
                if not await store.complete_in(connection, self._claim):
                    raise ClaimLost("another worker has taken over the claim; nothing was committed")
            self.completed = True


class ClaimLost(Exception):
    """Another worker had taken over the claim before the transaction could commit."""
