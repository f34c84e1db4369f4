"""Rules over compose files. Pure.

Source: the Compose Specification, "Services top-level element".
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from smartpipe.doctor.containers import Container, find_lost_signals, find_short_grace
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.doctor.lookup import find, find_table, find_texts, to_seconds

if TYPE_CHECKING:
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
    return Examined(findings, not_seen)


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
        return find_texts({"value": value}, "value")
    try:
        return shlex.split(value)
    except ValueError:
        return [value]
