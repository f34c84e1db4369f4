"""Plan, apply and destroy topologies in tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from smartpipe.topology.aws.provision import Provisioner
from smartpipe.transports.open import open_aws_transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smartpipe import Service
    from smartpipe.topology.aws.provision import PlanContext


@asynccontextmanager
async def provisioner() -> AsyncIterator[Provisioner]:
    """Open a provisioner with the environment's settings, and close it at the end."""
    transport = open_aws_transport()
    try:
        yield Provisioner(transport.session)
    finally:
        await transport.aclose()


async def compare(*services: Service) -> PlanContext:
    """Compare the declared topology with the deployed one."""
    async with provisioner() as found:
        return await found.compare(services)


async def left_to_do(*services: Service) -> list[str]:
    """Return the changes that an apply would still make."""
    return [str(change) for change in (await compare(*services)).pending]


async def destroy(*services: Service, orphaned: bool = False) -> list[str]:
    """Carry out a destroy; return its lines."""
    async with provisioner() as found:
        changes = (await found.compare(services, ignore_errors=True, destroying=True)).plan_destroy(orphaned=orphaned)
        await found.apply(changes)
    return [str(change) for change in changes]
