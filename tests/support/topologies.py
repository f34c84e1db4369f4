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
    """Open a provisioner with the environment's settings."""
    transport = open_aws_transport()
    try:
        yield Provisioner(transport)
    finally:
        await transport.aclose()


async def survey(*services: Service) -> PlanContext:
    async with provisioner() as found:
        return await found.survey(services)


async def left_to_do(*services: Service) -> list[str]:
    """Return the changes that an apply would still make."""
    return [str(change) for change in (await survey(*services)).pending]


async def destroy(*services: Service, orphaned: bool = False) -> list[str]:
    """Delete the resources of the services, and return the changes."""
    async with provisioner() as found:
        going = (await found.survey(services, even_if_faulty=True, destroying=True)).destruction(orphaned=orphaned)
        await found.apply(going)
    return [str(change) for change in going]
