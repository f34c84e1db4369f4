"""A worker inside of the test's process, on a real broker."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from smartpipe import Service, Worker
from smartpipe.aws.provision import Provisioner, verify
from smartpipe.aws.transport import AwsTransport
from smartpipe.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def provision(*services: Service) -> list[str]:
    """Apply the services' topology; return what was changed."""
    transport = AwsTransport.from_environment()
    try:
        provisioner = Provisioner(transport)
        changes = await provisioner.plan(services)
        await provisioner.apply(changes)
    finally:
        await transport.aclose()
    return [str(change) for change in changes]


@asynccontextmanager
async def working(service: Service, **settings: Any) -> AsyncIterator[Worker]:
    """A running worker with short polls, drained at the end; it must end with exit code 0."""
    transport = AwsTransport.from_environment()

    async def check() -> None:
        await verify(service, transport)

    options = {"wait_seconds": 1, "port": 0, "host": "127.0.0.1"} | settings
    worker = Worker(service, transport, WorkerSettings.load(**options), verify=check)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop("the test is over")
        code = await running
    assert code == 0
