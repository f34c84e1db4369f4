"""Export metrics by OTLP, if the variables of OpenTelemetry ask for it (``OTEL_EXPORTER_OTLP_ENDPOINT`` and others)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from inspect import isawaitable
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from smartpipe.telemetry.otlp_variables import PROTOCOLS, find_request, has_exporter_timeout, read_options
from smartpipe.telemetry.resource import find_resource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from opentelemetry.sdk.resources import Resource

    from smartpipe.telemetry.families import Family
    from smartpipe.telemetry.otlp_variables import OtlpOptions

    Collect: TypeAlias = Callable[[], Sequence[Family] | Awaitable[Sequence[Family]]]

T = TypeVar("T")

log = logging.getLogger("smartpipe.otlp")

LAST_SECONDS = 2.0
"""The limit of the last export. It comes after a drain, so an orchestrator may kill the process soon."""
REQUEST_SECONDS = 10.0
THREAD = "smartpipe-otlp"


@asynccontextmanager
async def export_metrics(
    collect: Collect, service: str, *, supervised: bool = False, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[None]:
    """Export metrics while the context is open, and once at its end, if the variables of OpenTelemetry ask for it.

    *collect* runs in the event loop. Requests are made in a thread, so they do not delay handlers. Failures are logged
    when they begin and when they end. At its end, it takes 2 s at most.

    Args:
        collect: Returns the metrics, for example ``publisher.collect_metrics``.
        service: The name of the service, unless ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` has one.
        supervised: Whether processes with the same variables run beside this one. Then an instance id from the
            variables gets the process id as a suffix.
    """
    request = find_request(environ)
    if request is None:
        yield
        return
    export = OtlpExport(collect, service, request, read_options(environ), supervised=supervised)
    export.start(short=not has_exporter_timeout(environ))
    try:
        yield
    finally:
        await export.close()


class OtlpExport:
    """Exports the metrics of a process. See ``export_metrics``.

    Args:
        request: The variable that asks for the export, for log lines.
    """

    def __init__(
        self, collect: Collect, service: str, request: str, options: OtlpOptions, *, supervised: bool = False
    ) -> None:
        self._collect = collect
        self._service = service
        self._request = request
        self._options = options
        self._supervised = supervised
        self._start = time.time_ns()  # all cumulative data begins here
        self._exporter: Any = None
        self._resource: Resource | None = None
        self._reasons = _Reasons()
        self._opening: asyncio.Task[bool] | None = None
        self._running: asyncio.Task[None] | None = None
        self._open_call: asyncio.Future[str] | None = None
        self._failing = False

    def start(self, *, short: bool = True) -> None:
        """Start to export in the background.

        Args:
            short: Limit each request to the timeout of an export, if that is below the exporter's own 10 s.
        """
        seconds = min(REQUEST_SECONDS, self._options.timeout_seconds) if short else None
        self._opening = asyncio.create_task(self._open(seconds))
        self._running = asyncio.create_task(self._run(self._opening))

    async def close(self) -> None:
        """Export the last time, and close connections. Takes about 2 s at most."""
        if self._opening is None or self._running is None:
            return
        self._running.cancel()
        clock = asyncio.get_running_loop().time
        until = clock() + LAST_SECONDS
        await asyncio.wait([self._running, self._opening], timeout=LAST_SECONDS)
        if self._exporter is not None:
            if self._open_call is not None:
                await asyncio.wait([self._open_call], timeout=until - clock())
            if self._open_call is None or self._open_call.done():
                await self._export(until - clock())
            elif not self._failing:  # otherwise there is a line already
                reason = self._reasons.describe() or "no response to the request before"
                log.warning("Cannot export the last metrics by OTLP to %s: %s", self._options.endpoint, reason)
        self._opening.cancel()
        if self._exporter is not None:
            with suppress(Exception):  # of the exporter, or it takes too long: the thread does not keep the process
                async with asyncio.timeout(LAST_SECONDS / 4):
                    await _run_in_thread(self._exporter.shutdown)
            if self._open_call is None or self._open_call.done():
                self._stop_filtering()
            else:  # the thread may still log that it was shut down
                self._open_call.add_done_callback(self._stop_filtering)

    def _stop_filtering(self, _: asyncio.Future[str] | None = None) -> None:
        logging.getLogger(PROTOCOLS[self._options.protocol][0]).removeFilter(self._reasons)

    async def _run(self, opening: asyncio.Task[bool]) -> None:
        options = self._options
        for sentence in options.warnings:
            log.warning("%s", sentence)
        if not await asyncio.shield(opening):
            return
        log.info("Exporting metrics by OTLP to %s every %g s", options.endpoint, options.interval_seconds)
        while True:
            await asyncio.sleep(options.interval_seconds)
            await self._export(options.timeout_seconds)

    async def _open(self, timeout_seconds: float | None) -> bool:
        """Import the packages and create the exporter, in a thread because that takes half a second."""
        module = PROTOCOLS[self._options.protocol][0]
        try:
            self._exporter, self._resource = await _run_in_thread(
                partial(_open_exporter, self._options.protocol, timeout_seconds, self._service, self._supervised)
            )
        except ModuleNotFoundError as error:
            extra = "'smartpipe[otel]'" if "grpc" not in module else "opentelemetry-exporter-otlp-proto-grpc"
            log.warning(
                "%s asks for metrics by OTLP, and the package %s is missing: run pip install %s. Nothing is exported",
                self._request,
                error.name,
                extra,
            )
            return False
        except Exception as error:  # noqa: BLE001 - of the SDK: a wrong certificate or header, for example
            log.warning("Cannot export metrics by OTLP, check the OTEL_* variables: %s", error)
            return False
        logging.getLogger(module).addFilter(self._reasons)
        return True

    async def _export(self, timeout_seconds: float) -> None:
        """Export once. A failure is logged and raises nothing."""
        if self._open_call is not None and not self._open_call.done():
            return  # the request of an earlier export still waits for its end
        self._reasons.texts.clear()
        try:
            async with asyncio.timeout(timeout_seconds):
                collected = self._collect()
                families = await collected if isawaitable(collected) else collected
                self._open_call = _run_in_thread(partial(self._send, families, time.time_ns()))
                reason = await asyncio.shield(self._open_call)
        except TimeoutError:
            reason = self._reasons.describe() or f"no response within {timeout_seconds:g} s"
        except Exception as error:  # noqa: BLE001 - a metric must not disturb the worker
            reason = f"{type(error).__name__}: {error}"
        self._report(reason)

    def _send(self, families: Sequence[Family], now: int) -> str:
        """Send *families*, and return an empty text, or the reason of a failure. Runs in the thread."""
        from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
        from opentelemetry.sdk.metrics.export import MetricExportResult

        from smartpipe.telemetry.otlp import convert

        assert self._resource is not None  # noqa: S101 - `_open` has set it
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # no span for the request; the thread ends after it
        result = self._exporter.export(convert(families, self._resource, start=self._start, now=now))
        return "" if result is MetricExportResult.SUCCESS else self._reasons.describe() or "the exporter failed"

    def _report(self, reason: str) -> None:
        """Log the beginning and the end of failures."""
        options = self._options
        if reason and not self._failing:
            log.warning(
                "Cannot export metrics by OTLP to %s, retrying every %g s: %s",
                options.endpoint,
                options.interval_seconds,
                reason,
            )
        elif self._failing and not reason:
            log.info("Metrics are exported by OTLP again")
        self._failing = bool(reason)


class _Reasons(logging.Filter):
    """Collects the log lines of the exporter in our thread, and leaves them out of the log: we log one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.threadName != THREAD:
            return True
        self.texts.append(record.getMessage())
        return False

    def describe(self) -> str:
        """Return the first reason, without the exporter's words about its next attempt."""
        first = next(iter(self.texts), "")
        return first.removeprefix("Transient error ").partition(" encountered while exporting")[0]


def _open_exporter(
    protocol: str,
    timeout_seconds: float | None,
    service: str,
    supervised: bool,  # noqa: FBT001 - called once, in a partial
) -> tuple[Any, Resource]:
    from uuid import uuid4  # a slow import

    from opentelemetry.sdk.resources import Resource

    if protocol == "grpc":
        module = import_module("opentelemetry.exporter.otlp.proto.grpc.metric_exporter")  # may not be installed
    else:
        module = import_module("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    exporter = module.OTLPMetricExporter(timeout=timeout_seconds)
    # The variables of OpenTelemetry take precedence.
    resource = Resource(dict(find_resource().attributes)).merge(Resource.create())
    name, instance = (str(resource.attributes.get(f"service.{key}", "")) for key in ("name", "instance.id"))
    if supervised and "service.instance.id" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        instance = f"{instance}-{os.getpid()}"
    ours = {"service.instance.id": instance or str(uuid4())}
    if name.startswith("unknown_service"):  # no variable has a name
        ours["service.name"] = service
    return exporter, resource.merge(Resource(ours))


def _run_in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run *function* in a thread that does not keep the process alive, unlike those of an executor."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            finish = partial(future.set_exception, error)
        else:
            finish = partial(future.set_result, result)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if future.done() else finish())

    Thread(target=run, name=THREAD, daemon=True).start()
    return future
