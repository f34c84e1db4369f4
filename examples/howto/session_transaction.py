"""The same with SQLAlchemy: objects of a session, the completion and the event are committed in one transaction."""

import asyncio
import os

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from smartpipe import Delivery, Event, Queue, Service, Topic
from smartpipe.envelope import encode, wrap
from smartpipe.outbox import Outbox, Relay
from smartpipe.testing import MemoryBroker

orders = Topic("orders")


class OrderPlaced(Event, topic=orders, type="shop.order.placed", version="1.0"):
    order_id: str
    cents: int


class OrderCharged(Event, topic=orders, type="shop.order.charged", version="1.0"):
    order_id: str


class Base(DeclarativeBase): ...


class Charge(Base):
    __tablename__ = "charges"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


url = os.environ.get("SMARTPIPE_IDEMPOTENCY_URL", "postgresql://localhost/shop")
engine = create_async_engine(url.replace("postgresql", "postgresql+asyncpg", 1))
sessions = async_sessionmaker(engine)
service = Service("billing", queue=Queue("billing", visibility_timeout_seconds=10), publishes=[OrderCharged])
outbox = Outbox("billing")


@service.subscribe(OrderPlaced, idempotent=True)
async def charge(event: OrderPlaced, delivery: Delivery) -> None:
    async with delivery.transaction(sessions) as session:
        session.add(Charge(order_id=event.order_id, cents=event.cents))
        await outbox.publish(OrderCharged(order_id=event.order_id), connection=session)


async def main() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    copy = encode(wrap(OrderPlaced(order_id="1", cents=4200), source="shop"))
    async with MemoryBroker(service, virtual=False, idempotency_url=url) as broker:
        for _ in range(3):
            await broker.send("billing", copy)
        await broker.drain()
        await Relay(url, broker.transport).drain()

        print(len(broker.handled(OrderPlaced)), "copies of OrderPlaced")
        async with sessions() as session:
            print(await session.scalar(select(func.count()).select_from(Charge)), "charge")
        print(len(broker.published(OrderCharged)), "OrderCharged")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
