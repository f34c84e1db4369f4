"""The three services of the soak. Their effects are rows in the table of ``tests.chaos.service``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smartpipe import Topic
from tests.chaos.service import ChaosEvent, Form, book, mail, make_service

if TYPE_CHECKING:
    from smartpipe import Delivery


class SoakEvent(ChaosEvent):
    """Its handlers fail in the first *fails* deliveries."""

    fails: int = 0


class Paid(SoakEvent, topic=Topic("soak"), type="soak.paid", version="1.0"): ...


class PaidInOrder(
    SoakEvent, topic=Topic("soak", fifo=True), type="soak.paid_in_order", version="1.0", key="account"
): ...


class Failed(Exception):
    """A failure that the next attempt does not repeat."""


ledger = make_service("ledger", Paid, PaidInOrder)
mailer = make_service("mailer")
orders = make_service("orders", fifo=True)

FORM = Form({"ledger": ledger, "mailer": mailer, "orders": orders}, Paid, PaidInOrder, __name__)
HANDLED_BY = {Paid.__name__: ("ledger", "mailer"), PaidInOrder.__name__: ("orders",)}
"""The services that handle each event."""


def fail_first(event: SoakEvent, delivery: Delivery) -> None:
    if delivery.receive_count <= event.fails:
        raise Failed(f"delivery {delivery.receive_count} of event {event.number}")


@ledger.subscribe(Paid, idempotent=True)
async def book_payment(event: Paid, delivery: Delivery) -> None:
    fail_first(event, delivery)
    await book(event, delivery)


@mailer.subscribe(Paid)
def send_receipt(event: Paid, delivery: Delivery) -> None:
    """Insert a row from a thread. The handler is not idempotent."""
    fail_first(event, delivery)
    asyncio.run(mail(event, delivery))


@orders.subscribe(PaidInOrder, idempotent=True)
async def book_in_order(event: PaidInOrder, delivery: Delivery) -> None:
    fail_first(event, delivery)
    await book(event, delivery)
