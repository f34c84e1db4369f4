"""Services for dashboards.py. Their handlers become slow and fail at fixed times after SCENARIO_START."""

from __future__ import annotations

import asyncio
import os
import random
import time

from smartpipe import Delivery, Event, Queue, Reject, RetryPolicy, Service, Topic

START = float(os.environ.get("SCENARIO_START", "0"))
SLOW, FAILING, BURST, POISON = (60, 120), (120, 180), (220, 225), (270, 300)
"""When, in seconds: the bank is slow; a third of its calls fail; many orders come at once; some cannot be billed."""
FAILURES = 0.35


def is_within(phase: tuple[int, int]) -> bool:
    return phase[0] <= time.time() - START < phase[1]


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    cents: int


class OrderBilled(Event, topic=Topic("bills"), type="order.billed", version="1.0"):
    cents: int


shop = Service("shop", publishes=[OrderPlaced])
billing = Service(
    "billing", queue=Queue("billing"), retry=RetryPolicy(attempts=3, base_seconds=2), publishes=[OrderBilled]
)
mailer = Service("mailer", queue=Queue("mailer"))


@billing.subscribe(OrderPlaced)
async def charge(event: OrderPlaced, delivery: Delivery) -> None:
    if event.cents < 0:
        raise Reject("the amount is negative")
    await asyncio.sleep(random.lognormvariate(-3.5, 0.5) + (0.4 if is_within(SLOW) else 0))
    if is_within(FAILING) and random.random() < FAILURES:
        raise ConnectionError("the bank does not answer")
    await delivery.publish(OrderBilled(cents=event.cents))


@mailer.subscribe(OrderBilled)
async def send_receipt(event: OrderBilled) -> None:
    await asyncio.sleep(random.lognormvariate(-4.5, 0.7))
