"""``/livez``, ``/readyz`` and ``/metrics``, for whoever restarts, routes to or watches the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from aiohttp import web

from smartpipe.errors import ConfigError
from smartpipe.running.metrics import (
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

    from smartpipe.consuming.consumer import Consumer
    from smartpipe.counts import TransportCounts
    from smartpipe.handling.capacity import Capacity


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
    def transport_counts(self) -> TransportCounts | None:
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
            QueueState(service, one.queue.name, one.counts, one.in_flight, round(one.poller.seconds_since_success(), 1))
            for one in self._observed.consumers
        ]
        overdue = Sample({"service": service}, self._observed.capacity.overdue)
        families = [*families_of(states), family_of_overdue(overdue)]
        counts = self._observed.transport_counts
        if counts is not None:
            families += families_of_transport(counts, {"service": service})
        return render(families)

    def _answer(self, word: str, *, good: bool) -> Answer:
        queues = {
            consumer.queue.name: {
                "seconds_since_poll": round(consumer.poller.seconds_since_success(), 1),
                "polls_failing": consumer.poller.failing,
                "in_flight": consumer.in_flight,
                **consumer.counts.as_dict(),
            }
            for consumer in self._observed.consumers
        }
        reasons = self._observed.capacity.reasons
        return Answer(good, {word: good, **({"reasons": reasons} if reasons else {}), "queues": queues})


class HealthServer:
    """Serves a Report on a port, or on a Unix socket instead; ``port`` is the bound one once entered."""

    def __init__(self, report: Report, host: str, port: int, *, socket: Path | None = None) -> None:
        self._report = report
        self._host = host
        self.port = port
        self._socket = socket
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        """Bind the port.

        Raises:
            ConfigError: Another process has it.
        """
        app = web.Application()
        app.router.add_get("/livez", _probe(self._report.livez))
        app.router.add_get("/readyz", _probe(self._report.readyz))
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        if self._socket is not None:
            await web.UnixSite(self._runner, self._socket).start()
            return self
        try:
            await web.TCPSite(self._runner, self._host, self.port).start()
        except OSError as error:
            await self._runner.cleanup()
            msg = (
                f"the health port {self._host}:{self.port} cannot be bound: {error.strerror or error}; choose another "
                "with --port or SMARTPIPE_PORT, 0 for any that is free"
            )
            raise ConfigError(msg) from None
        self.port = self._runner.addresses[0][1]
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
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=(await self._report.metrics()).encode(), headers={"Content-Type": CONTENT_TYPE})


def _probe(ask: Callable[[], Awaitable[Answer]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answered(_: web.Request) -> web.Response:
        answer = await ask()
        return web.json_response(answer.body, status=200 if answer.good else 503)

    return answered
