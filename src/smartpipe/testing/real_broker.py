"""Run services on a real broker inside the test's process, as ``topology apply`` and ``worker`` do."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from smartpipe.settings import WorkerSettings
from smartpipe.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from smartpipe.service import Service

POLL_CHECK_SECONDS = 0.01


async def provision(*services: Service) -> list[str]:
    """Create the resources of *services* on the environment's broker. Return the changes, one line each."""
    return await _plan(services, apply=True)


async def planned(*services: Service) -> list[str]:
    """Return the changes that ``provision`` would make, one line each. The list is empty if all is deployed."""
    return await _plan(services, apply=False)


async def _plan(services: Sequence[Service], *, apply: bool) -> list[str]:
    from smartpipe.topology.aws.provision import Provisioner
    from smartpipe.transports.open import open_aws_transport

    transport = open_aws_transport()
    try:
        provisioner = Provisioner(transport.session)
        changes = await provisioner.plan(services)
        if apply:
            await provisioner.apply(changes)
    finally:
        await transport.aclose()
    return [str(change) for change in changes]


@asynccontextmanager
async def working(service: Service, **settings: Any) -> AsyncIterator[Worker]:
    """Run a worker of *service* on the environment's broker, with polls of one second. Drain it on exit.

    The block starts when the worker polls, or has failed before.

    Args:
        settings: Values for WorkerSettings: ``concurrency``, ``drain_seconds`` and so on.

    Raises:
        TopologyError: A resource of the service does not exist. Call ``provision`` first.
        AssertionError: The drain had to cancel a handler, or could not delete a message.
    """
    from smartpipe.topology.aws.verify import verify
    from smartpipe.transports.open import open_aws_transport

    transport = open_aws_transport()

    async def check() -> None:
        await verify(service, transport.session)

    options = {"wait_seconds": 1, "port": 0, "host": "127.0.0.1"} | settings
    worker = Worker(service, transport, WorkerSettings.load(**options), verify=check)
    running = asyncio.create_task(worker.run())
    try:
        # Do not wait until it is ready: its first poll may have failed already.
        while not worker.consumers and not running.done():  # noqa: ASYNC110 - a worker has no event for this
            await asyncio.sleep(POLL_CHECK_SECONDS)
        yield worker
    finally:
        worker.stop("the test is over")
        code = await running
    if code:
        raise AssertionError("the worker did not drain cleanly; see its log for the reason")
