"""``/livez``, ``/readyz`` and ``/metrics``, for whoever restarts, routes to or watches the worker."""

from __future__ import annotations

import asyncio
import json
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias, cast

from aiohttp import web

from smartpipe.errors import ConfigError
from smartpipe.escaping import escape_json
from smartpipe.worker.log_writer import family_of_dropped_lines
from smartpipe.worker.metrics import (
    CONTENT_TYPE,
    QueueState,
    Sample,
    families_of,
    families_of_transport,
    family_of_overdue,
    render,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from smartpipe.consumer.capacity import Capacity
    from smartpipe.consumer.consumer import Consumer
    from smartpipe.counters import TransportCounters

    _Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_CONNECTIONS = 32
"""A prober, a scraper and a supervisor need a few; each is a file descriptor."""
REQUEST_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""After those for the request: Prometheus gives up after 10 s by default."""


class Answer(NamedTuple):
    """What a probe is told: 200 or 503, and why."""

    good: bool
    body: dict[str, Any]


class Report(Protocol):
    """What the server tells: of one worker, or of many processes."""

    async def livez(self) -> Answer:
        """Tell whether there is progress; if not, a restart is the cure."""

    async def readyz(self) -> Answer:
        """Tell whether messages are taken."""

    async def metrics(self) -> str:
        """Return the counts in Prometheus' text format."""


class Observed(Protocol):
    """A Worker, as far as it is reported on."""

    @property
    def name(self) -> str:
        """The service's."""

    @property
    def alive(self) -> bool:
        """Whether the process makes progress."""

    @property
    def ready(self) -> bool:
        """Whether it takes messages."""

    @property
    def capacity(self) -> Capacity:
        """Its handler calls that do not end, and the resources it has run out of."""

    @property
    def consumers(self) -> Sequence[Consumer]:
        """One for each queue."""

    @property
    def transport_counts(self) -> TransportCounters | None:
        """Those of its transport, if that counts."""


class WorkerReport:
    """The Report of one worker: the state of each of its queues."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    async def livez(self) -> Answer:
        """Tell whether it makes progress."""
        return self._answer("alive", good=self._observed.alive)

    async def readyz(self) -> Answer:
        """Tell whether it takes messages."""
        return self._answer("ready", good=self._observed.ready)

    async def metrics(self) -> str:
        """Return its counts, two gauges a queue, and what its transport counts."""
        service = self._observed.name
        states = [
            QueueState(service, one.queue.name, one.counters, one.in_flight, round(one.seconds_since_success(), 1))
            for one in self._observed.consumers
        ]
        overdue = Sample({"service": service}, self._observed.capacity.overdue)
        families = [*families_of(states), family_of_overdue(overdue)]
        counts = self._observed.transport_counts
        if counts is not None:
            families += families_of_transport(counts, {"service": service})
        families.append(family_of_dropped_lines({"service": service}))
        return render(families)

    def _answer(self, word: str, *, good: bool) -> Answer:
        queues = {
            consumer.queue.name: {
                "seconds_since_poll": round(consumer.seconds_since_success(), 1),
                "polls_failing": consumer.failing,
                "in_flight": consumer.in_flight,
                **consumer.counters.as_dict(),
            }
            for consumer in self._observed.consumers
        }
        reasons = self._observed.capacity.reasons
        return Answer(good, {word: good, **({"reasons": reasons} if reasons else {}), "queues": queues})


class HealthServer:
    """Serves a Report on a port, or on a Unix socket instead; ``port`` is the bound one once entered.

    Clients of the port cannot use up the process's file descriptors: at most 32 connections are open. Each is for one
    request, which must have arrived after 5 s, and whose answer must have been read after 20 s. A body that comes with
    it is not read. When a 33rd connection comes, the one that has waited for its request the longest is closed, or
    else the one that has not read its answer for the longest, so that probes get through.
    """

    def __init__(self, report: Report, host: str, port: int, *, socket: Path | None = None) -> None:
        self._report = report
        self._host = host
        self.port = port
        self._socket = socket
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.BaseTransport, _Connection] = {}

    async def __aenter__(self) -> Self:
        """Bind the port.

        Raises:
            ConfigError: Another process has it.
        """
        app = web.Application(middlewares=[self._once])
        app.router.add_get("/livez", _probe(self._report.livez))
        app.router.add_get("/readyz", _probe(self._report.readyz))
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, lingering_time=0)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            self._server = await loop.create_unix_server(self._connection, str(self._socket))
            return self
        try:
            self._server = await loop.create_server(self._connection, self._host, self.port)
        except OSError as error:
            await self._runner.cleanup()
            msg = (
                f"the health port {self._host}:{self.port} cannot be bound: {error.strerror or error}; choose another "
                "with --port or SMARTPIPE_PORT, 0 for any that is free"
            )
            raise ConfigError(msg) from None
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def private(self) -> bool:
        """Whether only a supervisor is served."""
        return self._socket is not None

    @property
    def bound(self) -> str:
        """The address and port, or the socket, that are bound."""
        return str(self._socket or f"{self._host}:{self.port}")

    @property
    def url(self) -> str:
        """Where it is served, as seen from this machine."""
        if self._socket is not None:
            return f"unix:{self._socket}"
        return f"http://{'127.0.0.1' if self._host in ('0.0.0.0', '::') else self._host}:{self.port}"  # noqa: S104

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

    def _connection(self) -> asyncio.Protocol:
        assert self._runner is not None  # noqa: S101 - it is set up before the port is bound
        assert self._runner.server is not None  # noqa: S101 - likewise
        return _Connection(self._runner.server(), self._connections)

    @web.middleware
    async def _once(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Let the connection end with its answer."""
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
                connection.answered = True
        response.force_close()
        return response

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=(await self._report.metrics()).encode(), headers={"Content-Type": CONTENT_TYPE})


class _Connection(asyncio.Protocol):
    """One of a server's connections, bounded in number and time, in front of aiohttp's own protocol."""

    def __init__(self, inner: asyncio.Protocol, connections: dict[asyncio.BaseTransport, _Connection]) -> None:
        self.requested = False
        self.answered = False
        self._inner = inner
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if len(self._connections) >= MAX_CONNECTIONS:
            waiting = (one for one in self._connections.values() if not one.requested)
            answered = (one for one in self._connections.values() if one.answered)
            next(chain(waiting, answered, [self])).abort()
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
        if self._timer is None:  # it was closed at once, and aiohttp does not know of it
            return
        self._timer.cancel()
        if self._transport is not None:
            self._connections.pop(self._transport, None)
        self._inner.connection_lost(exc)

    def abort(self) -> None:
        """Close it now, whatever it has still to send."""
        if self._transport is not None:
            self._connections.pop(self._transport, None)
            self._transport.abort()

    def _check_requested(self) -> None:
        if self.requested:
            self._timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self.abort)
        else:
            self.abort()


def _dumps(body: Any) -> str:
    return escape_json(json.dumps(body))


def _probe(ask: Callable[[], Awaitable[Answer]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answered(_: web.Request) -> web.Response:
        answer = await ask()
        return web.json_response(answer.body, status=200 if answer.good else 503, dumps=_dumps)

    return answered
