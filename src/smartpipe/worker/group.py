"""Several workers in one process, such as all services of a staging environment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smartpipe.consumer.capacity import Capacity
from smartpipe.consumer.isolation import Isolation
from smartpipe.errors import TopologyError
from smartpipe.names import Naming
from smartpipe.topology.derive import derive
from smartpipe.transports.measured import measure
from smartpipe.worker.health import HealthServer
from smartpipe.worker.worker import Worker, serve_health, watch_workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from smartpipe.service import Service
    from smartpipe.settings import WorkerSettings
    from smartpipe.transport import Transport

ANY_ACCOUNT = Naming("aws", "us-east-1", "000000000000")
"""Conflicts between services are the same in all accounts and regions."""


class WorkerGroup:
    """Runs a worker for each service in this process, on one transport and with one health port.

    The services start, drain and end together: if one of them fails, the others drain. Each has its own lifespan,
    publisher and claims. They share the event loop, the memory and the capacity of the process, so a handler that
    blocks or crashes affects all of them. Settings apply to each service, ``concurrency`` to each queue.

    Args:
        verify: Returns the check of a service's topology, or None for no check.
        socket: A Unix socket to serve health on, instead of the settings' port.

    Raises:
        ConfigError: A service has no handlers, or two services have one name or receive from one queue.
    """

    def __init__(
        self,
        services: Sequence[Service],
        transport: Transport,
        settings: WorkerSettings,
        *,
        verify: Callable[[Service], Callable[[], Awaitable[None]] | None] = lambda _: None,
        socket: Path | None = None,
    ) -> None:
        refuse_conflicts(services)
        transport = measure(transport) if settings.metrics else transport
        capacity, isolation = Capacity(sum(one.slots(settings.concurrency) for one in services)), Isolation()
        self.workers = [
            Worker(one, transport, settings, verify=verify(one), capacity=capacity, isolation=isolation)
            for one in services
        ]
        self._report = watch_workers(self.workers, settings, supervised=socket is not None)
        self.health = HealthServer(self._report, settings.host, settings.port, socket=socket)
        self._transport = transport

    def stop(self, reason: str = "stop()") -> None:
        """Start to drain all workers. A second call does nothing."""
        for worker in self.workers:
            worker.stop(reason)

    def kill(self, reason: str = "kill()") -> None:
        """Cut the drain short: cancel the handlers, and return their messages to the queues."""
        for worker in self.workers:
            worker.kill(reason)

    async def run(self) -> int:
        """Run until all workers have drained; return 0, or 1 if one of them did not end cleanly.

        Raises:
            TopologyError: Resources that the services need do not exist.
        """
        async with serve_health(self.health, self._transport, self._report):
            await self._run_services()
        return max([worker.report() for worker in self.workers])

    async def _run_services(self) -> None:
        running = {asyncio.create_task(worker.run_service()): worker for worker in self.workers}
        try:
            ended, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            names = ", ".join(running[task].name for task in ended)
            for task in others:
                running[task].stop(f"{names} has ended")
            if others:
                await asyncio.wait(others)
        finally:
            for task in running:
                task.cancel()  # does nothing after its end
            await asyncio.wait(running)
        errors = [error for task in running if (error := task.exception()) is not None]
        missing = [problem for error in errors if isinstance(error, TopologyError) for problem in error.problems]
        if missing:
            raise TopologyError(list(dict.fromkeys(missing)))
        for error in errors:
            raise error


def refuse_conflicts(services: Sequence[Service]) -> None:
    """Raise ConfigError if two services have the same name, or receive from the same queue.

    SQS would give each message of the queue to one of the two, at random, and the other would never see it. The errors
    are those of ``topology plan``, which finds them only if all services are its TARGETs.
    """
    if len(services) > 1:
        derive(services, ANY_ACCOUNT)
