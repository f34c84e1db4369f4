"""Serve ``/livez``, ``/readyz`` and ``/metrics`` to orchestrators, load balancers and Prometheus."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from smartpipe.errors import ConfigError
from smartpipe.escaping import escape_json
from smartpipe.names import shorten_names
from smartpipe.telemetry.families import Sample, add_samples
from smartpipe.telemetry.prometheus import TEXT, choose_content_type, join, render
from smartpipe.telemetry.resource import find_resource
from smartpipe.urls import join_host, reach_locally
from smartpipe.worker.log_writer import family_of_dropped_lines
from smartpipe.worker.metrics import QueueMetrics, families_of, families_of_transport, family_of_overdue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from smartpipe.consumer.capacity import Capacity
    from smartpipe.consumer.consumer import Consumer
    from smartpipe.counters import TransportCounters
    from smartpipe.telemetry.call_metrics import CallMetrics
    from smartpipe.telemetry.families import Family
    from smartpipe.telemetry.loop_lag import LoopLag
    from smartpipe.worker.long_handlers import LongHandlers
    from smartpipe.worker.task_protection import TaskProtection

    _Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_CONNECTIONS = 32
"""Probes, a scraper and a supervisor need a few connections. Each costs a file descriptor."""
REQUEST_SECONDS = 5.0
RESPONSE_SECONDS = 15.0
"""The limit after a request has arrived. By default, Prometheus gives up after 10 s."""


class ProbeResult(NamedTuple):
    """The result of a probe: status 200 if *ok*, or else 503, and a body with the reasons."""

    ok: bool
    body: dict[str, Any]


class HealthReport(Protocol):
    """The health of one worker or of several processes, as the server reports it."""

    async def livez(self) -> ProbeResult:
        """Return whether the process makes progress. If it does not, it should be restarted."""

    async def readyz(self) -> ProbeResult:
        """Return whether the process receives messages."""

    async def metrics(self, content_type: str = TEXT) -> str:
        """Return the metrics in the text format *content_type*, one of ``telemetry.prometheus``."""


class ObservedWorker(Protocol):
    """The parts of a Worker that its health depends on."""

    @property
    def name(self) -> str:
        """The name of the service."""

    @property
    def alive(self) -> bool:
        """Whether the process makes progress."""

    @property
    def ready(self) -> bool:
        """Whether it receives messages."""

    @property
    def capacity(self) -> Capacity:
        """Counts handler calls that do not end, and lists exhausted resources."""

    @property
    def consumers(self) -> Sequence[Consumer]:
        """The consumers, one for each queue."""

    @property
    def transport_counts(self) -> TransportCounters | None:
        """The counters of the transport, if it has any."""

    @property
    def calls(self) -> CallMetrics | None:
        """The metrics of the calls of the transport, if they are measured."""

    def collect_metrics(self) -> list[Family]:
        """Return the metrics of the service beside those of its consumers."""


class WorkerHealth:
    """The health of a process with one or several workers, with the state of each of their queues.

    Args:
        workers: They share one capacity and one transport.
        lag: Measures the event loop of the process; None: it is not measured.
        protection: Protects the task of this process.
        long_handlers: Reported by ``livez`` to the supervisor, which protects the task of all processes.
    """

    def __init__(
        self,
        *workers: ObservedWorker,
        lag: LoopLag | None = None,
        protection: TaskProtection | None = None,
        long_handlers: LongHandlers | None = None,
    ) -> None:
        self._workers = workers
        self.lag = lag
        self.protection = protection
        self._long_handlers = long_handlers

    @property
    def name(self) -> str:
        """The names of all services, separated by commas."""
        return ",".join(worker.name for worker in self._workers)

    async def livez(self) -> ProbeResult:
        """Return whether every worker makes progress."""
        result = self._build_result("alive", {worker.name: worker.alive for worker in self._workers})
        if self._long_handlers is not None:
            found = await self._long_handlers.find()
            result.body["long_handler"] = None if found is None else found._asdict()
        return result

    async def readyz(self) -> ProbeResult:
        """Return whether every worker receives messages."""
        return self._build_result("ready", {worker.name: worker.ready for worker in self._workers})

    async def metrics(self, content_type: str = TEXT) -> str:
        """Return the metrics of each queue, and those of the process.

        The label ``service`` of a metric of the process has the names of all services, separated by commas.
        """
        texts = []
        for family in self.collect():
            texts.append(render([family], content_type))
            await asyncio.sleep(0)  # with many queues a text is long, and handlers must not wait for all of it
        return join(*texts)

    def collect(self) -> list[Family]:
        """Return the metrics of each queue, and those of the process, for any exporter."""
        queues = [
            QueueMetrics(
                worker.name,
                names[consumer.queue.name],
                consumer.counters,
                consumer.in_flight,
                round(consumer.seconds_since_success(), 1),
                consumer.slots.size,
                consumer.open_calls,
                {circuit.name: circuit.openness for circuit in consumer.processor.circuits},
            )
            for worker in self._workers
            for names in [shorten_names(consumer.queue.name for consumer in worker.consumers)]
            for consumer in worker.consumers
        ]
        process = {"service": self.name}
        first = self._workers[0]
        families = [*families_of(queues), family_of_overdue(Sample(process, first.capacity.overdue))]
        for worker in self._workers:
            families = add_samples(families, worker.collect_metrics())
        if first.calls is not None:
            families = add_samples(families, first.calls.collect(process))
        if self.lag is not None:
            families.append(self.lag.collect(process))
        counts = first.transport_counts
        if counts is not None:
            families += families_of_transport(counts, process)
        families.append(family_of_dropped_lines(process))
        if self.protection is not None:
            families += self.protection.collect()
        return families

    def _build_result(self, word: str, services: dict[str, bool]) -> ProbeResult:
        queues = {
            consumer.queue.name: {
                "seconds_since_poll": round(consumer.seconds_since_success(), 1),
                "polls_failing": consumer.failing,
                "in_flight": consumer.in_flight,
                **consumer.counters.as_dict(),
            }
            for worker in self._workers
            for consumer in worker.consumers
        }
        ok = all(services.values())
        body: dict[str, Any] = {word: ok}
        if len(services) > 1:
            body["services"] = {name: {word: value} for name, value in services.items()}
        reasons = self._workers[0].capacity.reasons
        return ProbeResult(ok, {**body, **({"reasons": reasons} if reasons else {}), "queues": queues})


class HealthServer:
    """Serves a HealthReport on a port, or on a Unix socket instead. Once entered, ``port`` is the bound port.

    Clients cannot exhaust the file descriptors of the process, because at most 32 connections are open. A connection
    serves one request. The request must arrive within 5 s, and the client must have read the response within 20 s. The
    server does not read the body of a request. When a 33rd connection arrives, the server closes the connection that
    has waited longest for its request, or else the one whose client has not read its response for longest. So probes
    are always served.
    """

    def __init__(self, report: HealthReport, host: str, port: int, *, socket: Path | None = None) -> None:
        self._report = report
        self._host = host
        self.port = port
        self._socket = socket
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.BaseTransport, _BoundedConnection] = {}

    async def __aenter__(self) -> Self:
        """Bind the port.

        Raises:
            ConfigError: The port cannot be bound, for example because another process uses it.
        """
        find_resource()  # now, because the first call may read the metadata of a task
        app = web.Application(middlewares=[self._close_after_response])
        app.router.add_get("/livez", _create_probe(self._report.livez))
        app.router.add_get("/readyz", _create_probe(self._report.readyz))
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, lingering_time=0, logger=_create_logger()
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            self._server = await loop.create_unix_server(self._create_connection, str(self._socket))
            return self
        try:
            self._server = await loop.create_server(self._create_connection, self._host, self.port)
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(_describe_bind_error(self._host, self.port, error)) from None
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def private(self) -> bool:
        """Whether it serves only the supervisor, on a Unix socket."""
        return self._socket is not None

    @property
    def bound(self) -> str:
        """The bound address and port, or the path of the socket."""
        return str(self._socket or join_host(self._host, self.port))

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        if self._socket is not None:
            return f"unix:{self._socket}"
        return f"http://{join_host(reach_locally(self._host), self.port)}"

    @property
    def log_level(self) -> int:
        """The level for a log line with the address: debug if only a supervisor uses it."""
        return logging.DEBUG if self.private else logging.INFO

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the port and its connections."""
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()
        for connection in list(self._connections.values()):
            connection.abort()

    def _create_connection(self) -> asyncio.Protocol:
        assert self._runner is not None  # noqa: S101 - it is set before the port is bound
        assert self._runner.server is not None  # noqa: S101 - likewise
        return _BoundedConnection(self._runner.server(), self._connections)

    @web.middleware
    async def _close_after_response(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Close the connection after the response."""
        connection = self._connections.get(cast("asyncio.BaseTransport", request.transport))
        if connection is not None:
            connection.requested = True
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.force_close()
            raise
        finally:
            if connection is not None:
                connection.responded = True
        response.force_close()
        return response

    async def _metrics(self, request: web.Request) -> web.Response:
        content_type = choose_content_type(",".join(request.headers.getall("Accept", [])))
        text = await self._report.metrics(content_type)
        if not self.private:  # one target has one `target_info`, and so its supervisor writes it
            text = join(render(find_resource().collect(), content_type), text)
        return web.Response(body=text.encode(), headers={"Content-Type": content_type, "Vary": "Accept"})


class _BoundedConnection(asyncio.Protocol):
    """A connection with a limit in number and time. It wraps aiohttp's own protocol."""

    def __init__(self, inner: asyncio.Protocol, connections: dict[asyncio.BaseTransport, _BoundedConnection]) -> None:
        self.requested = False
        self.responded = False
        self._inner = inner
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if len(self._connections) >= MAX_CONNECTIONS:
            waiting = (one for one in self._connections.values() if not one.requested)
            responded = (one for one in self._connections.values() if one.responded)
            next(chain(waiting, responded, [self])).abort()
        if self._transport.is_closing():
            return
        self._connections[transport] = self
        self._timer = asyncio.get_running_loop().call_later(REQUEST_SECONDS, self._check_requested)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is None:  # it was closed immediately, so aiohttp does not know it
            return
        self._timer.cancel()
        if self._transport is not None:
            self._connections.pop(self._transport, None)
        self._inner.connection_lost(exc)

    def abort(self) -> None:
        """Close it now, even if it has data to send."""
        if self._transport is not None:
            self._connections.pop(self._transport, None)
            self._transport.abort()

    def _check_requested(self) -> None:
        if self.requested:
            self._timer = asyncio.get_running_loop().call_later(RESPONSE_SECONDS, self.abort)
        else:
            self.abort()


def _create_logger() -> logging.Logger:
    """Return a logger for aiohttp that has no line, with a traceback, for each request that is not HTTP.

    Any client can send one, such as a port scanner, and gets the status 400.
    """

    def is_internal(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))

    logger = logging.getLogger("smartpipe.health")
    logger.filters = [is_internal]
    return logger


def _describe_bind_error(host: str, port: int, error: OSError) -> str:
    reason = error.strerror or str(error)
    # From Python 3.13 on, asyncio gives no number if no address of *host* is one of this machine.
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, None):
        return (
            f"cannot serve /livez on {host}: {reason}; choose an address of this machine with --host or SMARTPIPE_HOST"
        )
    return (
        f"cannot bind the health port {join_host(host, port)}: {reason}; choose another one with --port or "
        "SMARTPIPE_PORT (0 selects a free port)"
    )


def _dumps(body: Any) -> str:
    return escape_json(json.dumps(body))


def _create_probe(check: Callable[[], Awaitable[ProbeResult]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def respond(_: web.Request) -> web.Response:
        result = await check()
        return web.json_response(result.body, status=200 if result.ok else 503, dumps=_dumps)

    return respond
