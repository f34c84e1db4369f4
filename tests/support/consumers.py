"""Create and run a consumer on a fake transport."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from smartpipe import Publisher, Queue, RetryPolicy, Service
from smartpipe.consumer.consumer import Consumer
from smartpipe.consumer.processor import Resources
from smartpipe.consumer.threads import Threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smartpipe.consumer.decide import UnknownEvents
    from smartpipe.transport import Transport
    from tests.support.fakes import FakeTransport

VISIBILITY_SECONDS = 30
POLL_SECONDS = 20


def make_service(
    *,
    retry: RetryPolicy | None = None,
    timeout_seconds: float | None = 300,
    unknown_events: UnknownEvents = "dead-letter",
) -> Service:
    return Service(
        "mailer",
        queue=Queue("mailer", visibility_timeout_seconds=VISIBILITY_SECONDS),
        retry=retry,
        timeout_seconds=timeout_seconds,
        unknown_events=unknown_events,
    )


def make_consumer(
    service: Service,
    transport: Transport,
    *,
    concurrency: int = 10,
    poll_seconds: int = POLL_SECONDS,
    prefetch: bool = True,
    **shared: Any,
) -> Consumer:
    """Create a consumer of the service's queue. *shared* are further fields of its Resources."""
    publisher = Publisher(service.name, transport=transport)
    return Consumer(
        service,
        service.queue,
        transport,
        resources=Resources(publisher, Threads(concurrency), publisher.payloads, **shared),
        concurrency=concurrency,
        poll_seconds=poll_seconds,
        prefetch=prefetch,
    )


@asynccontextmanager
async def consuming(
    service: Service,
    transport: FakeTransport,
    *,
    concurrency: int = 10,
    poll_seconds: int = POLL_SECONDS,
    prefetch: bool = True,
) -> AsyncIterator[Consumer]:
    """Start a consumer, and drain it at the end without a deadline."""
    consumer = make_consumer(service, transport, concurrency=concurrency, poll_seconds=poll_seconds, prefetch=prefetch)
    consumer.start()
    yield consumer
    await drain(consumer)


async def drain(consumer: Consumer, *, budget_seconds: float = 100_000, hard: asyncio.Event | None = None) -> None:
    deadline = asyncio.get_running_loop().time() + budget_seconds
    await consumer.drain(handlers_until=deadline, flush_until=deadline + 4, hard=hard or asyncio.Event())
