"""``/livez`` and ``/readyz``, for whoever restarts or routes to the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from aiohttp import web

from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from smartpipe.consumer import Consumer


class Observed(Protocol):
    """What the server reports on: a Worker."""

    @property
    def alive(self) -> bool:
        """Whether the process makes progress; if not, a restart is the cure."""

    @property
    def ready(self) -> bool:
        """Whether it takes messages."""

    @property
    def consumers(self) -> Sequence[Consumer]:
        """One for each queue."""


class HealthServer:
    """Serves 200 or 503, with the state of each queue as JSON; ``port`` is the bound one once entered."""

    def __init__(self, observed: Observed, host: str, port: int) -> None:
        self._observed = observed
        self._host = host
        self.port = port
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        """Bind the port.

        Raises:
            ConfigError: Another process has it.
        """
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
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
    def bound(self) -> str:
        """The address and port that are bound."""
        return f"{self._host}:{self.port}"

    @property
    def url(self) -> str:
        """Where it is served, as seen from this machine."""
        return f"http://{'127.0.0.1' if self._host in ('0.0.0.0', '::') else self._host}:{self.port}"  # noqa: S104

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return self._answer("alive", good=self._observed.alive)

    async def _readyz(self, _: web.Request) -> web.Response:
        return self._answer("ready", good=self._observed.ready)

    def _answer(self, word: str, *, good: bool) -> web.Response:
        queues = {
            consumer.queue.name: {
                "seconds_since_poll": round(consumer.poller.seconds_since_success(), 1),
                "polls_failing": consumer.poller.failing,
                "in_flight": consumer.in_flight,
                **consumer.counts.as_dict(),
            }
            for consumer in self._observed.consumers
        }
        return web.json_response({word: good, "queues": queues}, status=200 if good else 503)
