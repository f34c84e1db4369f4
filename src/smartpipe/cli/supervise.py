"""``smartpipe worker`` as one process, or as several processes under a supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from smartpipe.cli.logs import configure
from smartpipe.cli.targets import read_configured_targets
from smartpipe.cli.worker import exit_now, is_terminal, load_settings, load_worker_services, run
from smartpipe.settings import WorkerSettings, unknown_settings
from smartpipe.telemetry.resource import find_resource
from smartpipe.worker.long_handlers import protect_after_seconds
from smartpipe.worker.signals import on_stop
from smartpipe.worker.tuning import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


log = logging.getLogger("smartpipe.supervisor")


DEVELOPMENT_WAIT_SECONDS = 1


def run_worker(targets: Sequence[str], flags: Mapping[str, Any], *, reload: bool) -> NoReturn:
    """Run one worker process or a supervisor, and end this process with the exit code.

    On a terminal, polls are short by default, so that Ctrl-C ends an idle worker within a second or two.
    """
    settings, _ = load_settings(WorkerSettings, flags)
    if reload or is_terminal(sys.stdin, sys.stdout, sys.stderr):
        flags = shorten_polls(flags, settings)
    if settings.processes == 1 and not reload:
        run(targets, flags)
    configure(settings.log_level, settings.log_format, resource=find_resource())
    raise_file_limit()
    for sentence in (*unknown_settings(), *settings.warnings):
        log.warning("%s", sentence)
    services = load_worker_services(targets)
    count = settings.processes
    log.info(
        "starting: service %s, %d process%s, supervisor %d",
        ", ".join(service.name for service in services),
        count,
        "" if count == 1 else "es",
        os.getpid(),
    )
    exit_now(asyncio.run(_supervise(targets or read_configured_targets(), flags, settings, reload=reload)))


async def _supervise(
    targets: Sequence[str], flags: Mapping[str, Any], settings: WorkerSettings, *, reload: bool
) -> int:
    from smartpipe.worker.supervisor import Address, Command, SourceWatcher, Supervisor

    arguments = build_worker_arguments(targets, flags)
    numbers = [str(number) for number in range(1, settings.processes + 1)]
    supervisor = Supervisor(
        [Command(number, (*arguments, *_number_arguments(number, settings.processes))) for number in numbers],
        drain_seconds=settings.drain_seconds,
        liveness_seconds=settings.liveness_seconds,
        address=Address(settings.host, settings.port),
        same_service=True,
        watcher=SourceWatcher(Path.cwd()) if reload else None,
        protect_after_seconds=protect_after_seconds(settings) if settings.protect_task else None,
    )
    with on_stop(supervisor.stop, supervisor.stop_hard, supervisor.kill):
        return await supervisor.run()


def _number_arguments(number: str, count: int) -> tuple[str, ...]:
    return ("--siblings", str(count), "--process", number) if count > 1 else ()


def shorten_polls(flags: Mapping[str, Any], settings: WorkerSettings) -> dict[str, Any]:
    """Return *flags* with polls of 1 s, unless the user has set a value. A drain does not wait 20 s for a poll then."""
    is_set = settings.wait_seconds is not None
    return {**flags, "wait_seconds": settings.wait_seconds if is_set else DEVELOPMENT_WAIT_SECONDS}


def build_worker_arguments(targets: Sequence[str], flags: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the command line of one child, with the same flags except for the address, which the supervisor uses."""
    child_flags = {**flags, "processes": 1, "host": None, "port": None}
    words = []
    for name, value in child_flags.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return ("worker", *targets, *words)
