"""The options of services in ``[tool.smartpipe.deploy]``: settings, and how soon a message is to be handled. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.consumer.handlers import rate_of, slots_for
from smartpipe.doctor.lookup import find_table, to_number
from smartpipe.names import physical_name
from smartpipe.settings import MAX_CONCURRENCY, MAX_DRAIN_SECONDS, MIN_DRAIN_SECONDS

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
        rate: The maximum number of messages that one container receives in a second.
    """

    service: str
    slots: int
    seconds_per_message: float
    max_wait_seconds: float
    rate: float = math.inf

    @property
    def messages_per_second(self) -> float:
        """The number of messages that one container handles in a second."""
        return min(self.slots / self.seconds_per_message, self.rate)

    @property
    def target(self) -> float:
        """The number of messages in the queue for which one container is enough, by Little's law."""
        return max(1.0, self.messages_per_second * self.max_wait_seconds)


def read_settings(service: Service, pyproject: dict[str, Any], settings: WorkerSettings) -> WorkerSettings:
    """Return the settings of a service's workers: its valid options win over this environment, as in an export."""
    options = _read_options(service, pyproject)
    protect = options.get("protect_task")
    own: dict[str, Any] = {"protect_task": protect} if isinstance(protect, bool) else {}
    drain, concurrency = (to_number(options.get(name)) for name in ("drain_seconds", "concurrency"))
    if drain is not None and MIN_DRAIN_SECONDS <= drain <= MAX_DRAIN_SECONDS:
        own["drain_seconds"] = drain
    if concurrency is not None and 1 <= concurrency <= MAX_CONCURRENCY:
        own["concurrency"] = int(concurrency)
    return settings.model_copy(update=own)


def read_promises(
    services: Iterable[Service], pyproject: dict[str, Any], settings: WorkerSettings, prefix: str
) -> dict[str, Promise]:
    """Return the promises by the physical name of the queue. Services without one are left out."""
    found = {}
    for service in services:
        options = _read_options(service, pyproject)
        seconds, wait = (to_number(options.get(name)) for name in ("seconds_per_message", "max_wait_seconds"))
        if seconds is None or wait is None or min(seconds, wait) <= 0:
            continue
        own = read_settings(service, pyproject, settings)
        for binding in service.bindings:
            handlers = service.handlers_on(binding.queue.name)
            slots = slots_for(handlers, own.concurrency) * own.processes
            rate = rate_of(handlers) * own.processes
            found[physical_name(prefix, binding.queue.name)] = Promise(service.name, slots, seconds, wait, rate)
    return found


def _read_options(service: Service, pyproject: dict[str, Any]) -> dict[str, Any]:
    table = find_table(pyproject, "tool", "smartpipe", "deploy")
    return {**table, **find_table(table, service.name)}
