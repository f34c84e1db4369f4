"""``smartpipe worker``: run one worker process."""

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
from smartpipe.worker.signals import on_stop, on_supervisor
from smartpipe.worker.tuning import choose_loop_factory, raise_file_limit, tune_garbage_collector
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
    """Run the worker, and end this process with its exit code.

    Args:
        process: The number of this process under its supervisor.
        socket: The path of the Unix socket on which the supervisor queries this process.
    """
    settings, aws_settings = load_settings(WorkerSettings, flags)
    configure(settings.log_level, settings.log_format, process=process)
    raise_file_limit()
    if socket is None:
        for sentence in unknown_settings():
            log.warning("%s", sentence)
    service = load_service(target)
    log.info("starting: service %s, process %d", service.name, os.getpid())
    runner = asyncio.Runner(loop_factory=choose_loop_factory())
    code = runner.run(_run(service, settings, aws_settings, socket))
    exit_now(code)


def load_service(target: str | None) -> Service:
    """Return the service for a worker to run.

    Raises:
        ConfigError: No service is named, or several are.
    """
    services = load_services([target] if target else [])
    if len(services) > 1:
        names = ", ".join(service.name for service in services)
        msg = f"a worker runs one service, but pyproject.toml lists {names}: name one as TARGET"
        raise ConfigError(msg)
    return services[0]


def exit_now(code: int) -> NoReturn:
    """End the process now, to keep the drain budget even if some threads never end.

    A normal exit of the interpreter would join every thread, including those of abandoned sync handlers and of the
    loop's executor. Exit handlers still run. Unread standard output delays the end by up to three seconds.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - the only call that does not join threads first
    flushing = threading.Thread(target=_flush, daemon=True)  # nothing may read the output of a handler's print
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
    await transport.session.check_credentials()

    async def check() -> None:
        drifts = await verify(service, transport.session)
        if drifts and settings.verify == "strict":
            hint = "SMARTPIPE_VERIFY=strict permits no difference: run `smartpipe topology apply`"
            raise TopologyError([*(f"differs: {drift}" for drift in drifts), hint])
        for drift in drifts:
            log.warning("A resource differs from its declaration; `smartpipe topology apply` would %s", drift)

    verify_topology = None if settings.verify == "off" else check
    worker = Worker(service, transport, settings, verify=verify_topology, socket=socket)
    tune_garbage_collector()
    handle_signals = on_stop if socket is None else on_supervisor
    with handle_signals(worker.stop, worker.kill):
        return await worker.run()


def load_settings(settings: type[S], flags: Mapping[str, Any]) -> tuple[S, TransportSettings]:
    """Load *settings* and the AWS settings, and report the errors of both together."""
    errors: list[str] = []
    loaded: list[Any] = []
    for load in (lambda: settings.load(**flags), TransportSettings.load):
        try:
            loaded.append(load())
        except ConfigError as error:
            errors += error.problems
    if errors:
        raise ConfigError(errors)
    return loaded[0], loaded[1]
