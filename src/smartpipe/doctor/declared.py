"""Rules over declared services and the settings of this environment. They need no AWS account. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from tenacity import wait_exponential, wait_fixed, wait_random_exponential

from smartpipe.consumer.handlers import slots_for
from smartpipe.deploy.ecs_tasks import MAX_FARGATE_SECONDS
from smartpipe.deploy.workloads import GRACE_SECONDS
from smartpipe.doctor.filters import choose_code, find_crowded_topics, find_fragile_filters
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.errors import ConfigError
from smartpipe.limits import MAX_VISIBILITY_SECONDS
from smartpipe.names import Naming, name_in
from smartpipe.service import DEFAULT_TIMEOUT_SECONDS
from smartpipe.settings import MAX_DRAIN_SECONDS, drain_seconds_for
from smartpipe.topology.checks import find_notes, find_short_ttls
from smartpipe.topology.derive import DEAD_LETTER_RETENTION_SECONDS, derive, redrive_count
from smartpipe.topology.resources import Topology

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.consumer.handlers import Handler
    from smartpipe.retry import RetryPolicy
    from smartpipe.service import Service
    from smartpipe.settings import WorkerSettings
    from smartpipe.topology.derive import Binding
    from smartpipe.topology.table_and_bucket import TableAndBucket

MAX_IN_FLIGHT = 120_000
"""Amazon SQS, "Amazon SQS message quotas": in-flight messages of a queue, standard or FIFO."""
MIN_FAIR_IN_FLIGHT = 30
"""SQS recognizes a noisy tenant only from this number of messages in flight: Amazon SQS, "Fair queues"."""
NAMING = Naming("aws", "us-east-1", "000000000000")
"""For the names of resources, which are the same in all environments, so that one entry of ``ignore`` fits all."""
MAX_DRAIN_ON_FARGATE = MAX_FARGATE_SECONDS - GRACE_SECONDS
"""Fargate kills a task 120 s after SIGTERM at the latest."""
ON_ECS = "; on ECS, run smartpipe worker --protect-task"
REMEDIES = {
    "SP102": "shorten Queue(retention_seconds=...): the dead-letter queue always keeps messages for 14 days",
    "SP105": "set the ttl_seconds that the message names",
    "SP112": "subscribe the queue to fewer topics, or divide its handlers among two queues",
}
"""For the warnings of ``smartpipe topology plan``."""


class Declarations(NamedTuple):
    """Everything that the rules of this layer read.

    Args:
        settings: Those of the workers of each service, in the order of the services.
        naming: That of this environment. Region and account are those of ``NAMING`` if the environment has none.
        unknown: The variables of region and account that this environment does not have.
    """

    services: Sequence[Service]
    settings: Sequence[WorkerSettings]
    table_and_bucket: TableAndBucket
    naming: Naming = NAMING
    unknown: Sequence[str] = ()


def examine_declarations(declared: Declarations) -> Examined:
    """Apply all rules of this layer but those about events."""
    findings = [*_find_topology_notes(declared)]
    not_seen: list[str] = []
    for service, settings in zip(declared.services, declared.settings, strict=True):
        long_handlers = list(find_long_handlers(service, settings))
        if not settings.protect_task:
            findings += long_handlers
        elif long_handlers:  # ECS waits for them before scale-in and deployments only
            not_seen.append(
                f"stops that task protection does not hold back, such as Spot interruptions and StopTask: they cancel "
                f"handlers of service {service.name} that outlast the drain of {settings.drain_seconds:g} s"
            )
        findings += find_volatile_stores(service, settings)
        findings += find_fleeting_ids(service)
        for binding in service.bindings:
            findings += find_early_dead_letters(binding)
            findings += find_long_retries(binding)
            not_seen += _list_unknown(binding)
        findings += find_slot_mistakes(service, settings)
    findings += find_missing_speed()
    if any(service.idempotent for service in declared.services) and all(
        one.idempotency_url is None for one in declared.settings
    ):
        not_seen.append("the idempotency store: SMARTPIPE_IDEMPOTENCY_URL is not set in this environment")
    return Examined(findings, list(dict.fromkeys(not_seen)))


def _find_topology_notes(declared: Declarations) -> Iterator[Finding]:
    desired = deployed = Topology({})
    try:
        desired, deployed = (
            derive(declared.services, naming, declared.table_and_bucket) for naming in (NAMING, declared.naming)
        )
    except ConfigError as error:
        for problem in error.problems:
            yield Finding(
                code=choose_code(problem),
                resource="topology",
                message=problem,
                remedy="change the declaration, then run smartpipe topology plan",
            )
    yield from find_crowded_topics(desired)
    yield from find_fragile_filters(declared.services, declared.table_and_bucket)
    statements = [note for note in find_notes(deployed, Topology({})) if note.code == "SP111"]
    notes = [note for note in find_notes(desired, Topology({})) if note.code != "SP111"]
    for note in [*notes, *find_short_ttls(declared.services), *statements]:
        yield Finding(
            code=note.code,
            resource=note.resource,
            message=note.text,
            remedy=REMEDIES[note.code] if note.code != "SP111" else _place_statement(declared),
            milder="warning" if note.code == "SP102" else None,
        )


def _place_statement(declared: Declarations) -> str:
    """Return the remedy for a key, whose statement has the ARNs of topics."""
    if not declared.unknown:
        return "add the statement to the policy of the key"
    return (
        f"set {' and '.join(declared.unknown)}, so that the statement has your topics, then add it to the policy of "
        "the key"
    )


def find_long_handlers(service: Service, settings: WorkerSettings) -> Iterator[Finding]:
    """SP101: a drain cancels handlers that are still running shortly before its end, and their work begins again."""
    drain, finish = settings.drain_seconds, settings.finish_seconds
    defaults = 0
    for handler in service.handlers:
        timeout = handler.options.timeout_seconds
        if timeout == DEFAULT_TIMEOUT_SECONDS > finish:
            defaults += 1
        elif timeout is None or timeout > finish:
            seconds = MAX_VISIBILITY_SECONDS if timeout is None else timeout
            yield Finding(
                code="SP101",
                resource=f"handler {handler.name}",
                message=f"it may run for {seconds:,g} s, and a deploy cancels handlers {finish:g} s after SIGTERM: the "
                "message returns to its queue, and the work begins again",
                remedy=_lengthen_drain(seconds),
                figures={"timeout_seconds": seconds, "drain_seconds": drain, "finish_seconds": finish},
            )
    if defaults:
        yield Finding(
            code="SP101",
            resource=f"service {service.name}",
            message=f"the number of its handlers with the default timeout of {DEFAULT_TIMEOUT_SECONDS:g} s is "
            f"{defaults}, and a deploy cancels handlers {finish:g} s after SIGTERM",
            remedy=f"set Service(timeout_seconds={finish:g}) if all handlers end by then{ON_ECS}",
            figures={
                "timeout_seconds": DEFAULT_TIMEOUT_SECONDS,
                "drain_seconds": drain,
                "finish_seconds": finish,
                "handlers": defaults,
            },
            milder="note",
        )
    yield from _find_long_sequences(service, settings)


def _find_long_sequences(service: Service, settings: WorkerSettings) -> Iterator[Finding]:
    """SP101: handlers of one event run one after the other, so they may outlast a drain that each of them does not."""
    units: dict[tuple[str, str], float] = {}
    for binding in service.bindings:
        by_key: dict[Any, list[Handler]] = {}
        for handler in service.handlers_on(binding.queue.name):
            for key in handler.route_keys:
                by_key.setdefault(key, []).append(handler)
        for handlers in by_key.values():
            timeouts = [handler.options.timeout_seconds or math.inf for handler in handlers]
            if max(timeouts) <= settings.finish_seconds < sum(timeouts):
                units[binding.queue.name, ", ".join(handler.name for handler in handlers)] = sum(timeouts)
    for (queue, names), seconds in units.items():
        yield Finding(
            code="SP101",
            resource=f"queue {name_in(queue)}",
            message=f"handlers {names} of one event run one after the other, for up to {seconds:,g} s "
            f"together, and a deploy cancels them {settings.finish_seconds:g} s after SIGTERM: the message returns to "
            "its queue, and all of them begin again",
            remedy=f"{_lengthen_drain(seconds)}, or give each handler a queue of its own",
            figures={
                "timeout_seconds": seconds,
                "drain_seconds": settings.drain_seconds,
                "finish_seconds": settings.finish_seconds,
            },
        )


def _lengthen_drain(seconds: float) -> str:
    """Return the remedy for a handler that may run for this time."""
    drain = drain_seconds_for(seconds)
    if drain > MAX_DRAIN_SECONDS:
        return (
            f"set timeout_seconds to the time that the handler needs, or divide the work into shorter steps, because "
            f"the longest drain is {MAX_DRAIN_SECONDS:,} s{ON_ECS}"
        )
    return (
        f"raise the drain to {drain:g} s (drain_seconds in [tool.smartpipe.deploy], which wins, or "
        f"SMARTPIPE_DRAIN_SECONDS) and the grace period of the platform to {drain + GRACE_SECONDS:g} s"
        f"{ON_ECS if drain > MAX_DRAIN_ON_FARGATE else ''}, or divide the work into shorter steps"
    )


def find_long_retries(binding: Binding) -> Iterator[Finding]:
    """SP102: a message whose retries outlast the retention of its queue disappears without a dead letter."""
    queue = binding.queue
    for policy in binding.policies:
        waits = longest_waits(policy)
        if queue.existing or waits is None or policy.on_exhausted == "halt" or waits <= queue.retention_seconds:
            continue
        longer = ", or raise Queue(retention_seconds=...)" if waits < DEAD_LETTER_RETENTION_SECONDS else ""
        yield Finding(
            code="SP102",
            resource=f"queue {name_in(queue.name)}",
            message=f"the waits between {policy.attempts} attempts add up to as much as {waits:,.0f} s, and the queue "
            f"deletes messages after {queue.retention_seconds:,} s, which then reach no dead-letter queue",
            remedy=f"lower attempts or max_seconds of the RetryPolicy{longer}",
            figures={"waits_seconds": waits, "retention_seconds": queue.retention_seconds},
        )


def longest_waits(policy: RetryPolicy) -> float | None:
    """Return the longest sum of a policy's waits; None if its wait strategy is not one of those that are known."""
    wait = policy.wait
    retries = policy.attempts - 1
    if isinstance(wait, (wait_exponential, wait_random_exponential)):
        return sum(_longest_wait(wait, number) for number in range(retries))
    if isinstance(wait, wait_fixed):
        return float(wait.wait_fixed) * retries
    return None


def _longest_wait(wait: wait_exponential, number: int) -> float:
    try:
        seconds = wait.multiplier * wait.exp_base**number
    except OverflowError:
        seconds = wait.max
    return min(max(wait.min, min(seconds, wait.max)), MAX_VISIBILITY_SECONDS)


def find_early_dead_letters(binding: Binding) -> Iterator[Finding]:
    """SP103: deliveries that did not fail count too, so a count near the attempts dead-letters without a reason."""
    queue = binding.queue
    recommended = redrive_count(binding._replace(queue=replace(queue, max_receive_count=None)))
    if queue.existing or queue.max_receive_count is None:
        return
    least = min(recommended, 3 * binding.attempts)
    if binding.attempts <= queue.max_receive_count < least:  # below the attempts it is an error, SP100
        yield Finding(
            code="SP103",
            resource=f"queue {name_in(queue.name)}",
            message=f"SQS dead-letters a message, without a reason, after {queue.max_receive_count} deliveries. Those "
            f"lost in drains and crashes count too, and a retry policy allows {binding.attempts} attempts",
            remedy=f"leave max_receive_count out, for {recommended}, or set it to {least} or more",
            figures={"max_receive_count": queue.max_receive_count, "attempts": binding.attempts, "least": least},
        )


def find_volatile_stores(service: Service, settings: WorkerSettings) -> Iterator[Finding]:
    """SP105: a store in the memory of one process does not know the events that another process has handled."""
    url = settings.idempotency_url.get_secret_value() if settings.idempotency_url else ""
    if service.idempotent and url.lower().startswith("memory:"):
        yield Finding(
            code="SP105",
            resource=f"service {service.name}",
            message="its idempotent handlers keep their claims in memory:// until the process ends: after a restart, "
            "and in every other process, a duplicate of an event is handled again",
            remedy="set SMARTPIPE_IDEMPOTENCY_URL to postgresql://, redis:// or dynamodb://",
            figures={"processes": settings.processes},
        )


def find_fleeting_ids(service: Service) -> Iterator[Finding]:
    """SP105: a copy of a message of another system, and its redrive, have an id of their own."""
    for handler in service.handlers:
        idempotency = handler.options.idempotency
        if handler.raw is None or not idempotency or idempotency.key is not None or handler.raw.knows_context:
            continue
        untyped = not handler.raw.field_names
        yield Finding(
            code="SP105",
            resource=f"handler {handler.name}",
            message="it claims messages by the id of SQS, which is another one for each copy that the producer sends "
            "and after a redrive: duplicates are handled again",
            remedy=f"give it {'a model with the field that identifies a message, and ' if untyped else ''}"
            'idempotent=Idempotency(key="FIELD"), or a model derived from ExternalModel with get_context',
        )


def find_slot_mistakes(service: Service, settings: WorkerSettings) -> Iterator[Finding]:
    """SP109: more messages in flight than SQS allows, or so few that fair queues never recognize a noisy tenant."""
    for binding in service.bindings:
        handlers = service.handlers_on(binding.queue.name)
        slots = slots_for(handlers, settings.concurrency) * settings.processes
        resource = f"queue {name_in(binding.queue.name)}"
        figures = {"in_flight": slots, "processes": settings.processes}
        if slots > MAX_IN_FLIGHT:
            yield Finding(
                code="SP109",
                resource=resource,
                message=f"one task holds up to {slots:,} messages, and SQS allows {MAX_IN_FLIGHT:,} in flight in a "
                "queue: receive calls then fail with OverLimit, or return nothing",
                remedy=f"lower SMARTPIPE_PROCESSES, or {_name_concurrency(handlers)}",
                figures=figures,
            )
        elif slots < MIN_FAIR_IN_FLIGHT and not binding.queue.fifo and any(one.tenant for one in binding.contracts):
            yield Finding(
                code="SP109",
                resource=resource,
                message=f"its events name a tenant, and one task holds up to {slots} messages: SQS recognizes a noisy "
                f"tenant only from {MIN_FAIR_IN_FLIGHT} messages in flight",
                remedy=f"run more tasks, or raise {_name_concurrency(handlers)}",
                figures=figures,
                milder="note",
            )


def _name_concurrency(handlers: Sequence[Handler]) -> str:
    """Return the setting that decides how many messages of a queue with these handlers a process holds."""
    if all(one.options.concurrency is not None for one in handlers):
        return "the concurrency of the handlers of this queue, which wins over SMARTPIPE_CONCURRENCY"
    return "the concurrency (in [tool.smartpipe.deploy], which wins, or SMARTPIPE_CONCURRENCY)"


def find_missing_speed() -> Iterator[Finding]:
    """SP110: packages that a worker uses if they are installed."""
    if find_spec("uvloop") is None:
        yield Finding(
            code="SP110",
            resource="environment",
            message="uvloop is not installed in this environment: workers use the slower event loop of asyncio",
            remedy="add smartpipe[speed] to the dependencies of the project, or pip install 'smartpipe[speed]'",
        )


def _list_unknown(binding: Binding) -> Iterator[str]:
    queue = binding.queue
    if queue.existing:
        yield f"retention, visibility timeout and redrive policy of queue {name_in(queue.name)}: it has another owner"
    if any(longest_waits(policy) is None for policy in binding.policies):
        yield f"the sum of the waits on queue {name_in(queue.name)}: its retry policy has a wait strategy of yours"
