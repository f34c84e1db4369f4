"""A handler whose log lines carry fields of their own, and the ids of the event in every line."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextvars import ContextVar

from smartpipe import Event, Service, Topic
from smartpipe.cli.logs import configure
from smartpipe.testing import MemoryBroker

log = logging.getLogger("shop.billing")
context: ContextVar[dict[str, object]] = ContextVar("context")


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str


def add_context(record: logging.LogRecord) -> bool:
    record.fields = {**context.get({}), **getattr(record, "fields", {})}
    return True


async def set_context(delivery, call_next) -> None:
    token = context.set({**delivery.log_fields, "trace_id": delivery.trace_id})
    try:
        await call_next(delivery)
    finally:
        context.reset(token)


async def lifespan() -> AsyncIterator[None]:
    for handler in logging.getLogger().handlers:  # the worker has configured logging by now
        handler.addFilter(add_context)
    yield


service = Service("billing", lifespan=lifespan, middleware=[set_context])


@service.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None:
    log.info("Charging the card", extra={"fields": {"order_id": event.order_id}})
    write_receipt()


def write_receipt() -> None:
    log.info("Receipt written")  # knows nothing of the event


async def main() -> None:
    configure("info", "json")  # as `smartpipe worker` does with SMARTPIPE_LOG_FORMAT=json
    async with MemoryBroker(service) as broker:
        await broker.publish(OrderPlaced(order_id="1"))
        await broker.drain()


if __name__ == "__main__":
    asyncio.run(main())
