"""The model behind all formats: the processes of a service, and the figures that follow from its declarations. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pydantic import SecretStr

from smartpipe.consumer.handlers import rate_of, slots_for
from smartpipe.deploy.options import RELAY, SCALING
from smartpipe.errors import ConfigError
from smartpipe.limits import MAX_MESSAGE_BYTES
from smartpipe.settings import PayloadSettings, RelaySettings, TransportSettings, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic_settings import BaseSettings

    from smartpipe.deploy.options import DeployOptions
    from smartpipe.service import Service
    from smartpipe.topology.derive import Binding

GRACE_SECONDS = 5
"""The time between the end of a drain and SIGKILL: to write the last log lines and to exit."""
SPOT_WARNING_SECONDS = 120
"""Source: Amazon EC2 User Guide, "Spot Instance interruption notices"; it is the same on Fargate."""
MESSAGE_COPIES = 3
"""A message is in memory as bytes, as text and as objects."""
DEFAULT_MAX = 10
RELAY_GRACE_SECONDS = 30
_OUTBOX_URL = "SMARTPIPE_OUTBOX_URL"
_IDEMPOTENCY_URL = "SMARTPIPE_IDEMPOTENCY_URL"
_NO_VARIABLES = frozenset({"host", "port", "log_format", "protect_task"})
"""Settings that describe the machine on which the export runs, or that a format sets itself."""


class Scaling(NamedTuple):
    """One queue of a service.

    Args:
        queue: Its logical name, or its ARN.
        slots: The number of its messages that one container handles concurrently.
        target: The number of messages in the queue for which one container is enough; None without a promise.
        delay_seconds: The time after which a message that arrives in the queue can be received.
    """

    queue: str
    slots: int
    target: int | None
    delay_seconds: int = 0


class Workload(NamedTuple):
    """The containers of one service, or those of the relay.

    Args:
        command: The command of the container, in exec form.
        grace_seconds: The time from SIGTERM to SIGKILL.
        port: The port of ``/livez``, ``/readyz`` and ``/metrics``.
        environment: The variables of the container that are not secret.
        secrets: The names of those that are. The export never reads their values.
        maximum: The maximum number of containers. It is ``options.min`` if the number is fixed.
    """

    name: str
    command: tuple[str, ...]
    options: DeployOptions
    grace_seconds: int
    port: int
    environment: dict[str, str]
    secrets: tuple[str, ...]
    queues: tuple[Scaling, ...] = ()
    maximum: int = 1

    def count_health_failures(self, interval_seconds: int, least: int) -> int:
        """Return the number of failed health checks in a row after which a container is replaced.

        Together they take at least the grace period: a handler that blocks the event loop for no longer than a deploy
        would wait for it is not killed.
        """
        return max(least, math.ceil(self.grace_seconds / interval_seconds))


def build_workloads(
    services: Mapping[str, Service],
    options: Mapping[str, DeployOptions],
    environment: Mapping[str, str],
    *,
    common_role: str | None = None,
) -> list[Workload]:
    """Return the workloads of the services that have handlers, sorted by name, and the relay's if there is an outbox.

    The settings in the environment of this process are those of the containers.

    Args:
        services: The services, by their TARGET.
        options: The options of each service, by its name.
        environment: Further variables of each container.
        common_role: The role of all services, which a relay without options of its own has too.

    Raises:
        ConfigError: Options or settings contradict each other; or a setting is wrong.
    """
    errors: list[str] = []
    found = []
    for target, service in sorted(services.items(), key=lambda item: item[1].name):
        if service.handlers:
            try:
                found.append(_build_workload(target, service, options[service.name], environment))
            except ConfigError as error:
                errors += [
                    line if service.name in line else f"service {service.name!r}: {line}" for line in error.problems
                ]
    if errors:
        raise ConfigError(errors)
    settings = RelaySettings.load()
    if settings.outbox_url is None and found and RELAY in options:
        raise ConfigError(
            f"pyproject.toml has options of {RELAY}, and SMARTPIPE_OUTBOX_URL is not set, so nothing would publish the "
            "events of the outbox: set it to the URL of their database, of which an export only writes a reference"
        )
    if settings.outbox_url is not None and (found or RELAY in options):
        if any(one.name == RELAY for one in found):
            raise ConfigError(
                f"a service is called {RELAY!r}, and the outbox needs a relay of this name: give the service "
                "another name"
            )
        shared = {"role": common_role, "spot": False, "min": 1}
        own = options.get(RELAY) or found[0].options.model_copy(update=shared)
        found.append(_build_relay(own, settings, environment))
    return found


def _build_workload(target: str, service: Service, options: DeployOptions, environment: Mapping[str, str]) -> Workload:
    settings = WorkerSettings.load(concurrency=options.concurrency, drain_seconds=options.drain_seconds)
    if "protect_task" not in options.model_fields_set:  # ECS needs a permission for it, not only the variable
        options = options.model_copy(update={"protect_task": settings.protect_task})
    payloads = PayloadSettings.load()
    queues = tuple(_build_scaling(service, one, settings, options) for one in service.bindings)
    grace = math.ceil(settings.drain_seconds) + GRACE_SECONDS
    needed = sum(
        estimate_memory(one.slots, _limit_bytes(binding, payloads))
        for one, binding in zip(queues, service.bindings, strict=True)
    )
    if errors := [
        *_check_sizing(service.name, options, grace, needed),
        *_check_processes(service.name, options, settings.processes),
    ]:
        raise ConfigError(errors)
    claims = (_IDEMPOTENCY_URL,) if service.idempotent else ()
    scales = options.max_wait_seconds is not None
    return Workload(
        service.name,
        ("smartpipe", "worker", target),
        options,
        grace,
        choose_port(settings.port),
        {
            **environment,
            **_list_variables(TransportSettings.load(), payloads, settings),
            "SMARTPIPE_DRAIN_SECONDS": f"{settings.drain_seconds:g}",
            "SMARTPIPE_PORT": str(choose_port(settings.port)),
        },
        claims,
        queues,
        (options.max or max(DEFAULT_MAX, options.min)) if scales else options.min,
    )


def _build_relay(options: DeployOptions, settings: RelaySettings, environment: Mapping[str, str]) -> Workload:
    port = choose_port(settings.port)
    variables = _list_variables(TransportSettings.load(), PayloadSettings.load(), settings)
    return Workload(
        RELAY,
        ("smartpipe", "relay"),
        options.model_copy(update={**dict.fromkeys(SCALING), "protect_task": False}),
        RELAY_GRACE_SECONDS,
        port,
        {**environment, **variables, "SMARTPIPE_PORT": str(port)},
        (_OUTBOX_URL,),
        maximum=options.min,
    )


def choose_port(port: int) -> int:
    """Return the port of probes; port 0, a free one, is a choice for a developer's machine."""
    return port or cast("int", WorkerSettings.model_fields["port"].default)


def _list_variables(*settings: BaseSettings) -> dict[str, str]:
    """Return the variables for the settings that are set, without secrets, sorted by name."""
    found: dict[str, str] = {}
    for one in settings:
        for name in one.model_fields_set - _NO_VARIABLES:
            value = getattr(one, name)
            if value is not None and not isinstance(value, SecretStr):
                found[f"SMARTPIPE_{name.upper()}"] = _format(value)
    return dict(sorted(found.items()))


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _build_scaling(service: Service, binding: Binding, settings: WorkerSettings, options: DeployOptions) -> Scaling:
    """Return the scaling of one queue, by Little's law: messages in the queue = messages per second x seconds."""
    handlers = service.handlers_on(binding.queue.name)
    slots = slots_for(handlers, settings.concurrency) * settings.processes
    target = None
    if options.max_wait_seconds is not None and options.seconds_per_message is not None:
        per_second = min(slots / options.seconds_per_message, rate_of(handlers) * settings.processes)
        target = max(1, math.floor(per_second * options.max_wait_seconds))
    return Scaling(binding.queue.name, slots, target, binding.queue.delay_seconds or 0)


def estimate_memory(slots: int, limit_bytes: int) -> int:
    """Return the bytes that messages take if every slot has one of *limit_bytes*."""
    return slots * limit_bytes * MESSAGE_COPIES


def _limit_bytes(binding: Binding, payloads: PayloadSettings) -> int:
    """Return the size of the largest message that a worker can hold from this queue."""
    if payloads.claim_check_url or payloads.claim_check_read:
        return payloads.payload_limit_bytes
    if payloads.compression:
        return payloads.decompressed_limit_bytes
    if binding.queue.direct or binding.queue.existing or binding.external:
        return MAX_MESSAGE_BYTES
    return max((contract.topic.limit_bytes for contract in binding.contracts), default=MAX_MESSAGE_BYTES)


def _check_sizing(name: str, options: DeployOptions, grace: int, needed: int) -> Iterator[str]:
    promised = options.max_wait_seconds is not None
    if promised != (options.seconds_per_message is not None):
        given, missing = ("max_wait_seconds", "seconds_per_message")[:: 1 if promised else -1]
        yield f"service {name!r} has {given} but no {missing}: set both, because scaling follows from their ratio"
    elif options.max_wait_seconds is not None and options.max_wait_seconds < cast("float", options.seconds_per_message):
        yield (
            f"service {name!r}: max_wait_seconds = {options.max_wait_seconds:g} is less than seconds_per_message = "
            f"{options.seconds_per_message:g}, so no number of containers can keep it; raise max_wait_seconds"
        )
    if options.max is not None and options.min > options.max:
        yield f"service {name!r}: min = {options.min} is more than max = {options.max}; lower min or raise max"
    elif not promised and (options.min == 0 or options.max not in (None, options.min)):
        given = f"min = {options.min}" + (f" and max = {options.max}" if options.max is not None else "")
        yield (
            f"service {name!r}: {given}: a number of containers that changes needs a scaler, and this needs "
            "max_wait_seconds and seconds_per_message; set both, or give min and max the same number, at least 1"
        )
    if options.memory_bytes < needed:
        yield (
            f"service {name!r}: memory = {options.memory!r} is less than the {_format_mebibytes(needed)} that its "
            f"messages can take if every slot has the largest one, {MESSAGE_COPIES} times: as bytes, text and objects; "
            "raise memory, or lower concurrency or the limits"
        )
    if options.spot and grace > SPOT_WARNING_SECONDS:
        yield (
            f"service {name!r}: drain_seconds = {grace - GRACE_SECONDS} is too long for spot = true: spot capacity "
            f"ends {SPOT_WARNING_SECONDS} s after its warning; set drain_seconds to at most "
            f"{SPOT_WARNING_SECONDS - GRACE_SECONDS}, or spot = false"
        )


def _check_processes(name: str, options: DeployOptions, processes: int) -> Iterator[str]:
    if options.cpu < 1 < processes:
        yield (
            f"service {name!r}: {processes} processes (SMARTPIPE_PROCESSES) on cpu = {options.cpu:g} are slower than "
            "one; raise cpu to one for each process, or set SMARTPIPE_PROCESSES=1 and raise min"
        )


def _format_mebibytes(size: int) -> str:
    return f"{math.ceil(size / 2**20)}Mi"


def list_producers(services: Sequence[Service]) -> list[str]:
    """Return the names of the services without handlers, which no worker runs."""
    return sorted(one.name for one in services if not one.handlers)
