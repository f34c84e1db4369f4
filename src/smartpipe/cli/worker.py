"""``smartpipe worker``."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from smartpipe.cli.logs import configure
from smartpipe.cli.targets import load_services
from smartpipe.errors import ConfigError, TopologyError
from smartpipe.settings import ServerSettings, TransportSettings, WorkerSettings, unknown_settings
from smartpipe.worker.garbage import spare_collections
from smartpipe.worker.limits import raise_file_limit
from smartpipe.worker.loops import loop_factory
from smartpipe.worker.signals import on_stop, on_supervisor
from smartpipe.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from smartpipe.service import Service

log = logging.getLogger("smartpipe.worker")

S = TypeVar("S", bound=ServerSettings)

FLUSH_SECONDS = 1.0


def run(
    target: str | None, flags: Mapping[str, Any], *, process: int | None = None, socket: Path | None = None
) -> NoReturn:
    """Run the worker, and end the process with its exit code.

    Args:
        process: Its number among those of a supervisor.
        socket: Where the supervisor asks for its health.
    """
    settings, aws_settings = load_settings(WorkerSettings, flags)
    configure(settings.log_level, settings.log_format, process=process)
    raise_file_limit()
    if socket is None:
        for sentence in unknown_settings():
            log.warning("%s", sentence)
    service = load_service(target)
    log.info("starting: service %s, process %d", service.name, os.getpid())
    runner = asyncio.Runner(loop_factory=loop_factory())
    code = runner.run(_run(service, settings, aws_settings, socket))
    exit_now(code)


def load_service(target: str | None) -> Service:
    """Return the one service that a worker is to run.

    Raises:
        ConfigError: There is none, or more than one.
    """
    services = load_services([target] if target else [])
    if len(services) > 1:
        names = ", ".join(service.name for service in services)
        msg = f"a worker runs one service, and pyproject.toml lists {names}: name one as TARGET"
        raise ConfigError(msg)
    return services[0]


def exit_now(code: int) -> NoReturn:
    """End the process now: the drain's budget is the promise, and threads that never end would break it.

    The interpreter's own way out joins every thread, those of abandoned sync handlers and of the
    loop's executor too. Exit handlers still run. Unread standard output delays the end by up to three seconds.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - the only way to them that does not join threads first
    flushing = threading.Thread(target=_flush, daemon=True)  # a handler's prints may find no reader
    with suppress(RuntimeError):  # no thread can be started
        flushing.start()
        flushing.join(FLUSH_SECONDS)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


async def _run(service: Service, settings: WorkerSettings, aws_settings: TransportSettings, socket: Path | None) -> int:
    from smartpipe.topology.aws.verify import verify
    from smartpipe.transports.open import create_aws_transport

    transport = create_aws_transport(aws_settings)
    await transport.check_credentials()

    async def check() -> None:
        drifts = await verify(service, transport)
        if drifts and settings.verify == "strict":
            mend = "SMARTPIPE_VERIFY=strict wants no difference: `smartpipe topology apply` mends them"
            raise TopologyError([*(f"differs: {drift}" for drift in drifts), mend])
        for drift in drifts:
            log.warning("differs from its declaration, `smartpipe topology apply` would: %s", drift)

    verifying = None if settings.verify == "off" else check
    worker = Worker(service, transport, settings, verify=verifying, socket=socket)
    spare_collections()
    listen = on_stop if socket is None else on_supervisor
    with listen(worker.stop, worker.kill):
        return await worker.run()


def load_settings(settings: type[S], flags: Mapping[str, Any]) -> tuple[S, TransportSettings]:
    """Read *settings* and those of AWS, and report the errors of both together."""
    problems: list[str] = []
    loaded: list[Any] = []
    for load in (lambda: settings.load(**flags), TransportSettings.load):
        try:
            loaded.append(load())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return loaded[0], loaded[1]
