"""Events that tests publish and handle."""

from __future__ import annotations

from uuid import UUID

from smartpipe import Event, Topic

users = Topic("users")
orders = Topic("orders")
ledger = Topic("ledger", fifo=True)
small = Topic("small", limit_bytes=2_000)


class UserSignedUp(Event, topic=users, type="member.signed_up", version="1.1"):
    """A person finished the sign-up form."""

    user_id: UUID
    name: str


class UserLeft(Event, topic=users, type="user.left", version="1.0"):
    name: str


class OrderPlaced(Event, topic=orders, type="order.placed", version="2.3", key="order_id"):
    order_id: str
    cents: int = 0


class Paid(Event, topic=ledger, type="invoice.paid", version="1.0", key="account"):
    account: str | None
    number: int = 0


class Clicked(Event, topic=users, type="clicked", version="1.0", tenant="shop"):
    shop: str | None
    number: int = 0


class Note(Event, topic=small, type="note", version="1.0"):
    text: str


ADA = UserSignedUp(user_id=UUID(int=1), name="Ada")
