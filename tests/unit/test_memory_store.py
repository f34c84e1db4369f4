"""The memory store in virtual time: hours pass, and no record is kept for longer than necessary."""

from __future__ import annotations

import asyncio

from smartpipe.idempotency.store import Claimed, Completed, InProgress
from smartpipe.idempotency.stores.memory import MemoryStore
from tests.support.places import claim_of
from tests.support.virtual_time import run_virtually

HOUR = 3_600.0


def test_the_memory_store_uses_the_clock_of_the_running_loop() -> None:
    async def main() -> None:
        store = MemoryStore()
        claim = claim_of("order-1", lease_seconds=60, ttl_seconds=HOUR)
        await store.claim([claim])

        await asyncio.sleep(45)
        assert await store.claim([claim_of("order-1")]) == [InProgress(15)]

        await store.complete([claim])
        await asyncio.sleep(HOUR - 1)
        assert await store.claim([claim_of("order-1")]) == [Completed()]

        await asyncio.sleep(1)
        assert await store.claim([claim_of("order-1")]) == [Claimed(1)]

    run_virtually(main())


def test_the_memory_store_deletes_expired_records() -> None:
    async def main() -> None:
        store = MemoryStore()
        most = 0
        for n in range(10_000):
            claim = claim_of(f"order-{n}", lease_seconds=60, ttl_seconds=HOUR)
            await store.claim([claim])
            await store.renew([claim])
            await store.complete([claim])
            if n % 3 == 0:
                await store.forget([claim.key])
                await store.claim([claim])
            await asyncio.sleep(60)
            most = max(most, len(store), len(store._expiries))

        assert most <= 2 * 61  # an hour of them, at one a minute; what was forgotten stands in the heap until its hour

        await asyncio.sleep(2 * HOUR)
        await store.claim([claim_of("last")])
        assert len(store) == len(store._expiries) == 1

    run_virtually(main())
