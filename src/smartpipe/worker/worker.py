"""The worker: one process that runs a service's consumers from start to drained."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from smartpipe.batching.resend import retry_until_stopped
from smartpipe.consumer.capacity import Capacity
from smartpipe.consumer.consumer import Consumer
from smartpipe.consumer.decide import describe_error
from smartpipe.consumer.isolation import Isolation
from smartpipe.consumer.processor import Resources
from smartpipe.consumer.threads import Threads, use_loop_executor
from smartpipe.errors import (
    ConfigError,
    PublishError,
    SmartpipeError,
    TopologyError,
    TransportError,
)
from smartpipe.idempotency.claims import Claims, claims_of
from smartpipe.publisher.publisher import Publisher
from smartpipe.transport import counters_of
from smartpipe.worker.health import HealthServer, WorkerHealth

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from smartpipe.counters import TransportCounters
    from smartpipe.idempotency.store import Store
    from smartpipe.service import Service
    from smartpipe.settings import WorkerSettings
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.worker")

MIN_CLOSE_SECONDS = 1.0


class Worker:
    """Runs one service.

    Args:
        verify: Raises TopologyError when what the service needs does not exist; by default nothing
            is checked.
        socket: A Unix socket to serve health on, instead of the settings' port.
        store: Where idempotent handlers claim; by default what ``SMARTPIPE_IDEMPOTENCY_URL`` names.

    Raises:
        ConfigError: The service has no handlers.
    """

    def __init__(
        self,
        service: Service,
        transport: Transport,
        settings: WorkerSettings,
        *,
        verify: Callable[[], Awaitable[None]] | None = None,
        socket: Path | None = None,
        store: Store | None = None,
    ) -> None:
        if not service.handlers:
            msg = f"service {service.name!r} has no handlers: decorate functions with @service.subscribe(...)"
            raise ConfigError(msg)
        self._service = service
        self._transport = transport
        self._settings = settings
        self._verify = verify
        self._stopping = asyncio.Event()
        self._hard = asyncio.Event()
        self._verified = False
        self._stopped_at = 0.0
        self._limit: asyncio.Timeout | None = None
        self._failed = False
        self._store = store
        self._claims: Claims | None = None
        self.capacity = Capacity(service.slots(settings.concurrency))
        self.consumers: list[Consumer] = []
        self.health = HealthServer(WorkerHealth(self), settings.host, settings.port, socket=socket)

    @property
    def name(self) -> str:
        """The service's."""
        return self._service.name

    @property
    def ready(self) -> bool:
        """Whether it is verified, polls successfully and does not drain."""
        return (
            self._verified
            and not self._stopping.is_set()
            and self.capacity.ready
            and not any(consumer.poller.failing for consumer in self.consumers)
            and not (self._claims is not None and self._claims.failures)
        )

    @property
    def alive(self) -> bool:
        """Whether the process makes progress: each queue was polled successfully within the limit, or is busy.

        It does not while too many handler calls do not end, or a resource keeps running out.
        """
        limit = self._settings.liveness_seconds
        return self.capacity.alive and all(
            consumer.poller.seconds_since_success() < limit for consumer in self.consumers
        )

    @property
    def transport_counts(self) -> TransportCounters | None:
        """What the transport counted, if it is one that counts."""
        return counters_of(self._transport)

    def stop(self, reason: str = "stop()") -> None:
        """Begin to drain. A second call does nothing."""
        if not self._stopping.is_set():
            polls = (c.poller.seconds_until_closed(self._settings.poll_seconds) for c in self.consumers)
            log.info(
                "draining: %s; the open poll ends within %.0f s, the whole within %g s; a second signal stops hard",
                reason,
                max(polls, default=0.0),
                self._settings.drain_seconds,
            )
            self._stopping.set()
            self._stopped_at = asyncio.get_running_loop().time()
            self._end_within(self._settings.drain_seconds + MIN_CLOSE_SECONDS)

    def pause(self, queue: str | None = None) -> None:
        """Stop polling this queue, or all; what has been received is handled. Twice is once.

        Raises:
            ConfigError: The worker does not run, or has no such queue.
        """
        for consumer in self._consumers_of(queue):
            consumer.poller.pause()
            log.info("queue %s is paused", consumer.queue.name)

    def resume(self, queue: str | None = None) -> None:
        """Poll this queue, or all, again.

        Raises:
            ConfigError: The worker does not run, or has no such queue.
        """
        for consumer in self._consumers_of(queue):
            consumer.poller.resume()
            log.info("queue %s is polled again", consumer.queue.name)

    def _consumers_of(self, queue: str | None) -> list[Consumer]:
        found = [consumer for consumer in self.consumers if queue in (None, consumer.queue.name)]
        if not found:
            names = ", ".join(consumer.queue.name for consumer in self.consumers) or "none, it does not run"
            msg = f"queue {queue!r} is none of those that the worker polls: {names}"
            raise ConfigError(msg)
        return found

    def kill(self, reason: str = "kill()") -> None:
        """Cut the drain short: cancel what runs, and give it back."""
        log.warning("stopping hard: %s", reason)
        self._stopping.set()
        self._hard.set()
        self._end_within(self._settings.flush_seconds + MIN_CLOSE_SECONDS)

    async def run(self) -> int:
        """Run until drained; return 0, or 1 when handlers were cancelled, deletes left, or the lifespan failed.

        Raises:
            TopologyError: Something the service needs does not exist.
        """
        settings = self._settings
        threads = Threads(self._service.slots(settings.concurrency), self.capacity)
        use_loop_executor(self.capacity)
        publisher = Publisher(self._service.name, transport=self._transport)
        async with self.health:
            level = logging.DEBUG if self.health.private else logging.INFO
            fields = {"url": self.health.url}
            log.log(level, "serving /livez, /readyz and /metrics on %s", self.health.bound, extra={"fields": fields})
            try:
                await retry_until_stopped("check the topology", self._verified_topology, stopping=self._stopping)
                await retry_until_stopped("open the idempotency store", self._open_store, stopping=self._stopping)
                if not self._stopping.is_set():
                    await self._serve(publisher, threads)
            finally:
                until = max(
                    self._stopped_at + settings.drain_seconds, asyncio.get_running_loop().time() + MIN_CLOSE_SECONDS
                )
                unpublished = await self._close(publisher, threads, until)
        return self._report(unpublished)

    async def _serve(self, publisher: Publisher, threads: Threads) -> None:
        """Run the lifespan and, inside of it, the consumers; a stop bounds how long either may take."""
        try:
            async with asyncio.timeout(None) as self._limit, self._service.open() as state:
                if not self._stopping.is_set():
                    self._start(publisher, threads, state)
                    await self._stopping.wait()
                    await self._drain()
        except SmartpipeError:
            raise
        except Exception as error:
            self._failed = True
            if self._limit is not None and self._limit.expired():
                log.error("the lifespan of %s did not end in time and was cancelled", self._service.name)  # noqa: TRY400
            else:
                log.error("the lifespan of %s failed: %s", self._service.name, describe_error(error), exc_info=error)  # noqa: TRY400 - one way to say it

    def _end_within(self, seconds: float) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _drain(self) -> None:
        settings = self._settings
        flush_until = self._stopped_at + settings.drain_seconds
        drains = (
            consumer.drain(
                handlers_until=flush_until - settings.flush_seconds, flush_until=flush_until, hard=self._hard
            )
            for consumer in self.consumers
        )
        await asyncio.gather(*drains)
        log.info("handlers have ended, deletes are flushed")

    def _start(self, publisher: Publisher, threads: Threads, state: Any) -> None:
        settings = self._settings
        resources = Resources(publisher, threads, publisher.payloads, state, self._claims, Isolation())
        for binding in self._service.bindings:
            consumer = Consumer(
                self._service,
                binding.queue,
                self._transport,
                resources=resources,
                concurrency=settings.concurrency,
                poll_seconds=settings.poll_seconds,
            )
            self.consumers.append(consumer)
            consumer.start()
        self._verified = True
        queues = ", ".join(consumer.queue.name for consumer in self.consumers)
        log.info("ready: %s polls %s, concurrency %d a queue", self._service.name, queues, settings.concurrency)

    async def _verified_topology(self) -> None:
        if self._verify is None:
            return
        try:
            await self._verify()
        except TransportError as error:
            if error.code == "NoCredentials":
                raise ConfigError(error.detail) from None
            if error.code != "AccessDenied":
                raise
            if self._settings.verify == "strict":
                raise TopologyError(error.detail.splitlines()) from None
            log.warning("the topology is not checked, these credentials may not read it: %s", error.detail)
            return
        log.info("verified: queues, dead-letter queues and subscriptions of %s exist", self._service.name)

    async def _open_store(self) -> None:
        self._claims = await claims_of(self._service, self._settings.idempotency_url, self._store)

    async def _close(self, publisher: Publisher, threads: Threads, until: float) -> int:
        """Flush what handlers published without waiting for it; return how many events were not taken."""
        try:
            await publisher.aclose(timeout_seconds=max(0.0, until - asyncio.get_running_loop().time()))
        except PublishError as error:
            log.error("%s", error)  # noqa: TRY400
            return len(error.failures)
        finally:
            if self._claims is not None:
                await self._claims.aclose()
            await self._transport.aclose()
            threads.close()
        return 0

    def _report(self, unpublished: int) -> int:
        totals: Counter[str] = Counter()
        for consumer in self.consumers:
            totals.update(consumer.counts.as_dict())
        if self.transport_counts is not None:
            totals.update(self.transport_counts.as_dict())
        fields = {"service": self._service.name, **totals}
        unfinished = totals["cancelled"] + totals["not_deleted"] + self.capacity.overdue + unpublished
        counts = ", ".join(f"{name} {count}" for name, count in totals.items()) or "nothing received"
        log.info("stopped: %s", counts, extra={"fields": fields})
        return 1 if unfinished or self._failed else 0
