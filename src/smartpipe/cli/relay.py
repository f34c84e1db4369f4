"""``smartpipe relay``: publishes committed events of the outbox."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from smartpipe.cli.logs import configure
from smartpipe.cli.worker import exit_now, load_settings
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.settings import RelaySettings, TransportSettings, unknown_settings
from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.otlp_export import export_metrics
from smartpipe.telemetry.prometheus import TEXT, render
from smartpipe.telemetry.resource import find_resource
from smartpipe.transport import counters_of
from smartpipe.worker.health import HealthServer, ProbeResult
from smartpipe.worker.log_writer import family_of_dropped_lines
from smartpipe.worker.metrics import families_of_transport
from smartpipe.worker.signals import on_stop, on_supervisor
from smartpipe.worker.tuning import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import NoReturn

    from smartpipe.outbox import Relay
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.relay")


def run(flags: Mapping[str, Any], *, once: bool, socket: Path | None = None) -> NoReturn:
    """Run a relay until SIGTERM or SIGINT, or with *once* until no event waits, and end the process.

    Args:
        socket: The path of the Unix socket on which a supervisor queries this process.
    """
    settings, aws_settings = load_settings(RelaySettings, flags)
    if settings.outbox_url is None:
        raise ConfigError("no database is set: set SMARTPIPE_OUTBOX_URL, as in postgresql://user:password@host/name")
    configure(settings.log_level, settings.log_format, resource=find_resource())
    raise_file_limit()
    for warning in unknown_settings():
        log.warning("%s", warning)
    url = settings.outbox_url.get_secret_value()
    exit_now(asyncio.run(_run(settings, aws_settings, url, once=once, socket=socket)))


async def _run(
    settings: RelaySettings, aws_settings: TransportSettings, url: str, *, once: bool, socket: Path | None
) -> int:
    try:
        from smartpipe.outbox import Relay
    except ModuleNotFoundError as error:
        msg = f"the outbox needs the package {error.name}; run pip install 'smartpipe[postgres]'"
        raise ConfigError(msg) from None
    from smartpipe.transports.open import create_aws_transport

    transport = create_aws_transport(aws_settings)
    await transport.session.check_credentials()
    relay = Relay(url, transport)
    try:
        if once:
            backlog = await relay.drain()
            if backlog.waiting:
                events = "1 event still waits" if backlog.waiting == 1 else f"{backlog.waiting} events still wait"
                raise SmartpipeError(f"{events}, the oldest for {backlog.lag_seconds:.0f} s")
            return 0
        log.info("starting: relay, process %d", os.getpid())
        report = RelayReport(relay, transport)
        health = HealthServer(report, settings.host, settings.port, socket=socket)
        async with health, export_metrics(report.collect, "relay", supervised=health.private):
            fields = {"url": health.url}
            log.log(
                health.log_level, "serving /livez, /readyz and /metrics on %s", health.bound, extra={"fields": fields}
            )
            with _handle_signals(relay, socket):
                await relay.run()
        log.info("stopped: published %d", relay.published)
    finally:
        await relay.aclose()
        await transport.aclose()
    return 0


def _handle_signals(relay: Relay, socket: Path | None) -> AbstractContextManager[None]:
    def stop(_: str) -> None:
        relay.stop()

    return on_stop(stop) if socket is None else on_supervisor(stop, stop)


class RelayReport:
    """Answers health checks and requests for metrics of a relay."""

    def __init__(self, relay: Relay, transport: Transport) -> None:
        self._relay = relay
        self._transport = transport

    async def livez(self) -> ProbeResult:
        """Return 200: during an outage of the database the relay keeps retrying, and a restart would not help."""
        return ProbeResult(True, {"alive": True})

    async def readyz(self) -> ProbeResult:
        """Return 200 if the relay can read the outbox."""
        return ProbeResult(
            not self._relay.failing, {"ready": not self._relay.failing, "published": self._relay.published}
        )

    async def metrics(self, content_type: str = TEXT) -> str:
        """Return the metrics in the text format *content_type*."""
        return render(await self.collect(), content_type)

    async def collect(self) -> list[Family]:
        """Return the counters, and the backlog, at most 5 s old, or older while the database is unreachable."""
        families = [_family("smartpipe_outbox_published_total", "counter", "Events published.", self._relay.published)]
        counts = counters_of(self._transport)
        if counts is not None:
            families += families_of_transport(counts, {})
        families.append(family_of_dropped_lines({}))
        reader = self._relay.backlog_reader
        reading = await reader.read()
        gauges: list[tuple[str, str, float]] = []
        if reading is not None:
            backlog = reading.backlog
            gauges += [
                ("smartpipe_outbox_waiting", "Events that wait to be published.", backlog.waiting),
                ("smartpipe_outbox_parked", "Events that were refused permanently.", backlog.parked),
                ("smartpipe_outbox_lag_seconds", "Age of the oldest waiting event.", backlog.lag_seconds),
            ]
        # Also before the first answer, because an alert must notice a relay that has never reached its database.
        age = reader.count_unanswered_seconds() if reading is None else reading.age_seconds
        gauges.append(("smartpipe_outbox_backlog_age_seconds", "Time since the database last answered.", age))
        return [*families, *(_family(name, "gauge", text, value) for name, text, value in gauges)]


def _family(name: str, kind: str, text: str, value: float) -> Family:
    return Family(name, kind, text, [Sample({}, value)])
