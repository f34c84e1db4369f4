"""A receiver of metrics by OTLP/HTTP on loopback, as a collector would be, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

if TYPE_CHECKING:
    from types import TracebackType


class ReceivedMetrics(NamedTuple):
    """One request: the attributes of its resource, and its metrics by name."""

    resource: dict[str, str]
    metrics: dict[str, Any]

    def points(self, name: str, **attributes: str) -> list[Any]:
        """Return the data points of a metric that have all these *attributes*, ``.`` written as ``__``."""
        if name not in self.metrics:
            return []
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        data = getattr(self.metrics[name], self.metrics[name].WhichOneof("data"))
        return [point for point in data.data_points if wanted.items() <= attributes_of(point).items()]


def attributes_of(point: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in point.attributes}


class OtlpReceiver:
    """Collects requests as ``received``. ``status`` and ``seconds`` are those of the next responses."""

    def __init__(self) -> None:
        self.received: list[ReceivedMetrics] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.seconds = 0.0
        self.requests = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def last(self, service: str | None = None) -> ReceivedMetrics:
        return [one for one in self.received if service in (None, one.resource["service.name"])][-1]

    @property
    def instances(self) -> set[str]:
        return {one.resource["service.instance.id"] for one in self.received}

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/metrics", self._receive)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _receive(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.headers.append(dict(request.headers))
        body = ExportMetricsServiceRequest()
        body.ParseFromString(await request.read())
        await asyncio.sleep(self.seconds)
        if self.status == 200:
            for one in body.resource_metrics:
                metrics = {metric.name: metric for scope in one.scope_metrics for metric in scope.metrics}
                self.received.append(ReceivedMetrics(attributes_of(one.resource), metrics))
        return web.Response(status=self.status)
