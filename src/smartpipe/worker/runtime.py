"""The resources of a process that runs a service, opened in one order and closed in the reverse order.

A worker, an AWS Lambda function and the testing kit all open them here.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.batching.resend import retry_until_stopped
from smartpipe.consumer.processor import Resources
from smartpipe.consumer.threads import Threads, use_loop_executor
from smartpipe.errors import PublishError
from smartpipe.idempotency.claims import open_claims
from smartpipe.publisher.publisher import Publisher
from smartpipe.telemetry.spans import find_tracing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from smartpipe.consumer.capacity import Capacity
    from smartpipe.consumer.isolation import Isolation
    from smartpipe.idempotency.claims import Claims
    from smartpipe.idempotency.store import Store
    from smartpipe.service import Service
    from smartpipe.settings import ConcurrencySettings
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.worker")


class Shared(NamedTuple):
    """Resources that several services of one process share. Their owner closes them."""

    threads: Threads
    claims: Claims | None


class Bounds(NamedTuple):
    """Limits for opening and closing, because a worker has to stop in time.

    Args:
        stopping: Opening the idempotency store is retried until this is set. After that, the lifespan is not opened.
        lifespan: Returns a context manager that limits the time of the lifespan, including opening and closing.
        close_seconds: Called when the publisher is closed; returns how long it may continue to publish.
    """

    stopping: asyncio.Event
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    close_seconds: Callable[[], float]


class Runtime:
    """The open resources of a service.

    ``state`` is the value that the lifespan yielded. ``unpublished`` counts events that could not be published before
    the publisher had to close.
    """

    def __init__(
        self, publisher: Publisher, threads: Threads, settings: ConcurrencySettings, claims: Claims | None = None
    ) -> None:
        self.publisher = publisher
        self.threads = threads
        self.claims = claims
        self._settings = settings
        self.state: Any = None
        self.unpublished = 0

    def resources(self, isolation: Isolation | None = None) -> Resources:
        """Return the resources for a consumer. Call it when the lifespan is open, which may set up OpenTelemetry."""
        publisher, settings = self.publisher, self._settings
        return Resources(
            publisher,
            self.threads,
            publisher.payloads,
            self.state,
            self.claims,
            isolation,
            settings.metrics,
            find_tracing(child=settings.trace_parent == "child"),
        )


@asynccontextmanager
async def open_runtime(
    service: Service,
    transport: Transport,
    settings: ConcurrencySettings,
    *,
    capacity: Capacity | None = None,
    shared: Shared | None = None,
    store: Store | None = None,
    bounds: Bounds | None = None,
) -> AsyncIterator[Runtime]:
    """Open threads, publisher, claims and the lifespan, in this order. *transport* stays open at the end.

    Args:
        capacity: The capacity of the process; by default one for the slots of *service*.
        shared: Threads and claims to use, instead of new ones.
        store: The store in which idempotent handlers claim; by default the one of ``SMARTPIPE_IDEMPOTENCY_URL``.
        bounds: Limits for opening and closing. With them, events that cannot be published at the end are logged and
            counted; without, they raise PublishError.

    Raises:
        ConfigError: Idempotent handlers have no store, or a handler needs a value that the lifespan does not provide.
        StoreError: The store cannot be reached; with *bounds* this is retried.
    """
    async with AsyncExitStack() as stack:
        threads = shared.threads if shared else Threads(service.slots(settings.concurrency), capacity)
        if shared is None:
            stack.callback(threads.close)
            use_loop_executor(threads.capacity)
        publisher = Publisher(service.name, transport=transport, metrics=settings.metrics)
        runtime = Runtime(publisher, threads, settings, shared.claims if shared else None)
        stack.push_async_callback(_close_publisher, runtime, bounds)

        async def open_own_claims() -> None:
            runtime.claims = await open_claims(service, settings.idempotency_url, store)
            if runtime.claims is not None:
                stack.push_async_callback(runtime.claims.aclose)

        if shared is None and bounds is None:
            await open_own_claims()
        elif shared is None and bounds is not None:
            await retry_until_stopped("open the idempotency store", open_own_claims, stopping=bounds.stopping)
        if bounds is not None:
            await stack.enter_async_context(bounds.lifespan())
        if bounds is None or not bounds.stopping.is_set():
            runtime.state = await stack.enter_async_context(service.open())
        yield runtime


async def _close_publisher(runtime: Runtime, bounds: Bounds | None) -> None:
    if bounds is None:
        await runtime.publisher.aclose()
        return
    try:
        await runtime.publisher.aclose(timeout_seconds=max(0.0, bounds.close_seconds()))
    except PublishError as error:
        log.error("%s", error)  # noqa: TRY400 - its text lists every event
        runtime.unpublished = len(error.failures)
