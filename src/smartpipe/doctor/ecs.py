"""Rules over task definitions of Amazon ECS, as JSON and in CloudFormation. Pure.

Source: Amazon ECS, "Task definition parameters": stopTimeout is 30 s by default, and at most 120 s on Fargate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.ci_formats import Place
from smartpipe.deploy.ecs_tasks import CPU_UNITS, MAX_FARGATE_SECONDS
from smartpipe.deploy.workloads import GRACE_SECONDS
from smartpipe.doctor.containers import (
    Container,
    find_lost_signals,
    find_shared_cpu,
    find_short_grace,
    find_small_memory,
)
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.doctor.lookup import find_rows, find_texts, find_words, to_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.settings import WorkerSettings

DEFAULT_STOP_SECONDS = 30
MEBIBYTE = 1_048_576


def runs_other_programs(task: Any, settings: WorkerSettings) -> bool:
    """Return whether no container of a task definition runs a worker, as far as the file says."""
    rows = [{_lower(key): value for key, value in row.items()} for row in _list_containers(task)]
    return bool(rows) and all(_read_container(row, "", Place("", 1), settings).is_worker is False for row in rows)


def _list_containers(task: Any) -> list[dict[str, Any]]:
    return find_rows(task, "containerDefinitions") or find_rows(task, "ContainerDefinitions")


def examine_task(task: dict[str, Any], name: str, place: Place, settings: WorkerSettings) -> Examined:
    """Apply the rules to the workers of a task definition, whose keys begin in lower or in upper case."""
    task = {_lower(key): value for key, value in task.items()}
    is_fargate = "FARGATE" in find_texts(task, "requiresCompatibilities")
    findings: list[Finding] = []
    not_seen: list[str] = []
    for row in find_rows(task, "containerDefinitions"):
        lowered = {_lower(key): value for key, value in row.items()}
        container = _read_container(lowered, name, place, settings)
        not_seen += container.list_unknown()
        if not container.is_worker:
            continue
        findings += find_stop_mistakes(container, lowered.get("stopTimeout"), is_fargate=is_fargate)
        findings += find_lost_signals(container)
        memory, cpus = (to_number(lowered.get(one)) or to_number(task.get(one)) for one in ("memory", "cpu"))
        if memory is not None:
            findings += find_small_memory(container, memory * MEBIBYTE)
        if cpus is not None:
            findings += find_shared_cpu(container, cpus / CPU_UNITS)
    return Examined(findings, not_seen)


def find_stop_mistakes(container: Container, value: Any, *, is_fargate: bool) -> Iterator[Finding]:
    """SP201: the stop timeout is shorter than the drain, or longer than Fargate allows."""
    seconds = DEFAULT_STOP_SECONDS if value is None else to_number(value)
    drain = container.drain_seconds
    if seconds is not None and is_fargate and seconds > MAX_FARGATE_SECONDS:
        yield container.make_finding(
            "SP201",
            f"stopTimeout is {seconds:g} s, and Fargate accepts at most {MAX_FARGATE_SECONDS} s",
            f"set stopTimeout to {MAX_FARGATE_SECONDS} and SMARTPIPE_DRAIN_SECONDS to "
            f"{MAX_FARGATE_SECONDS - GRACE_SECONDS} or less{_advise(container)}",
            {"grace_seconds": seconds, "max_seconds": MAX_FARGATE_SECONDS},
        )
    elif is_fargate and drain + GRACE_SECONDS > MAX_FARGATE_SECONDS:
        yield container.make_finding(
            "SP201",
            f"the worker drains for {drain:g} s, and Fargate kills a task {MAX_FARGATE_SECONDS} s after SIGTERM at the "
            "latest",
            f"set SMARTPIPE_DRAIN_SECONDS to {MAX_FARGATE_SECONDS - GRACE_SECONDS} or less{_advise(container)}, or run "
            "it on EC2",
            {"drain_seconds": drain, "max_seconds": MAX_FARGATE_SECONDS},
        )
    elif seconds is not None:
        yield from find_short_grace(container, seconds, "stopTimeout")


def _advise(container: Container) -> str:
    """Return the remedy for handlers that need more than the maximum, unless the container has it already.

    Task protection holds back scale-in and deployments. Spot interruptions and StopTask still kill a drain that is too
    long, and it then returns no messages. So protection is no reason to accept such a drain.
    """
    if container.protects_task:
        return ", because task protection does not hold back Spot interruptions and StopTask"
    return ". If handlers need longer, run smartpipe worker --protect-task"


def _read_container(row: dict[str, Any], name: str, place: Place, settings: WorkerSettings) -> Container:
    variables = [{_lower(key): value for key, value in one.items()} for one in find_rows(row, "environment")]
    secrets = [
        {_lower(key): None for key in one} | {_lower(k): v for k, v in one.items()} for one in find_rows(row, "secrets")
    ]
    return Container(
        resource=f"{name}, container {row.get('name')}",
        place=place,
        command=[*find_words(row, "entryPoint"), *find_words(row, "command")],
        environment={str(one.get("name")): one.get("value") for one in [*secrets, *variables]},
        settings=settings,
        hides_variables=bool(find_rows(row, "environmentFiles")),
    )


def _lower(key: Any) -> str:
    text = str(key)
    return text[:1].lower() + text[1:]
