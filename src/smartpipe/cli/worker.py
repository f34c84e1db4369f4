"""``smartpipe worker``: run one worker process."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from smartpipe.cli.dev.handler_calls import show_handler_calls
from smartpipe.cli.logs import configure
from smartpipe.cli.targets import load_services
from smartpipe.errors import ConfigError, TopologyError
from smartpipe.settings import ServerSettings, TransportSettings, WorkerSettings, unknown_settings
from smartpipe.telemetry.resource import find_resource
from smartpipe.worker.group import WorkerGroup, refuse_conflicts
from smartpipe.worker.signals import on_stop, on_supervisor
from smartpipe.worker.tuning import choose_loop_factory, raise_file_limit, tune_garbage_collector
from smartpipe.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from smartpipe.service import Service

log = logging.getLogger("smartpipe.worker")

S = TypeVar("S", bound=ServerSettings)

FLUSH_SECONDS = 1.0


def run(
    targets: Sequence[str],
    flags: Mapping[str, Any],
    *,
    process: int | None = None,
    siblings: int = 1,
    socket: Path | None = None,
    development: bool = False,
) -> NoReturn:
    """Run the worker, and end this process with its exit code.

    Args:
        process: The number of this process under its supervisor.
        siblings: The number of processes that the supervisor runs.
        socket: The path of the Unix socket on which the supervisor queries this process.
        development: Log a line for each handled event, and where a handler failed, also without a terminal.
    """
    settings, aws_settings = load_settings(WorkerSettings, flags)
    configure(settings.log_level, settings.log_format, process=process, resource=find_resource())
    if development or is_terminal(sys.stdout):
        show_handler_calls()
    raise_file_limit()
    if socket is None:
        for sentence in unknown_settings():
            log.warning("%s", sentence)
    services = load_worker_services(targets)
    names = ", ".join(service.name for service in services)
    log.info("starting: service %s, process %d", names, os.getpid())
    runner = asyncio.Runner(loop_factory=choose_loop_factory())
    settings = settings.model_copy(update={"processes": siblings})
    if process is not None and process > 1:  # one process asks for the whole service
        settings = settings.model_copy(update={"queue_metrics_seconds": 0.0})
    code = runner.run(_run(services, settings, aws_settings, socket))
    exit_now(code)


def load_worker_services(targets: Sequence[str]) -> list[Service]:
    """Return the services for a worker to run in one process.

    Raises:
        ConfigError: No service is named; several are listed in pyproject.toml, and none is named; or two services have
            one name or one queue.
    """
    services = list({id(service): service for service in load_services(targets)}.values())
    if len(services) > 1 and not targets:
        names = ", ".join(service.name for service in services)
        msg = (
            f"pyproject.toml lists {names}: name the one to run as TARGET. If you name several, they run together in "
            "one process"
        )
        raise ConfigError(msg)
    refuse_conflicts(services)
    return services


def is_terminal(*streams: TextIO) -> bool:
    """Return whether one of *streams* is a terminal."""
    return any(stream.isatty() for stream in streams)


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


async def _run(
    services: Sequence[Service], settings: WorkerSettings, aws_settings: TransportSettings, socket: Path | None
) -> int:
    from smartpipe.topology.aws.verify import verify
    from smartpipe.transports.open import create_aws_transport

    transport = create_aws_transport(aws_settings)
    await transport.session.check_credentials()

    async def check(service: Service) -> None:
        drifts = await verify(service, transport.session)
        if drifts and settings.verify == "strict":
            hint = "SMARTPIPE_VERIFY=strict permits no difference: run `smartpipe topology apply`"
            raise TopologyError([*(f"differs: {drift}" for drift in drifts), hint])
        for drift in drifts:
            log.warning("A resource differs from its declaration; `smartpipe topology apply` would %s", drift)

    def make_check(service: Service) -> Callable[[], Awaitable[None]] | None:
        return None if settings.verify == "off" else partial(check, service)

    worker: Worker | WorkerGroup
    if len(services) == 1:
        worker = Worker(services[0], transport, settings, verify=make_check(services[0]), socket=socket)
    else:
        worker = WorkerGroup(services, transport, settings, verify=make_check, socket=socket)
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
