"""A handler whose log lines carry fields: its own, those of its delivery, and the tenant in every line."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextvars import ContextVar

from smartpipe import Event, Service, Topic
from smartpipe.cli.logs import configure
from smartpipe.testing import MemoryBroker

log = logging.getLogger("shop.billing")
tenant: ContextVar[str] = ContextVar("tenant")


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str
    tenant: str


def add_tenant(record: logging.LogRecord) -> bool:
    record.tenant = tenant.get(None)
    return True


async def set_tenant(delivery, call_next) -> None:
    token = tenant.set(delivery.event.tenant)
    try:
        await call_next(delivery)
    finally:
        tenant.reset(token)


async def lifespan() -> AsyncIterator[None]:
    for handler in logging.getLogger().handlers:  # the worker has configured logging by now
        handler.addFilter(add_tenant)
    yield


service = Service("billing", lifespan=lifespan, middleware=[set_tenant])


@service.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None:
    log.info("Charging the card", extra={"order_id": event.order_id})
    write_receipt()


def write_receipt() -> None:
    log.info("Receipt written")  # knows nothing of the event


async def main() -> None:
    configure("info", "json")  # as `smartpipe worker` does with SMARTPIPE_LOG_FORMAT=json
    async with MemoryBroker(service) as broker:
        await broker.publish(OrderPlaced(order_id="1", tenant="acme"))
        await broker.drain()


if __name__ == "__main__":
    asyncio.run(main())
