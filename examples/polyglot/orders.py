"""The event, and the service that handles it: the Python half of this example."""

from decimal import Decimal
from enum import Enum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, Field

from smartpipe import Event, Service, Topic


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Item(BaseModel):
    sku: str = Field(description="The article", examples=["SKU-1"])
    quantity: int = Field(default=1, ge=1, le=1_000)


class Card(BaseModel):
    kind: Literal["card"] = "card"
    last_digits: str = Field(pattern="^[0-9]{4}$")


class Invoice(BaseModel):
    kind: Literal["invoice"] = "invoice"
    days: int = Field(ge=1, le=90)


class OrderPlaced(Event, topic=Topic("polyglot-orders"), type="polyglot.order_placed", version="1.0", key="order_id"):
    """A customer has placed an order."""

    order_id: UUID
    placed_at: AwareDatetime
    total: Decimal = Field(ge=0, description="In the currency of the shop")
    items: list[Item] = Field(min_length=1)
    payment: Annotated[Card | Invoice, Field(discriminator="kind")]
    size: Size = Size.SMALL
    note: str | None = Field(default=None, max_length=200)


service = Service("polyglot-billing")


@service.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None:
    print(f"charged {event.total} for {event.items[0].sku} by {event.payment.kind}", flush=True)
