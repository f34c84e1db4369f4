"""An endpoint that stores an order and publishes an event about it in one transaction."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, status
from httpx import ASGITransport, AsyncClient
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from smartpipe import Event, Service, Topic
from smartpipe.outbox import Outbox, Relay
from smartpipe.testing import MemoryBroker

URL = os.environ["SMARTPIPE_OUTBOX_URL"].replace("postgresql://", "postgresql+asyncpg://")
engine = create_async_engine(URL)
sessions = async_sessionmaker(engine, expire_on_commit=False)
outbox = Outbox("shop")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str
    cents: int


async def begin() -> AsyncIterator[AsyncSession]:
    async with sessions.begin() as session:
        yield session


# scope="function": the transaction commits before the client gets its response, so a failed commit is an error 500.
Transaction = Annotated[AsyncSession, Depends(begin, scope="function")]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/orders/{order_id}", status_code=status.HTTP_201_CREATED)
async def place_order(order_id: str, cents: int, session: Transaction) -> dict[str, str]:
    session.add(Order(order_id=order_id, cents=cents))
    event_id = await outbox.publish(OrderPlaced(order_id=order_id, cents=cents), connection=session)
    try:
        await session.flush()
    except IntegrityError as error:
        raise HTTPException(status.HTTP_409_CONFLICT, "this order exists") from error  # rolls back: no event
    return {"event_id": event_id}


service = Service("billing")


@service.subscribe(OrderPlaced)
async def bill(event: OrderPlaced) -> None:
    print(f"billing {event.order_id}: {event.cents} cents")


async def main() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)  # Alembic, in a real service
    async with (
        MemoryBroker(service, virtual=False) as broker,
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client,
    ):
        for cents in (4200, 9900):
            response = await client.post(f"/orders/1?cents={cents}")
            print(response.status_code)
        await Relay(URL, broker.transport).drain()  # as `smartpipe relay` does in its own process
        await broker.drain()


if __name__ == "__main__":
    asyncio.run(main())
