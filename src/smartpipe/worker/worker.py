"""The worker: one process that runs a service's consumers, from its start until it has drained."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

from smartpipe.batching.resend import retry_until_stopped
from smartpipe.consumer.capacity import Capacity
from smartpipe.consumer.consumer import Consumer
from smartpipe.consumer.decide import describe_error
from smartpipe.consumer.isolation import Isolation
from smartpipe.errors import (
    ConfigError,
    SmartpipeError,
    TopologyError,
    TransportError,
)
from smartpipe.telemetry.loop_lag import LoopLag
from smartpipe.telemetry.otlp_export import export_metrics
from smartpipe.transport import counters_of
from smartpipe.transports.measured import MeasuredTransport, measure
from smartpipe.transports.traced import TracedTransport
from smartpipe.worker.health import HealthServer, WorkerHealth
from smartpipe.worker.long_handlers import LongHandlers, protect_after_seconds
from smartpipe.worker.queue_poller import QueuePoller
from smartpipe.worker.runtime import Bounds, Runtime, open_runtime
from smartpipe.worker.task_protection import TaskProtection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from smartpipe.counters import TransportCounters
    from smartpipe.idempotency.store import Store
    from smartpipe.service import Service
    from smartpipe.settings import WorkerSettings
    from smartpipe.telemetry.call_metrics import CallMetrics
    from smartpipe.telemetry.families import Family
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.worker")

MIN_CLOSE_SECONDS = 1.0


class Worker:
    """Runs one service.

    Args:
        verify: Raises TopologyError if a resource that the service needs does not exist; by default the topology is not
            verified.
        socket: A Unix socket to serve health on, instead of the settings' port.
        store: The store in which idempotent handlers claim events; by default the one of ``SMARTPIPE_IDEMPOTENCY_URL``.
        capacity, isolation: Those of the process, if several workers share it; by default, the worker has its own.

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
        capacity: Capacity | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        if not service.handlers:
            msg = f"service {service.name!r} has no handlers: decorate functions with @service.subscribe(...)"
            raise ConfigError(msg)
        self._service = service
        self._transport = measure(transport) if settings.metrics else transport
        self._settings = settings
        self._verify = verify
        self._stopping = asyncio.Event()
        self._hard = asyncio.Event()
        self._verified = False
        self._stopped_at = 0.0
        self._limit: asyncio.Timeout | None = None
        self._lifespan_expired = False
        self._failed = False
        self._store = store
        self._runtime: Runtime | None = None
        self._isolation = isolation or Isolation()
        self._counts_at_stop: Counter[str] = Counter()
        self.capacity = capacity or Capacity(service.slots(settings.concurrency))
        self.consumers: list[Consumer] = []
        self._poller = QueuePoller(self.name, self.consumers, self._transport, settings)
        self._report = watch_workers([self], settings, supervised=socket is not None)
        self.health = HealthServer(self._report, settings.host, settings.port, socket=socket)

    @property
    def name(self) -> str:
        """The name of the service."""
        return self._service.name

    @property
    def ready(self) -> bool:
        """Whether the topology is verified, receive calls succeed, and the worker is not draining."""
        claims = None if self._runtime is None else self._runtime.claims
        return (
            self._verified
            and not self._stopping.is_set()
            and self.capacity.ready
            and not any(consumer.failing for consumer in self.consumers)
            and not (claims is not None and claims.failures)
        )

    @property
    def alive(self) -> bool:
        """Whether the process makes progress: each queue had a successful receive call within the limit, or is busy.

        It makes none while too many handler calls do not end, or while a resource keeps running out.
        """
        limit = self._settings.liveness_seconds
        return self.capacity.alive and all(consumer.seconds_since_success() < limit for consumer in self.consumers)

    @property
    def transport_counts(self) -> TransportCounters | None:
        """The counters of the transport, or None if it has none."""
        return counters_of(self._transport)

    def collect_metrics(self) -> list[Family]:
        """Return the metrics of the service's publisher, and of the messages in its queues."""
        published = [] if self._runtime is None else self._runtime.publisher.collect_metrics()
        return [*published, *self._poller.collect()]

    @property
    def calls(self) -> CallMetrics | None:
        """The metrics of the calls of the transport, or None if they are not measured."""
        return self._transport.calls if isinstance(self._transport, MeasuredTransport) else None

    @property
    def draining(self) -> bool:
        """Whether it has begun to drain."""
        return self._stopping.is_set()

    def stop(self, reason: str = "stop()") -> None:
        """Start to drain. A second call does nothing."""
        if not self._stopping.is_set():
            seconds = (consumer.seconds_until_closed() for consumer in self.consumers)
            log.info(
                "draining: %s; open receive calls end within %.0f s, the drain within %g s; a second signal stops hard",
                reason,
                max(seconds, default=0.0),
                self._settings.drain_seconds,
            )
            self._begin_stop()
            self._end_within(self._settings.drain_seconds + MIN_CLOSE_SECONDS)

    def pause(self, queue: str | None = None) -> None:
        """Stop receiving from this queue, or all; received messages are still handled. A second call does nothing.

        Raises:
            ConfigError: The worker does not run, or has no such queue.
        """
        for consumer in self._consumers_of(queue):
            consumer.pause()
            log.info("Queue %s is paused", consumer.queue.name)

    def resume(self, queue: str | None = None) -> None:
        """Receive from this queue, or all, again. A second call does nothing.

        Raises:
            ConfigError: The worker does not run, or has no such queue.
        """
        for consumer in self._consumers_of(queue):
            consumer.resume()
            log.info("Receiving from queue %s again", consumer.queue.name)

    def _consumers_of(self, queue: str | None) -> list[Consumer]:
        found = [consumer for consumer in self.consumers if queue in (None, consumer.queue.name)]
        if not found:
            names = ", ".join(consumer.queue.name for consumer in self.consumers) or "none, because it does not run"
            msg = f"the worker does not receive from queue {queue!r}; its queues are: {names}"
            raise ConfigError(msg)
        return found

    def kill(self, reason: str = "kill()") -> None:
        """Cut the drain short: cancel the handlers, and return their messages to the queue."""
        log.warning("stopping hard: %s", reason)
        self._begin_stop()
        self._hard.set()
        self._end_within(self._settings.flush_seconds + MIN_CLOSE_SECONDS)

    async def run(self) -> int:
        """Run until drained; return 0, or 1 if the drain was not clean, or the lifespan failed.

        A drain is not clean if it cancelled or abandoned a handler, or if it could not delete a message or publish an
        event. Deletes that failed before the drain began are counted, but their messages have been delivered again.

        Raises:
            TopologyError: A resource that the service needs does not exist.
        """
        async with serve_health(self.health, self._transport, self._report):
            await self.run_service()
        return self.report()

    async def run_service(self) -> None:
        """Run until drained, without a health port. The transport stays open. ``run`` calls this method."""
        await self._check_topology()
        if not self._stopping.is_set():
            await self._serve()

    async def _check_topology(self) -> None:
        """Check the topology, or stop waiting for AWS when a stop comes: the worker has received no message yet."""
        tasks = [
            asyncio.create_task(
                retry_until_stopped("check the topology", self._verify_topology, stopping=self._stopping)
            ),
            asyncio.create_task(self._stopping.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                await tasks[0]  # raises its error
        finally:
            for task in tasks:
                task.cancel()

    def _begin_stop(self) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._stopped_at = asyncio.get_running_loop().time()
            self._counts_at_stop = self._count_messages()

    async def _serve(self) -> None:
        """Open the runtime and run the consumers in it. A stop limits the time of both."""
        bounds = Bounds(self._stopping, self._bound_lifespan, self._seconds_to_close)
        try:
            async with open_runtime(
                self._service,
                self._transport,
                self._settings,
                capacity=self.capacity,
                store=self._store,
                bounds=bounds,
            ) as self._runtime:
                if not self._stopping.is_set():
                    self._start(self._runtime)
                    async with self._poller:
                        await self._stopping.wait()
                    await self._drain()
        except SmartpipeError:
            raise
        except Exception as error:
            self._failed = True
            if self._lifespan_expired:
                log.error("The lifespan of %s did not end in time and was cancelled", self._service.name)  # noqa: TRY400
            else:
                log.error("The lifespan of %s failed: %s", self._service.name, describe_error(error), exc_info=error)  # noqa: TRY400 - the error is in its text

    def _seconds_to_close(self) -> float:
        """Return how long the publisher may take to close: the rest of the drain's time, and at least one second."""
        left = self._stopped_at + self._settings.drain_seconds - asyncio.get_running_loop().time()
        return max(MIN_CLOSE_SECONDS, left)

    @asynccontextmanager
    async def _bound_lifespan(self) -> AsyncIterator[None]:
        """Bound the lifespan by a time that ``_end_within`` sets."""
        async with asyncio.timeout(None) as limit:
            self._limit = limit
            try:
                yield
            finally:
                self._limit, self._lifespan_expired = None, limit.expired()

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

    def _start(self, runtime: Runtime) -> None:
        settings, resources = self._settings, runtime.resources(self._isolation)
        transport = self._transport
        if settings.trace_calls and resources.tracing is not None:
            transport = TracedTransport(transport, resources.tracing)
        for binding in self._service.bindings:
            consumer = Consumer(
                self._service,
                binding.queue,
                transport,
                resources=resources,
                concurrency=settings.concurrency,
                poll_seconds=settings.poll_seconds,
                prefetch=settings.prefetch,
            )
            self.consumers.append(consumer)
            consumer.start()
        self._verified = True
        queues = ", ".join(consumer.queue.name for consumer in self.consumers)
        log.info("ready: %s polls %s, concurrency %d for each queue", self._service.name, queues, settings.concurrency)

    async def _verify_topology(self) -> None:
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
            log.warning("The topology is not verified, because these credentials may not read it: %s", error.detail)
            return
        log.info("verified: queues, dead-letter queues and subscriptions of %s exist", self._service.name)

    def report(self) -> int:
        """Log the counters of the worker's whole life, and return the exit code, which depends only on the drain."""
        totals = self._count_messages()
        in_drain = totals - self._counts_at_stop
        if self.transport_counts is not None:
            totals.update(self.transport_counts.as_dict())
        fields = {"service": self._service.name, **totals}
        counts = ", ".join(f"{name} {count}" for name, count in totals.items()) or "nothing received"
        log.info("stopped: %s", counts, extra={"fields": fields})
        unpublished = 0 if self._runtime is None else self._runtime.unpublished
        unfinished = in_drain["cancelled"] + in_drain["not_deleted"] + self.capacity.overdue + unpublished
        return 1 if unfinished or self._failed else 0

    def _count_messages(self) -> Counter[str]:
        totals: Counter[str] = Counter()
        for consumer in self.consumers:
            totals.update(consumer.counters.as_dict())
        return totals


def watch_workers(workers: Sequence[Worker], settings: WorkerSettings, *, supervised: bool) -> WorkerHealth:
    """Return the health of a process with these workers, and protect its task if the settings ask for it.

    Args:
        supervised: A supervisor protects the task. This process only reports its long handlers.
    """
    lag = LoopLag() if settings.metrics else None
    if not settings.protect_task:
        return WorkerHealth(*workers, lag=lag)
    handlers = LongHandlers(workers, settings)
    if supervised:
        return WorkerHealth(*workers, lag=lag, long_handlers=handlers)

    def is_draining() -> bool:
        return any(worker.draining for worker in workers)

    labels = {"service": ",".join(worker.name for worker in workers)}
    protection = TaskProtection(handlers.find, protect_after_seconds(settings), is_draining, labels)
    return WorkerHealth(*workers, lag=lag, protection=protection)


@asynccontextmanager
async def serve_health(health: HealthServer, transport: Transport, report: WorkerHealth) -> AsyncIterator[None]:
    """Serve the health of the process, record and export its metrics, and close the transport at the end."""
    async with health:
        fields = {"url": health.url}
        log.log(health.log_level, "serving /livez, /readyz and /metrics on %s", health.bound, extra={"fields": fields})
        try:
            with report.lag or nullcontext():
                async with (
                    export_metrics(report.collect, report.name, supervised=health.private),
                    report.protection or nullcontext(),
                ):
                    yield
        finally:
            await transport.aclose()
