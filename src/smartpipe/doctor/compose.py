"""Rules over compose files, also of Docker Swarm. Pure.

Source: the Compose Specification, "Services top-level element" and "Compose Deploy Specification".
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from smartpipe.doctor.containers import (
    Container,
    find_lost_signals,
    find_shared_cpu,
    find_short_grace,
    find_small_memory,
)
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.doctor.lookup import find, find_table, find_words, to_bytes, to_number, to_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.manifests import Document
    from smartpipe.settings import WorkerSettings

DEFAULT_GRACE_SECONDS = 10


def examine_compose(document: Document, settings: WorkerSettings) -> Examined:
    """Apply the rules to the services that run a worker."""
    findings: list[Finding] = []
    not_seen: list[str] = []
    for name, service in find_table(document.value, "services").items():
        container = _read_service(name, service, document, settings)
        not_seen += container.list_unknown()
        if container.is_worker:
            grace = find(service, "stop_grace_period")
            seconds = DEFAULT_GRACE_SECONDS if grace is None else to_seconds(grace)
            if seconds is not None:
                findings += find_short_grace(container, seconds, "stop_grace_period")
            findings += find_lost_signals(container)
            findings += find_deploy_mistakes(container, find_table(service, "deploy"))
    return Examined(findings, not_seen)


def find_deploy_mistakes(container: Container, deploy: dict[str, Any]) -> Iterator[Finding]:
    """SP207 and SP208: replicas that stop together, a worker that stays down, and limits that are too low."""
    replicas = to_number(deploy.get("replicas", 1))
    update = find_table(deploy, "update_config")
    starts_first = update.get("order") == "start-first"
    if find(deploy, "update_config", "parallelism") == 0 and not starts_first:
        yield container.make_finding(
            "SP207",
            "update_config.parallelism is 0, so an update stops all replicas at once, and no worker runs until new "
            "ones are ready",
            "set update_config.parallelism to 1, or update_config.order to start-first",
        )
    elif update and replicas == 1 and not starts_first and not str(deploy.get("mode")).startswith("global"):
        yield container.make_finding(
            "SP207",
            "an update stops its only replica before the new one starts: no worker runs during the drain and the start",
            "set update_config.order to start-first, or run two replicas",
            milder="note",
        )
    attempts = to_number(find(deploy, "restart_policy", "max_attempts"))
    if attempts is not None and attempts > 0:
        yield container.make_finding(
            "SP207",
            f"restart_policy.max_attempts is {attempts:g}: after an outage of AWS or a database that is longer than "
            "these restarts, the worker stays down",
            "remove max_attempts",
            {"max_attempts": attempts},
        )
    limits = find_table(deploy, "resources", "limits")
    memory, cpus = to_bytes(limits.get("memory")), to_number(limits.get("cpus"))
    if memory is not None:
        yield from find_small_memory(container, memory)
    if cpus is not None:
        yield from find_shared_cpu(container, cpus)


def _read_service(name: str, service: Any, document: Document, settings: WorkerSettings) -> Container:
    variables = find(service, "environment")
    if isinstance(variables, list):
        pairs = [str(one).partition("=") for one in variables]
        variables = {key: value if equals else None for key, equals, value in pairs}
    command = [*_read_words(find(service, "entrypoint")), *_read_words(find(service, "command"))]
    return Container(
        resource=f"service {name}",
        place=document.place,
        command=command,
        environment=find_table({"environment": variables}, "environment"),
        settings=settings,
        hides_variables=find(service, "env_file") is not None,
    )


def _read_words(value: Any) -> list[str]:
    """Return the words of a command; compose splits a text itself, without a shell."""
    if not isinstance(value, str):
        return find_words(value)
    try:
        return shlex.split(value)
    except ValueError:
        return [value]
