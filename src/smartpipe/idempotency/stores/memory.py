"""Claims in this process's memory: for tests, development, and effects that need not outlive a process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Literal

from smartpipe.idempotency.store import Claimed, Completed, InProgress, known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.idempotency.store import Claim, ClaimOutcome, Known


@dataclass(slots=True)
class _Entry:
    state: Literal["held", "completed", "released"]
    token: str
    attempt: int
    lease_until: float
    expires_at: float


class MemoryStore:
    """One store for one process, on the running loop's clock; its memory ends with it.

    What has expired is swept at every claim, so it holds no more than what was claimed within lease and memory.
    """

    def __init__(self, url: str = "memory://", *, prefix: str = "") -> None:
        del url, prefix  # nobody shares it
        self._entries: dict[str, _Entry] = {}
        self._expiries: list[tuple[float, int, str, _Entry]] = []
        self._numbers = count()

    async def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim what is unknown, released, or whose lease has run out."""
        now = asyncio.get_running_loop().time()
        self._sweep(now)
        return [self._claim(claim, now) for claim in claims]

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Let each lease last ``lease_seconds`` from now."""
        now = asyncio.get_running_loop().time()
        outcomes = []
        for claim in claims:
            entry = self._of_holder(claim, now)
            if entry is not None and entry.state == "held":
                _hold(entry, claim, now)
            outcomes.append(entry is not None and entry.state != "released")
        return outcomes

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Say that each effect has happened."""
        return self._end(claims, "completed")

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Give back what did not succeed."""
        return self._end(claims, "released")

    async def look(self, keys: Sequence[str]) -> list[Known]:
        """Say what is known of each key."""
        now = asyncio.get_running_loop().time()
        found = [self._entries.get(key) for key in keys]
        return [
            known(entry.state, entry.lease_until - now) if entry is not None and entry.expires_at > now else None
            for entry in found
        ]

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove all memory of these keys."""
        for key in keys:
            self._entries.pop(key, None)

    async def aclose(self) -> None:
        """Do nothing: what was completed is remembered by this store still."""

    def __len__(self) -> int:
        """Return how many keys it holds."""
        return len(self._entries)

    def _claim(self, claim: Claim, now: float) -> ClaimOutcome:
        entry = self._entries.get(claim.key)
        if entry is None or entry.expires_at <= now:
            entry = _Entry("held", claim.token, 1, 0, 0)
            _hold(entry, claim, now)
            self._entries[claim.key] = entry
            heappush(self._expiries, (entry.expires_at, next(self._numbers), claim.key, entry))
            return Claimed(1)
        if entry.state == "completed":
            return Completed()
        if entry.state == "held" and entry.lease_until > now:
            # The same token asks again: its answer was lost.
            return Claimed(entry.attempt) if entry.token == claim.token else InProgress(entry.lease_until - now)
        entry.state, entry.token, entry.attempt = "held", claim.token, entry.attempt + 1
        _hold(entry, claim, now)
        return Claimed(entry.attempt)

    def _end(self, claims: Sequence[Claim], state: Literal["completed", "released"]) -> list[bool]:
        now = asyncio.get_running_loop().time()
        outcomes = []
        for claim in claims:
            entry = self._of_holder(claim, now)
            if entry is not None and entry.state == "held":
                entry.state, entry.expires_at = state, now + claim.ttl_seconds
            outcomes.append(entry is not None and entry.state == state)
        return outcomes

    def _of_holder(self, claim: Claim, now: float) -> _Entry | None:
        entry = self._entries.get(claim.key)
        return entry if entry is not None and entry.token == claim.token and entry.expires_at > now else None

    def _sweep(self, now: float) -> None:
        """Drop what has expired. Each entry stands once in the heap, at the expiry it had when it was put there."""
        while self._expiries and self._expiries[0][0] <= now:
            _, number, key, entry = heappop(self._expiries)
            if self._entries.get(key) is not entry:
                continue  # forgotten, or replaced
            if entry.expires_at > now:
                heappush(self._expiries, (entry.expires_at, number, key, entry))
            else:
                del self._entries[key]


def _hold(entry: _Entry, claim: Claim, now: float) -> None:
    entry.lease_until = now + claim.lease_seconds
    entry.expires_at = entry.lease_until + claim.ttl_seconds
