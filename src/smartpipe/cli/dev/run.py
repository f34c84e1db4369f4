"""``smartpipe dev``: run a broker, apply the topology, and run all processes of a project, in one terminal."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from smartpipe.cli.dev.environment import DOTENV, DotEnv, choose_port
from smartpipe.cli.dev.project import Project
from smartpipe.cli.dev.services import describe_current_services, describe_services
from smartpipe.cli.local import format_exports
from smartpipe.cli.logs import has_colours
from smartpipe.cli.worker import exit_now, load_settings
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.local import EmbeddedBroker
from smartpipe.local.broker import environment_of, is_free
from smartpipe.settings import WorkerSettings, unknown_settings
from smartpipe.worker.signals import on_stop
from smartpipe.worker.supervisor import SourceWatcher, Supervisor, can_watch, run_command
from smartpipe.worker.tuning import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.cli.dev.project import DevOptions


log = logging.getLogger("smartpipe.supervisor")

BROKER_CHECK_SECONDS = 0.5


def run(targets: Sequence[str], options: DevOptions) -> NoReturn:
    """Run all processes until a signal, and end this process with the exit code."""
    dotenv = DotEnv()
    names = dotenv.load()
    services = describe_services(targets)
    settings, _ = load_settings(WorkerSettings, {"log_level": options.log_level, "log_format": "text"})
    project = Project(options, settings)
    own_port = choose_port(Path.cwd())
    is_taken = options.port is None and not is_free(own_port)
    wanted_port = (0 if is_taken else own_port) if options.port is None else options.port
    broker = EmbeddedBroker(options.backend, port=wanted_port)
    project.update(services)
    raise_file_limit()
    for sentence in unknown_settings():
        log.warning("%s", sentence)
    if names:
        log.info("read from %s: %s", DOTENV, ", ".join(names))
    if is_taken:
        log.info("port %d, the one of this directory, is in use: the broker uses port %d", own_port, broker.port)
    reloading = can_watch() if options.reload is None else options.reload
    if options.reload is None and not reloading:
        log.info(
            "changes of the sources will not be detected: run pip install 'smartpipe[local]' to install watchfiles"
        )
    development = Development(targets, project, broker, dotenv)
    exit_now(asyncio.run(development.run(settings, reloading=reloading)))


class Development:
    """Runs the broker, and under a supervisor the processes of a project."""

    def __init__(self, targets: Sequence[str], project: Project, broker: EmbeddedBroker, dotenv: DotEnv) -> None:
        self._targets = targets
        self._project = project
        self._broker = broker
        self._dotenv = dotenv
        self._has_started = False
        self._supervisor: Supervisor | None = None

    async def run(self, settings: WorkerSettings, *, reloading: bool) -> int:
        """Start the broker first, and stop it last. Return the exit code."""
        self._supervisor = supervisor = Supervisor(
            [],
            drain_seconds=settings.drain_seconds,
            liveness_seconds=settings.liveness_seconds,
            watcher=SourceWatcher(Path.cwd(), also=(DOTENV,)) if reloading else None,
            prepare=self._prepare,
        )
        broker = self._broker
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

    async def _prepare(self) -> int:
        """Before each start: read ``.env`` and the services again, apply the topology, and choose the processes."""
        if self._has_started:
            try:
                self._dotenv.load()
            except ConfigError as error:
                for problem in error.problems:
                    log.error("%s", problem)  # noqa: TRY400
                return 2
            services = await describe_current_services(self._targets, self._project.own_prefix)
            if services is None:
                return 2
            self._project.update(services)
        self._has_started = True
        colours = {"FORCE_COLOR": "1"} if has_colours() else {}
        environment = {**environment_of(self._broker), **colours}
        code = await run_command(self._project.build_provision_command(environment))
        if code == 0 and self._supervisor is not None:
            self._supervisor.commands = self._project.build_commands(environment)
        return code
