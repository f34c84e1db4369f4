"""Services on a real broker, inside of the test's process: what ``topology apply`` and ``worker`` do."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from smartpipe.settings import WorkerSettings
from smartpipe.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from smartpipe.service import Service

READY_EVERY_SECONDS = 0.01


async def provision(*services: Service) -> list[str]:
    """Create on the environment's broker what *services* declare; return what was changed, a line each."""
    return await _compared(services, apply=True)


async def planned(*services: Service) -> list[str]:
    """Return what ``provision`` would change, a line each; empty when all is in place: a test of what is deployed."""
    return await _compared(services, apply=False)


async def _compared(services: Sequence[Service], *, apply: bool) -> list[str]:
    from smartpipe.topology.aws.provision import Provisioner
    from smartpipe.transports.open import open_aws_transport

    transport = open_aws_transport()
    try:
        provisioner = Provisioner(transport)
        changes = await provisioner.plan(services)
        if apply:
            await provisioner.apply(changes)
    finally:
        await transport.aclose()
    return [str(change) for change in changes]


@asynccontextmanager
async def working(service: Service, **settings: Any) -> AsyncIterator[Worker]:
    """Run a worker of *service* on the environment's broker, with polls of a second; drain it at the end.

    The block begins when the worker polls, or has failed to come so far.

    Args:
        settings: As in WorkerSettings: ``concurrency``, ``drain_seconds`` and so on.

    Raises:
        TopologyError: Something the service needs does not exist: ``provision`` it.
        AssertionError: The drain had to cancel a handler, or could not delete a message.
    """
    from smartpipe.topology.aws.verify import verify
    from smartpipe.transports.open import open_aws_transport

    transport = open_aws_transport()

    async def check() -> None:
        await verify(service, transport)

    options = {"wait_seconds": 1, "port": 0, "host": "127.0.0.1"} | settings
    worker = Worker(service, transport, WorkerSettings.load(**options), verify=check)
    running = asyncio.create_task(worker.run())
    try:
        # Not until it is ready: its first poll may have failed already.
        while not worker.consumers and not running.done():  # noqa: ASYNC110 - a worker has no event for its start
            await asyncio.sleep(READY_EVERY_SECONDS)
        yield worker
    finally:
        worker.stop("the test is over")
        code = await running
    if code:
        raise AssertionError("the worker's drain was not clean; its log says why")
