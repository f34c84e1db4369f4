"""A service with one queue, for tests of faults between it and its broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

import boto3

from smartpipe import Delivery, Queue, Reject, Service
from smartpipe.envelope import encode, wrap
from smartpipe.testing import provision
from tests.support.events import OrderPlaced
from tests.support.queues import Queues
from tests.support.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:
    from tests.support.proxy import FaultProxy

LEASE_SECONDS = 30
"""Longer than any test."""


class Shop:
    """Its handler waits while ``release`` is clear, and rejects the order ``reject``. ``queues`` bypasses the proxy."""

    def __init__(self, proxy: FaultProxy, lease_seconds: int) -> None:
        self.service = Service("shop", queue=Queue("shop", visibility_timeout_seconds=lease_seconds, direct=True))
        self.queues = Queues(boto3.client("sqs", endpoint_url=proxy._upstream))
        self.seen: list[str] = []
        self.deliveries: list[Delivery] = []
        self.release = asyncio.Event()
        self.release.set()

        @self.service.subscribe(OrderPlaced)
        async def handle(event: OrderPlaced, delivery: Delivery) -> None:
            self.seen.append(event.order_id)
            self.deliveries.append(delivery)
            if event.order_id == "reject":
                raise Reject("the order requests it")
            await self.release.wait()

    @classmethod
    async def provisioned(cls, proxy: FaultProxy, *, lease_seconds: int = LEASE_SECONDS) -> Self:
        shop = cls(proxy, lease_seconds)
        await provision(shop.service)
        return shop

    async def put(self, *order_ids: str) -> None:
        bodies = [encode(wrap(OrderPlaced(order_id=order_id), source="test")) for order_id in order_ids]
        await asyncio.to_thread(self.queues.send, "shop", *bodies)

    async def emptied(self) -> None:
        """Wait until the queue has no message, neither visible nor in flight."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            depth = await asyncio.to_thread(self.queues.depth, "shop")
            while depth != (0, 0):
                await asyncio.sleep(0.05)
                depth = await asyncio.to_thread(self.queues.depth, "shop")
