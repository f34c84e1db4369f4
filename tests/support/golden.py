"""Events and services whose example messages tests make and handle."""

from __future__ import annotations

from datetime import date, datetime  # noqa: TC003 - Pydantic reads the annotations
from decimal import Decimal  # noqa: TC003
from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, EmailStr, Field, NaiveDatetime, field_validator

from smartpipe import Event, Idempotency, Queue, Service, Topic

shop = Topic("golden-shop")


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Card(BaseModel):
    kind: Literal["card"] = "card"
    number: Annotated[str, Field(pattern=r"^\d+$", min_length=12, max_length=19)]
    network: Literal["visa", "amex", "diners"]


class Cash(BaseModel):
    kind: Literal["cash"] = "cash"
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]


class Category(BaseModel):
    title: str
    parent: Category | None = None
    children: list[Category] = []


class Sold(Event, topic=shop, type="golden.sold", version="1.2", key="order_id"):
    """A customer has bought something."""

    order_id: str
    email: EmailStr
    at: datetime
    day: date
    total: Decimal
    payment: Annotated[Card | Cash, Field(discriminator="kind")]
    earlier: list[Annotated[Card | Cash, Field(discriminator="kind")]] = []  # noqa: RUF012 - Pydantic copies it
    category: Category
    size: Size | None = None
    quantity: Annotated[int, Field(gt=0, le=99, multiple_of=3)] = 3
    weight: Annotated[float, Field(ge=0, lt=30)] = 0.5
    gift: bool = False
    tags: set[str] = set()  # noqa: RUF012 - Pydantic copies it
    pieces: dict[int, str] = {}  # noqa: RUF012 - Pydantic copies it
    coupon: Annotated[str, Field(examples=["XMAS", "SUMMER"], description="From a campaign")] | None = None
    iban: str = "CH9300762011623852957"

    @field_validator("iban")
    @classmethod
    def _refuse_others(cls, iban: str) -> str:
        if not iban.startswith("CH"):
            raise ValueError("it is not Swiss")
        return iban


class Secretive(Event, topic=shop, type="golden.secretive", version="1.0"):
    code: str

    @field_validator("code")
    @classmethod
    def _refuse_almost_all(cls, code: str) -> str:
        if code != "xyzzy-plugh":
            raise ValueError("it is not the code")
        return code


class Collected(Event, topic=shop, type="golden.collected", version="1.0"):
    at: NaiveDatetime


class Returned(Event, topic=shop, type="golden.returned", version="1.0"):
    order_id: str
    reason: Literal["broken", "late"]


class Unwritten(Event, topic=shop, type="golden.unwritten", version="3.1"):
    number: int


handled: list[Event] = []
fair = Service("golden-fair")
picky = Service("golden-picky")
forgetful = Service("golden-forgetful")


@fair.subscribe(Sold, idempotent=Idempotency(key="order_id"))
async def accept_sold(event: Sold) -> None:
    handled.append(event)


@fair.subscribe(Returned, queue=Queue("golden-returns"))
async def accept_returned(event: Returned) -> None:
    handled.append(event)


@picky.subscribe(Sold)
async def refuse_cash(event: Sold) -> None:
    if event.payment.kind == "cash":
        raise LookupError(f"no price list in {event.payment.currency}")


@forgetful.subscribe(Unwritten)
async def ignore_unwritten(event: Unwritten) -> None:
    """Do nothing."""


@forgetful.subscribe(Returned)
async def ignore_returned(event: Returned) -> None:
    """Do nothing."""
