"""The services that ``smartpipe dev`` runs, as their sources declare them at the moment."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.cli.targets import load_services, read_configured_targets
from smartpipe.worker.group import refuse_conflicts
from smartpipe.worker.log_writer import standard_output
from smartpipe.worker.supervisor.output import PrefixedLines

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIBE = "--describe"


class DeclaredService(NamedTuple):
    """The parts of a service that its process depends on.

    Args:
        handles: Whether it has handlers. A service without handlers only publishes, and needs no worker.
        idempotent: Whether its handlers need an idempotency store.
    """

    target: str
    name: str
    handles: bool
    idempotent: bool


def describe_services(targets: Sequence[str]) -> list[DeclaredService]:
    """Import the services of *targets*, or by default of pyproject.toml, in this process.

    Raises:
        ConfigError: A target is wrong, or two services have one name or one queue.
    """
    names = targets or read_configured_targets()
    services = dict(zip(load_services(names), names, strict=True))
    refuse_conflicts(list(services))
    return [
        DeclaredService(target, service.name, bool(service.handlers), service.idempotent)
        for service, target in services.items()
    ]


def print_services(targets: Sequence[str]) -> None:
    """Print the services as JSON, for ``describe_current_services``. What modules print goes to standard error."""
    with redirect_stdout(sys.stderr):
        services = describe_services(targets)
    print(json.dumps(services))  # noqa: T201 - read by the parent process


async def describe_current_services(targets: Sequence[str], prefix: str) -> list[DeclaredService] | None:
    """Import the services in a new process, because the modules of this one are out of date.

    Args:
        prefix: A prefix for each line of its errors.

    Returns:
        The services, or None if they cannot be imported. The reason has been printed.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "smartpipe", "dev", DESCRIBE, *targets),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = PrefixedLines(prefix, standard_output().write)
    lines.feed(errors)
    lines.end()
    if process.returncode:
        return None
    return [DeclaredService(*fields) for fields in json.loads(output)]
