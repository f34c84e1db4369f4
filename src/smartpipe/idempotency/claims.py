"""The claims of one process. Claims go to the store in batches, and heartbeats renew the leases of held claims."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.store import Claim, Claimed
from smartpipe.settings import AwsSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Any, TypeAlias

    from pydantic import SecretStr

    from smartpipe.idempotency.store import ClaimOutcome, Store

    OpenTransaction: TypeAlias = Callable[..., AbstractAsyncContextManager[Any]]

log = logging.getLogger("smartpipe.idempotency")

T = TypeVar("T")

CALL_SECONDS = 5.0
MIN_COUNT_SECONDS = 86_400.0
"""The count of attempts is remembered for at least a day: longer than the 12 hours for which a retry can wait."""
MAX_CLAIMS = 100
"""In one call to the store."""
COMPLETE_SECONDS = 30.0
"""How long a completion is retried. The event has been handled, and only its record in the store is missing."""
RENEWALS_PER_LEASE = 3
PROBE_SECONDS = 5.0
PROBE = Claim("smartpipe:probe", "nobody", 1, 1)
"""No process ever holds this claim, so releasing it changes nothing."""


async def open_claims(service: Claimant, url: SecretStr | None, store: Store | None = None) -> Claims | None:
    """Open the claims of *service* in *store*, or in the store at *url*; None if no handler of it is idempotent.

    The keys contain ``SMARTPIPE_PREFIX``, so environments can share a store.

    Raises:
        ConfigError: There is no store, or its table does not exist. The error has the setting or command to use.
        StoreError: The store is unreachable.
    """
    if not service.idempotent:
        return None
    if store is None:
        if url is None:
            raise ConfigError(
                f"service {service.name!r} has idempotent handlers, but no idempotency store: set "
                "SMARTPIPE_IDEMPOTENCY_URL, as in postgresql://..., redis://... or dynamodb://TABLE"
            )
        from smartpipe.idempotency.open_store import open_store

        store = open_store(url.get_secret_value())
    await store.open()
    return Claims(store, prefix=AwsSettings.load().prefix)


class Claimant(Protocol):
    """The properties of a Service that its claims need."""

    @property
    def name(self) -> str:
        """The service's name."""

    @property
    def idempotent(self) -> bool:
        """Whether it has idempotent handlers."""


class _BatchedCall(Generic[T]):
    """A method of the store that sends all claims from one iteration of the event loop in one call."""

    def __init__(
        self, call: Callable[[Sequence[Claim]], Awaitable[list[T]]], on_result: Callable[[bool], None]
    ) -> None:
        self._call = call
        self._on_result = on_result
        self._pending: list[tuple[Claim, asyncio.Future[T]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, claim: Claim) -> asyncio.Future[T]:
        """Return a future for the store's result, or its StoreError."""
        loop = asyncio.get_running_loop()
        if not self._pending:
            loop.call_soon(self._flush)
        future: asyncio.Future[T] = loop.create_future()
        self._pending.append((claim, future))
        return future

    async def drain(self) -> None:
        """Wait until all calls have ended."""
        self._flush()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _flush(self) -> None:
        while self._pending:
            batch, self._pending = self._pending[:MAX_CLAIMS], self._pending[MAX_CLAIMS:]
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: list[tuple[Claim, asyncio.Future[T]]]) -> None:
        error: StoreError | None = None
        results: list[T] = []
        try:
            async with asyncio.timeout(CALL_SECONDS):
                results = await self._call([claim for claim, _ in batch])
        except StoreError as store_error:
            error = store_error
        except TimeoutError:
            error = StoreError(f"the idempotency store did not answer within {CALL_SECONDS:g} s")
        except Exception as unexpected:
            log.exception("Internal error in the idempotency store")
            error = StoreError(f"the idempotency store failed: {type(unexpected).__name__}")
        self._on_result(error is None)
        for index, (_, future) in enumerate(batch):
            if future.cancelled():  # its caller no longer waits
                continue
            if error is None:
                future.set_result(results[index])
            else:
                future.set_exception(error)


class Claims:
    """The claims of a process in one store. All its consumers share it.

    ``failures`` is the number of failed calls since the last successful one.

    Args:
        prefix: The environment's prefix, which is part of each key.
        transaction: For tests: provides the transactions of ``delivery.transaction()``, with the same arguments, in
            place of the store.
    """

    def __init__(self, store: Store, *, prefix: str = "", transaction: OpenTransaction | None = None) -> None:
        self.store = store
        self.prefix = prefix
        self.transaction = transaction
        self.failures = 0
        self._claim = _BatchedCall(self._claim_many, self._count_failure)
        self._complete = _BatchedCall(store.complete, self._count_failure)
        self._release = _BatchedCall(store.release, self._count_failure)
        self._leases: dict[str, _Lease] = {}
        self._renew_timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()
        self._probe_timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def claim(self, claim: Claim) -> ClaimOutcome:
        """Claim, in one call with all other claims of this moment. If it is cancelled, it releases the claim.

        Raises:
            StoreError: The store did not answer. Nothing is claimed, or not for longer than the lease.
        """
        future = self._claim.send(claim)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(partial(self._release_if_claimed, claim))
            raise

    def _release_if_claimed(self, claim: Claim, future: asyncio.Future[ClaimOutcome]) -> None:
        if future.exception() is None and isinstance(future.result(), Claimed):
            self.release_soon(claim)

    def hold(self, claim: Claim, since: float, on_lost: Callable[[], None]) -> None:
        """Renew the lease of *claim* until ``drop``. If the lease is lost, call *on_lost* once.

        Args:
            since: The loop's time before the claim was sent, so that the lease is not assumed to be longer than it is.
        """
        lease = self._leases[claim.token] = _Lease(claim, since, on_lost)
        if self._renew_timer is not None and lease.renew_at < self._renew_timer.when():
            # The timer waits for a longer lease: queues of one process may have different visibility timeouts.
            self._renew_timer.cancel()
            self._renew_timer = None
        self._schedule()

    def drop(self, claim: Claim) -> None:
        """Stop renewing the lease of *claim*."""
        self._leases.pop(claim.token, None)

    async def complete(self, claim: Claim) -> bool:
        """Mark the claim as completed, with retries for half a minute; False if another holder has it by now.

        Raises:
            StoreError: The store did not accept it in this time.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + COMPLETE_SECONDS
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(StoreError),
            wait=wait_random_exponential(multiplier=0.2, max=3),
            stop=lambda _: clock() >= until,
            reraise=True,
        ):
            with attempt:
                return await self._complete.send(claim)
        raise AssertionError  # pragma: no cover - reraise leaves no other way out

    async def release(self, claim: Claim) -> None:
        """Release the claim for the next delivery. If the store is unreachable, it is free when its lease expires."""
        try:
            await self._release.send(claim._replace(ttl_seconds=max(claim.ttl_seconds, MIN_COUNT_SECONDS)))
        except StoreError as error:
            log.warning("Cannot release a claim, its lease will expire in %g s: %s", claim.lease_seconds, error)

    def release_soon(self, claim: Claim) -> None:
        """Release the claim without waiting for it; ``aclose`` waits."""
        task = asyncio.get_running_loop().create_task(self.release(claim))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def aclose(self) -> None:
        """Wait for all calls, and close the store."""
        self._closed = True
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        await self._claim.drain()
        await asyncio.sleep(0)  # lets claims of cancelled callers start their release
        while self._releasing:
            await asyncio.wait(self._releasing)
        for call in (self._complete, self._release):
            await call.drain()
        if self._renew_timer is not None:
            self._renew_timer.cancel()
        if self._renewing is not None:
            await asyncio.wait([self._renewing])
        await self.store.aclose()

    async def _claim_many(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        return await self.store.claim(claims)

    def _count_failure(self, success: bool) -> None:  # noqa: FBT001 - a callback's one argument
        self.failures = 0 if success else self.failures + 1
        if not success and self._probe_timer is None and not self._closed:
            self._probe_timer = asyncio.get_running_loop().call_later(PROBE_SECONDS, self._probe)

    def _probe(self) -> None:
        """Call the store, so that a worker becomes ready again after an outage even if no message arrives."""
        self._probe_timer = None
        if self.failures:
            future = self._release.send(PROBE)
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _schedule(self) -> None:
        if self._renew_timer is None and self._renewing is None and self._leases and not self._closed:
            first = min(lease.renew_at for lease in self._leases.values())
            self._renew_timer = asyncio.get_running_loop().call_at(first, self._start_renewing)

    def _start_renewing(self) -> None:
        """Renew, in one call, all leases that are due or will be soon. The first one may have been dropped since."""
        self._renew_timer = None
        now = asyncio.get_running_loop().time()
        due = [lease for lease in self._leases.values() if lease.renew_at <= now + lease.interval / 2]
        if due:
            self._renewing = asyncio.get_running_loop().create_task(self._renew(due, now))
        else:
            self._schedule()

    async def _renew(self, due: Sequence[_Lease], now: float) -> None:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                renewed = await self.store.renew([lease.claim for lease in due])
        except (StoreError, TimeoutError) as error:
            self._count_failure(success=False)
            log.warning("Cannot renew the leases of claims, retrying: %s", str(error) or "no answer")
            renewed = [now < lease.expires_at for lease in due]
            for lease in due:
                lease.renew_at = now + lease.interval
        else:
            self._count_failure(success=True)
            for lease in due:
                lease.extend(now)
        finally:
            self._renewing = None
        for lease, held in zip(due, renewed, strict=True):
            if not held and self._leases.pop(lease.claim.token, None) is not None:
                lease.on_lost()
        self._schedule()


class _Lease:
    """The lease of a held claim: when it expires, and when to renew it."""

    __slots__ = ("claim", "expires_at", "interval", "on_lost", "renew_at")

    def __init__(self, claim: Claim, now: float, on_lost: Callable[[], None]) -> None:
        self.claim = claim
        self.on_lost = on_lost
        self.interval = claim.lease_seconds / RENEWALS_PER_LEASE
        self.expires_at = now + claim.lease_seconds
        self.renew_at = now + self.interval

    def extend(self, now: float) -> None:
        self.expires_at = now + self.claim.lease_seconds
        self.renew_at = now + self.interval
