"""The processes of a project, as its sources, its pyproject.toml and its ``.env`` describe them at the moment."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.cli.logs import configure, has_colours
from smartpipe.cli.supervise import build_worker_arguments, shorten_polls
from smartpipe.errors import ConfigError
from smartpipe.settings import RelaySettings
from smartpipe.worker.supervisor import Command
from smartpipe.worker.supervisor.output import build_prefixes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.cli.dev.services import DeclaredService
    from smartpipe.settings import WorkerSettings

log = logging.getLogger("smartpipe.supervisor")

OWN_NAME = "smartpipe"
ONE_PROCESS = "worker"
RELAY = "relay"
STORE = "SMARTPIPE_IDEMPOTENCY_URL"
MEMORY_STORE = "memory://"


class DevOptions(NamedTuple):
    """The options of ``smartpipe dev``.

    Args:
        port: The port of the broker; 0 selects a free one, None the port of this directory.
        reload: Restart the processes when sources change. None means True if watchfiles is installed.
        relay: Run a relay of the outbox, too.
        programs: Command lines of other programs to run, such as ``uvicorn app:app``.
        one_process: Run all services in one worker process.
    """

    backend: str = "ministack"
    port: int | None = None
    reload: bool | None = None
    log_level: str | None = None
    relay: bool = False
    programs: Sequence[str] = ()
    one_process: bool = False


class Project:
    """The processes of a project, and the prefixes of their lines.

    Raises:
        ConfigError: A program does not exist, or the relay has no database.
    """

    def __init__(self, options: DevOptions, settings: WorkerSettings) -> None:
        self.own_prefix = ""
        self._options = options
        self._settings = settings
        self._flags = shorten_polls({"log_level": options.log_level, "log_format": "text"}, settings)
        self._services: Sequence[DeclaredService] = ()
        self._programs = [_parse_program(text) for text in options.programs]
        if options.relay and RelaySettings.load().outbox_url is None:
            msg = "--relay needs a database: set SMARTPIPE_OUTBOX_URL, as in postgresql://user:password@host/name"
            raise ConfigError(msg)

    def update(self, services: Sequence[DeclaredService]) -> None:
        """Use these services from now on. Log new ones, and configure the log with the width of the longest name."""
        known = {service.name for service in self._services}
        added = [service.name for service in services if service.name not in known]
        self._services = services
        own_prefix, _ = self._build_prefixes(self._list_commands({}))
        if own_prefix != self.own_prefix:
            self.own_prefix = own_prefix
            configure(self._settings.log_level, "text", prefix=own_prefix)
        if known and added:
            log.info("new services: %s", ", ".join(added))
        if self._needs_memory_store:
            log.info(
                "SMARTPIPE_IDEMPOTENCY_URL is not set: idempotent handlers use memory://, which forgets all events "
                "when their process restarts"
            )

    def build_provision_command(self, environment: Mapping[str, str]) -> Command:
        """Return the command that applies the topology."""
        targets = [service.target for service in self._services]
        return Command("topology", ("topology", "apply", "--yes", *targets), environment, self.own_prefix)

    def build_commands(self, environment: Mapping[str, str]) -> list[Command]:
        """Return the commands of the workers, the relay and the other programs."""
        commands = self._list_commands(environment)
        _, prefixes = self._build_prefixes(commands)
        return [command._replace(prefix=prefix) for command, prefix in zip(commands, prefixes, strict=True)]

    @property
    def _needs_memory_store(self) -> bool:
        return any(service.idempotent for service in self._services) and not os.environ.get(STORE)

    def _list_commands(self, environment: Mapping[str, str]) -> list[Command]:
        workers = [service for service in self._services if service.handles]
        store = {STORE: MEMORY_STORE} if self._needs_memory_store else {}
        by_name = {service.name: [service.target] for service in workers}
        if self._options.one_process and workers:
            by_name = {ONE_PROCESS: [service.target for service in workers]}
        commands = [
            Command(name, (*build_worker_arguments(targets, self._flags), "--development"), {**environment, **store})
            for name, targets in by_name.items()
        ]
        if self._options.relay:
            log_flags = ("--log-format", "text", "--log-level", self._settings.log_level)
            commands.append(Command(self._name_uniquely(RELAY, commands), ("relay", *log_flags), environment))
        for words in self._programs:
            name = self._name_uniquely(Path(words[0]).name, commands)
            unbuffered = {"PYTHONUNBUFFERED": "1", **environment}  # its lines should appear immediately
            commands.append(Command(name, words, unbuffered, external=True))
        return commands

    def _name_uniquely(self, name: str, commands: Sequence[Command]) -> str:
        taken = {command.name for command in commands}
        return next(one for one in (name, *(f"{name}-{number}" for number in range(2, 1_000))) if one not in taken)

    def _build_prefixes(self, commands: Sequence[Command]) -> tuple[str, list[str]]:
        return build_prefixes(OWN_NAME, [command.name for command in commands], coloured=has_colours())


def _parse_program(text: str) -> tuple[str, ...]:
    """Return the words of a command line, with the path of its program: of this virtual environment, or from PATH."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--run {text!r} is not a command line: {error}") from None
    if not words:
        raise ConfigError("--run is empty: name a program, as in --run 'uvicorn app:app'")
    directories = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    program = shutil.which(words[0], path=directories)
    if program is None:
        msg = f"--run {text!r}: there is no program {words[0]!r} in this virtual environment or on the PATH"
        raise ConfigError(msg)
    return (program, *words[1:])
