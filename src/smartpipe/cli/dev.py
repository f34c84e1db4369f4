"""``smartpipe dev``: a broker, topology, and a worker for each service, in one terminal."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from smartpipe.cli.local import exports
from smartpipe.cli.logs import configure, has_colours
from smartpipe.cli.supervise import quick_to_drain, worker_arguments
from smartpipe.cli.targets import configured, load_services
from smartpipe.cli.worker import exit_now, load_settings
from smartpipe.errors import SmartpipeError
from smartpipe.local import EmbeddedBroker
from smartpipe.local.broker import environment_of
from smartpipe.settings import WorkerSettings, unknown_settings
from smartpipe.worker.signals import on_stop
from smartpipe.worker.supervisor import Changes, Command, Supervisor, can_watch, run_to_end
from smartpipe.worker.supervisor.output import prefixes
from smartpipe.worker.tuning import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Sequence


log = logging.getLogger("smartpipe.supervisor")

OWN_NAME = "smartpipe"
BROKER_EVERY_SECONDS = 0.5


def run(targets: Sequence[str], backend: str, port: int, *, reload: bool | None, log_level: str | None) -> NoReturn:
    """Run all of it until a signal, and end the process with the exit code.

    Args:
        reload: Whether changes of sources restart the workers; None: if they can be noticed.
    """
    names = list(dict.fromkeys(targets or configured()))
    services = load_services(names)
    flags = {"log_level": log_level, "log_format": "text"}
    settings, _ = load_settings(WorkerSettings, flags)
    broker = EmbeddedBroker(backend, port=port)
    own, theirs = prefixes(OWN_NAME, [service.name for service in services], coloured=has_colours())
    configure(settings.log_level, "text", prefix=own)
    raise_file_limit()
    for sentence in unknown_settings():
        log.warning("%s", sentence)
    watched = can_watch() if reload is None else reload
    if reload is None and not watched:
        log.info("changes of sources are not noticed: pip install 'smartpipe[local]' brings watchfiles")
    environment = _environment(broker)
    flags = quick_to_drain(flags, settings)
    workers = [
        Command(service.name, worker_arguments(name, flags), environment, prefix)
        for service, name, prefix in zip(services, names, theirs, strict=True)
        if service.handlers
    ]
    provision = Command("topology", ("topology", "apply", "--yes", *names), environment, own)
    exit_now(asyncio.run(_develop(broker, provision, workers, settings, watched=watched)))


async def _develop(
    broker: EmbeddedBroker, provision: Command, workers: Sequence[Command], settings: WorkerSettings, *, watched: bool
) -> int:
    """Start the broker first and end it last."""
    supervisor = Supervisor(
        workers,
        drain_seconds=settings.drain_seconds,
        liveness_seconds=settings.liveness_seconds,
        changes=Changes(Path.cwd()) if watched else None,
        prepare=lambda: run_to_end(provision),  # in a process of its own: the modules of this one are stale
    )
    with on_stop(supervisor.stop, supervisor.stop_hard, supervisor.kill):
        try:
            await asyncio.to_thread(broker.start)
            typer.echo(exports(broker))
            working = asyncio.create_task(supervisor.run())
            while not working.done():
                await asyncio.wait([working], timeout=BROKER_EVERY_SECONDS)
                if (code := broker.wait(0)) is not None:
                    supervisor.stop("the broker is gone")
                    await working
                    msg = f"the broker ended by itself with exit code {code}: {broker.last_output()}"
                    raise SmartpipeError(msg)
            return working.result()
        finally:
            await asyncio.to_thread(broker.stop)


def _environment(broker: EmbeddedBroker) -> dict[str, str]:
    colours = {"FORCE_COLOR": "1"} if has_colours() else {}
    return {**environment_of(broker), **colours}
