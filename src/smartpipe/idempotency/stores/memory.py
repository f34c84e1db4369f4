"""Claims in the memory of this process: for tests, for development, and where a restart may forget them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Literal

from smartpipe.idempotency.store import Claimed, Completed, InProgress, claim_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.idempotency.store import Claim, ClaimOutcome, ClaimState


@dataclass(slots=True)
class _Entry:
    state: Literal["held", "completed", "released"]
    token: str
    attempt: int
    lease_until: float
    expires_at: float


class MemoryStore:
    """A store for one process, on the clock of the running event loop. It does not outlive the process.

    Each claim deletes the expired records, so the store contains only records within their lease or time to live.
    """

    def __init__(self, url: str = "memory://", *, prefix: str = "") -> None:
        del url, prefix  # the store is not shared
        self._entries: dict[str, _Entry] = {}
        self._expiries: list[tuple[float, int, str, _Entry]] = []
        self._numbers = count()

    async def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim the keys that are unknown or released, or whose lease has expired."""
        now = asyncio.get_running_loop().time()
        self._sweep(now)
        return [self._claim(claim, now) for claim in claims]

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Renew each lease for ``lease_seconds`` from now."""
        now = asyncio.get_running_loop().time()
        outcomes = []
        for claim in claims:
            entry = self._find_own(claim, now)
            if entry is not None and entry.state == "held":
                _set_lease(entry, claim, now)
            outcomes.append(entry is not None and entry.state != "released")
        return outcomes

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Mark each claim as completed."""
        return self._finish(claims, "completed")

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Release each claim."""
        return self._finish(claims, "released")

    async def read(self, keys: Sequence[str]) -> list[ClaimState]:
        """Return the state of each key."""
        now = asyncio.get_running_loop().time()
        found = [self._entries.get(key) for key in keys]
        return [
            claim_state(entry.state, entry.lease_until - now) if entry is not None and entry.expires_at > now else None
            for entry in found
        ]

    async def forget(self, keys: Sequence[str]) -> None:
        """Delete the records of these keys."""
        for key in keys:
            self._entries.pop(key, None)

    async def aclose(self) -> None:
        """Do nothing: the store can be used again, and keeps its records."""

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._entries)

    def _claim(self, claim: Claim, now: float) -> ClaimOutcome:
        entry = self._entries.get(claim.key)
        if entry is None or entry.expires_at <= now:
            entry = _Entry("held", claim.token, 1, 0, 0)
            _set_lease(entry, claim, now)
            self._entries[claim.key] = entry
            heappush(self._expiries, (entry.expires_at, next(self._numbers), claim.key, entry))
            return Claimed(1)
        if entry.state == "completed":
            return Completed()
        if entry.state == "held" and entry.lease_until > now:
            # The same token claims again if its first response was lost.
            return Claimed(entry.attempt) if entry.token == claim.token else InProgress(entry.lease_until - now)
        entry.state, entry.token, entry.attempt = "held", claim.token, entry.attempt + 1
        _set_lease(entry, claim, now)
        return Claimed(entry.attempt)

    def _finish(self, claims: Sequence[Claim], state: Literal["completed", "released"]) -> list[bool]:
        now = asyncio.get_running_loop().time()
        outcomes = []
        for claim in claims:
            entry = self._find_own(claim, now)
            if entry is not None and entry.state == "held":
                entry.state, entry.expires_at = state, now + claim.ttl_seconds
            outcomes.append(entry is not None and entry.state == state)
        return outcomes

    def _find_own(self, claim: Claim, now: float) -> _Entry | None:
        """Return the entry of the key, if the token of *claim* was the last to hold it."""
        entry = self._entries.get(claim.key)
        return entry if entry is not None and entry.token == claim.token and entry.expires_at > now else None

    def _sweep(self, now: float) -> None:
        """Delete expired entries. Each entry is in the heap once, at the expiry that it had when it was pushed."""
        while self._expiries and self._expiries[0][0] <= now:
            _, number, key, entry = heappop(self._expiries)
            if self._entries.get(key) is not entry:
                continue  # deleted or replaced since
            if entry.expires_at > now:
                heappush(self._expiries, (entry.expires_at, number, key, entry))
            else:
                del self._entries[key]


def _set_lease(entry: _Entry, claim: Claim, now: float) -> None:
    entry.lease_until = now + claim.lease_seconds
    entry.expires_at = entry.lease_until + claim.ttl_seconds
