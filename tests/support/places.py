"""Places for claims. A test can open several stores on one place."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3

from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.store import Claim, Claimed
from smartpipe.topology.table_and_bucket import create_table_arguments, update_time_to_live_arguments

if TYPE_CHECKING:
    from smartpipe.idempotency.store import Store

DEADLINE_SECONDS = 45.0
LONG = 600.0
"""A lease or a time to live that is longer than any test."""


class Place:
    """A place for claims, under a unique prefix."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._prefix = f"t{uuid4().hex[:8]}-"
        self.stores: list[Store] = []

    async def open(self) -> Store:
        """Open a new store here. The memory store is always the same object."""
        if self.url.startswith("memory:") and self.stores:
            return self.stores[0]
        store = open_store(self.url, prefix=self._prefix)
        self.stores.append(store)
        await store.open()
        return store

    async def aclose(self) -> None:
        for store in self.stores:
            await store.aclose()


def make_table() -> str:
    """Create a table for claims in the environment's DynamoDB, and return the URL of its store."""
    table = f"claims-{uuid4().hex[:8]}"
    client: Any = boto3.client("dynamodb")
    client.create_table(**create_table_arguments(table))
    client.update_time_to_live(**update_time_to_live_arguments(table))
    client.close()
    return f"dynamodb://{table}"


def claim_of(key: str, *, lease_seconds: float = LONG, ttl_seconds: float = LONG) -> Claim:
    """Return a claim with a new token."""
    return Claim(key, uuid4().hex, lease_seconds, ttl_seconds)


async def until_claimed(store: Store, claim: Claim) -> Claimed:
    """Repeat the claim until it is granted."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        [outcome] = await store.claim([claim])
        if isinstance(outcome, Claimed):
            return outcome
        assert time.monotonic() < deadline, f"still {outcome} after {DEADLINE_SECONDS} s"
        await asyncio.sleep(0.02)
