"""``smartpipe dev``: run a broker, apply the topology, and run a worker for each service, in one terminal."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from smartpipe.cli.local import format_exports
from smartpipe.cli.logs import configure, has_colours
from smartpipe.cli.supervise import build_worker_arguments, shorten_polls
from smartpipe.cli.targets import load_services, read_configured_targets
from smartpipe.cli.worker import exit_now, load_settings
from smartpipe.errors import SmartpipeError
from smartpipe.local import EmbeddedBroker
from smartpipe.local.broker import environment_of
from smartpipe.settings import WorkerSettings, unknown_settings
from smartpipe.worker.signals import on_stop
from smartpipe.worker.supervisor import Command, SourceWatcher, Supervisor, can_watch, run_command
from smartpipe.worker.supervisor.output import build_prefixes
from smartpipe.worker.tuning import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Sequence


log = logging.getLogger("smartpipe.supervisor")

OWN_NAME = "smartpipe"
BROKER_CHECK_SECONDS = 0.5


def run(targets: Sequence[str], backend: str, port: int, *, reload: bool | None, log_level: str | None) -> NoReturn:
    """Run all of them until a signal, and end this process with the exit code.

    Args:
        reload: Restart the workers when sources change. None means True if watchfiles is installed.
    """
    names = list(dict.fromkeys(targets or read_configured_targets()))
    services = load_services(names)
    flags = {"log_level": log_level, "log_format": "text"}
    settings, _ = load_settings(WorkerSettings, flags)
    broker = EmbeddedBroker(backend, port=port)
    own_prefix, worker_prefixes = build_prefixes(
        OWN_NAME, [service.name for service in services], coloured=has_colours()
    )
    configure(settings.log_level, "text", prefix=own_prefix)
    raise_file_limit()
    for sentence in unknown_settings():
        log.warning("%s", sentence)
    reloading = can_watch() if reload is None else reload
    if reload is None and not reloading:
        log.info(
            "changes of the sources will not be detected: run pip install 'smartpipe[local]' to install watchfiles"
        )
    environment = _environment(broker)
    flags = shorten_polls(flags, settings)
    workers = [
        Command(service.name, build_worker_arguments(name, flags), environment, prefix)
        for service, name, prefix in zip(services, names, worker_prefixes, strict=True)
        if service.handlers
    ]
    provision = Command("topology", ("topology", "apply", "--yes", *names), environment, own_prefix)
    exit_now(asyncio.run(_develop(broker, provision, workers, settings, reloading=reloading)))


async def _develop(
    broker: EmbeddedBroker, provision: Command, workers: Sequence[Command], settings: WorkerSettings, *, reloading: bool
) -> int:
    """Start the broker first, and stop it last."""
    supervisor = Supervisor(
        workers,
        drain_seconds=settings.drain_seconds,
        liveness_seconds=settings.liveness_seconds,
        watcher=SourceWatcher(Path.cwd()) if reloading else None,
        prepare=lambda: run_command(provision),  # in a new process, because the modules of this one are out of date
    )
    with on_stop(supervisor.stop, supervisor.stop_hard, supervisor.kill):
        try:
            await asyncio.to_thread(broker.start)
            typer.echo(format_exports(broker))
            running = asyncio.create_task(supervisor.run())
            while not running.done():
                await asyncio.wait([running], timeout=BROKER_CHECK_SECONDS)
                if (code := broker.wait(0)) is not None:
                    supervisor.stop("the broker has ended")
                    await running
                    msg = f"the broker ended unexpectedly with exit code {code}: {broker.last_output()}"
                    raise SmartpipeError(msg)
            return running.result()
        finally:
            await asyncio.to_thread(broker.stop)


def _environment(broker: EmbeddedBroker) -> dict[str, str]:
    colours = {"FORCE_COLOR": "1"} if has_colours() else {}
    return {**environment_of(broker), **colours}
