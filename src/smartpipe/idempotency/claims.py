"""The claims of one process: many go to the store in one call, and what is held is kept by heartbeats."""

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

    from pydantic import SecretStr

    from smartpipe.idempotency.store import ClaimOutcome, Store

log = logging.getLogger("smartpipe.idempotency")

T = TypeVar("T")

CALL_SECONDS = 5.0
MAX_CLAIMS = 100
"""In one call."""
COMPLETE_SECONDS = 30.0
"""For so long a completion is tried: the effect has happened, and only the store's memory of it is missing."""
RENEWALS_PER_LEASE = 3
PROBE_SECONDS = 5.0
PROBE = Claim("smartpipe:probe", "nobody", 1, 1)
"""Held by nobody: to release it changes nothing."""


async def claims_of(service: Claimant, url: SecretStr | None, store: Store | None = None) -> Claims | None:
    """Open what *service* claims with: *store*, or that of *url*; None when no handler of it is idempotent.

    Whichever store it is, its keys carry ``SMARTPIPE_PREFIX``, so environments may share one.

    Raises:
        ConfigError: There is no store, or its table is not there: with the command that makes it.
        StoreError: The store cannot be asked.
    """
    if not service.idempotent:
        return None
    if store is None:
        if url is None:
            raise ConfigError(
                f"service {service.name!r} has idempotent handlers, and no store to remember what they did: set "
                "SMARTPIPE_IDEMPOTENCY_URL, as in postgresql://..., redis://... or dynamodb://TABLE"
            )
        from smartpipe.idempotency.open_store import open_store

        store = open_store(url.get_secret_value())
    await store.open()
    return Claims(store, prefix=AwsSettings.load().prefix)


class Claimant(Protocol):
    """A Service, as far as its store is concerned."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def idempotent(self) -> bool:
        """Whether it has idempotent handlers."""


class _Verb(Generic[T]):
    """One verb of the store: what is asked within one turn of the event loop goes out in one call."""

    def __init__(self, call: Callable[[Sequence[Claim]], Awaitable[list[T]]], answered: Callable[[bool], None]) -> None:
        self._call = call
        self._answered = answered
        self._waiting: list[tuple[Claim, asyncio.Future[T]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, claim: Claim) -> asyncio.Future[T]:
        """Return what will hold the store's answer, or its StoreError."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((claim, future))
        return future

    async def drain(self) -> None:
        """Wait until every call has been answered."""
        self._flush()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _flush(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting[:MAX_CLAIMS], self._waiting[MAX_CLAIMS:]
            task = asyncio.get_running_loop().create_task(self._run(asked))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, asked: list[tuple[Claim, asyncio.Future[T]]]) -> None:
        fault: StoreError | None = None
        answers: list[T] = []
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answers = await self._call([claim for claim, _ in asked])
        except StoreError as error:
            fault = error
        except TimeoutError:
            fault = StoreError(f"the idempotency store did not answer within {CALL_SECONDS:g} s")
        except Exception as error:
            log.exception("the idempotency store raised what no store may raise")
            fault = StoreError(f"the idempotency store failed: {type(error).__name__}")
        self._answered(fault is None)
        for index, (_, future) in enumerate(asked):
            if future.cancelled():  # nobody waits for a release any more
                continue
            if fault is None:
                future.set_result(answers[index])
            else:
                future.set_exception(fault)


class Claims:
    """What a process claims of one store; its consumers share it.

    ``failures`` counts the calls that failed since one succeeded: 0 while all is well.

    Args:
        prefix: The environment's: a part of each key.
    """

    def __init__(self, store: Store, *, prefix: str = "") -> None:
        self.store = store
        self.prefix = prefix
        self.failures = 0
        self._claim = _Verb(self._claim_many, self._note)
        self._complete = _Verb(store.complete, self._note)
        self._release = _Verb(store.release, self._note)
        self._held: dict[str, _Held] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()
        self._probe: asyncio.TimerHandle | None = None
        self._closed = False

    async def claim(self, claim: Claim) -> ClaimOutcome:
        """Claim, in one call with whatever else is claimed now. Cancelled, it gives back what it got.

        Raises:
            StoreError: The store could not be asked: nothing is claimed, or not for longer than the lease.
        """
        future = self._claim.ask(claim)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(partial(self._give_back, claim))
            raise

    def _give_back(self, claim: Claim, future: asyncio.Future[ClaimOutcome]) -> None:
        if future.exception() is None and isinstance(future.result(), Claimed):
            self.release_soon(claim)

    def hold(self, claim: Claim, since: float, on_lost: Callable[[], None]) -> None:
        """Keep the lease of *claim*; *on_lost* is called once, should somebody else have it.

        Args:
            since: The loop's time before it was asked for, lest the lease be thought longer than it is.
        """
        self._held[claim.token] = _Held(claim, since, on_lost)
        self._schedule()

    def drop(self, claim: Claim) -> None:
        """Keep it no longer."""
        self._held.pop(claim.token, None)

    async def complete(self, claim: Claim) -> bool:
        """Say that the effect has happened, for half a minute if need be; False: somebody else has the claim by now.

        Raises:
            StoreError: The store could not be told.
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
                return await self._complete.ask(claim)
        raise AssertionError  # pragma: no cover - reraise leaves no other way out

    async def release(self, claim: Claim) -> None:
        """Let the next delivery have it at once; where the store cannot be told, when its lease ends."""
        try:
            await self._release.ask(claim)
        except StoreError as error:
            log.warning("a claim could not be given back, its lease frees it in %g s: %s", claim.lease_seconds, error)

    def release_soon(self, claim: Claim) -> None:
        """Do the same without waiting; ``aclose`` waits for it."""
        task = asyncio.get_running_loop().create_task(self.release(claim))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def aclose(self) -> None:
        """Finish what is under way, and close the store."""
        self._closed = True
        if self._probe is not None:
            self._probe.cancel()
        await self._claim.drain()
        await asyncio.sleep(0)  # lets what was claimed for nobody be given back
        while self._releasing:
            await asyncio.wait(self._releasing)
        for verb in (self._complete, self._release):
            await verb.drain()
        if self._timer is not None:
            self._timer.cancel()
        if self._renewing is not None:
            await asyncio.wait([self._renewing])
        await self.store.aclose()

    async def _claim_many(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        return await self.store.claim(claims)

    def _note(self, good: bool) -> None:  # noqa: FBT001 - a callback's one argument
        self.failures = 0 if good else self.failures + 1
        if not good and self._probe is None and not self._closed:
            self._probe = asyncio.get_running_loop().call_later(PROBE_SECONDS, self._ask_again)

    def _ask_again(self) -> None:
        """Notice that the store is back though no message comes, lest a worker stay unready for good."""
        self._probe = None
        if self.failures:
            answer = self._release.ask(PROBE)
            answer.add_done_callback(lambda asked: asked.cancelled() or asked.exception())

    def _schedule(self) -> None:
        if self._timer is None and self._renewing is None and self._held:
            due = min(held.due for held in self._held.values())
            self._timer = asyncio.get_running_loop().call_at(due, self._start_renewing)

    def _start_renewing(self) -> None:
        """Renew, in one call, what is due or nearly so; what was due first may have been dropped meanwhile."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        due = [held for held in self._held.values() if held.due <= now + held.period / 2]
        if due:
            self._renewing = asyncio.get_running_loop().create_task(self._renew(due, now))
        else:
            self._schedule()

    async def _renew(self, due: Sequence[_Held], now: float) -> None:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                kept = await self.store.renew([held.claim for held in due])
        except (StoreError, TimeoutError) as error:
            self._note(good=False)
            log.warning("leases of claims cannot be renewed for now: %s", error or "no answer")
            kept = [now < held.ends for held in due]
            for held in due:
                held.due = now + held.period
        else:
            self._note(good=True)
            for held in due:
                held.renewed(now)
        finally:
            self._renewing = None
        for held, still in zip(due, kept, strict=True):
            if not still and self._held.pop(held.claim.token, None) is not None:
                held.on_lost()
        self._schedule()


class _Held:
    """A claim that is held, until when, and when it is to be renewed."""

    __slots__ = ("claim", "due", "ends", "on_lost", "period")

    def __init__(self, claim: Claim, now: float, on_lost: Callable[[], None]) -> None:
        self.claim = claim
        self.on_lost = on_lost
        self.period = claim.lease_seconds / RENEWALS_PER_LEASE
        self.ends = now + claim.lease_seconds
        self.due = now + self.period

    def renewed(self, now: float) -> None:
        self.ends = now + self.claim.lease_seconds
        self.due = now + self.period
