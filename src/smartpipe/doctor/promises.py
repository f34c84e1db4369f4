"""The promises of services in ``[tool.smartpipe.deploy]``: how soon a message is to be handled. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.consumer.handlers import slots_for
from smartpipe.doctor.lookup import find_table, to_number
from smartpipe.names import physical_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.service import Service
    from smartpipe.settings import WorkerSettings


class Promise(NamedTuple):
    """The promise for a queue.

    Args:
        slots: The number of its messages that one container handles concurrently.
        seconds_per_message: The mean time for which a message occupies a slot.
        max_wait_seconds: The time in which a message is to be handled.
    """

    service: str
    slots: int
    seconds_per_message: float
    max_wait_seconds: float

    @property
    def target(self) -> float:
        """The number of messages in the queue for which one container is enough, by Little's law."""
        return max(1.0, self.slots / self.seconds_per_message * self.max_wait_seconds)


def read_promises(
    services: Iterable[Service], pyproject: dict[str, Any], settings: WorkerSettings, prefix: str
) -> dict[str, Promise]:
    """Return the promises by the physical name of the queue. Services without one are left out."""
    table = find_table(pyproject, "tool", "smartpipe", "deploy")
    found = {}
    for service in services:
        options = {**table, **find_table(table, service.name)}
        seconds, wait = (to_number(options.get(name)) for name in ("seconds_per_message", "max_wait_seconds"))
        concurrency = to_number(options.get("concurrency")) or settings.concurrency
        if not seconds or not wait:
            continue
        for binding in service.bindings:
            slots = slots_for(service.handlers_on(binding.queue.name), int(concurrency)) * settings.processes
            found[physical_name(prefix, binding.queue.name)] = Promise(service.name, slots, seconds, wait)
    return found
