"""Rules over the pods of Kubernetes manifests. Pure.

Source: Kubernetes, "Pod Lifecycle" and "Configure Liveness, Readiness and Startup Probes".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.doctor.containers import (
    Container,
    find_lost_signals,
    find_shared_cpu,
    find_short_grace,
    find_small_memory,
)
from smartpipe.doctor.lookup import find, find_rows, find_table, find_texts, find_words, to_number, to_quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smartpipe.doctor.findings import Finding
    from smartpipe.doctor.manifests import Document
    from smartpipe.settings import WorkerSettings

_POD = {
    "Pod": ("spec",),
    "CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
    "ScaledJob": ("spec", "jobTargetRef", "template", "spec"),
}
_TEMPLATE = ("spec", "template", "spec")
"""The pods of all other kinds, also of those that are no part of Kubernetes, such as the Rollout of Argo."""
DEFAULT_GRACE_SECONDS = 30
READINESS_PATH = "/readyz"


class Workload(NamedTuple):
    """A resource that runs pods, with its containers.

    Args:
        document: The resource itself.
        pod: The spec of its pods.
    """

    kind: str
    name: str
    document: Document
    pod: dict[str, Any]
    containers: Sequence[tuple[Container, dict[str, Any]]]

    @property
    def workers(self) -> list[tuple[Container, dict[str, Any]]]:
        """The containers that run a worker, with their tables."""
        return [pair for pair in self.containers if pair[0].is_worker]

    @property
    def runs_other_programs(self) -> bool:
        """Whether no container runs a worker, as far as the manifest says."""
        return bool(self.containers) and all(container.is_worker is False for container, _ in self.containers)

    @property
    def resource(self) -> str:
        """Its name in findings."""
        return f"{self.kind} {self.name}"


def list_workloads(documents: Iterable[Document], settings: WorkerSettings) -> list[Workload]:
    """Return the resources that run pods."""
    found = []
    for document in documents:
        kind = str(find(document.value, "kind"))
        pod = find_table(document.value, *_POD.get(kind, _TEMPLATE))
        rows = find_rows(pod, "containers")
        if not rows:
            continue
        name = str(find(document.value, "metadata", "name"))
        containers = [(_read_container(row, f"{kind} {name}", document, settings), row) for row in rows]
        found.append(Workload(kind, name, document, pod, containers))
    return found


def find_pod_mistakes(workload: Workload) -> Iterator[Finding]:
    """Apply the rules to the workers of a workload."""
    for container, row in workload.workers:
        yield from _find_grace_mistakes(container, row, workload.pod)
        yield from find_lost_signals(container)
        yield from _find_root(container, row, workload.pod)
        yield from find_probe_mistakes(container, row)
        memory, cpus = (to_quantity(find(row, "resources", "limits", one)) for one in ("memory", "cpu"))
        if memory is not None:
            yield from find_small_memory(container, memory)
        if cpus is not None:
            yield from find_shared_cpu(container, cpus)


def find_probe_mistakes(container: Container, row: dict[str, Any]) -> Iterator[Finding]:
    """SP203: a liveness probe that fails for another reason than a process that hangs."""
    liveness, readiness = find_table(row, "livenessProbe"), find_table(row, "readinessProbe")
    path, ready_path = find(liveness, "httpGet", "path"), find(readiness, "httpGet", "path")
    if path is not None and path in (ready_path, READINESS_PATH):
        yield container.make_finding(
            "SP203",
            f"the liveness probe asks {path}, the path of readiness: a worker that starts, or that cannot "
            "receive messages, is not ready, and Kubernetes restarts it for that",
            "set livenessProbe.httpGet.path to /livez, and readinessProbe.httpGet.path to /readyz",
            {"path": str(path)},
        )
    if liveness:
        threshold = to_number(liveness.get("failureThreshold", 3)) or 3
        period = to_number(liveness.get("periodSeconds", 10)) or 10
        if threshold * period < container.drain_seconds:
            yield container.make_finding(
                "SP203",
                f"the liveness probe restarts a worker that does not answer for {threshold * period:g} s "
                f"(failureThreshold {threshold:g}, periodSeconds {period:g}), and you allow handlers "
                f"{container.drain_seconds:g} s to end",
                "raise failureThreshold or periodSeconds of livenessProbe",
                {
                    "failure_threshold": threshold,
                    "period_seconds": period,
                    "drain_seconds": container.drain_seconds,
                },
                milder="warning",
            )


def _find_grace_mistakes(container: Container, row: dict[str, Any], pod: dict[str, Any]) -> Iterator[Finding]:
    setting = pod.get("terminationGracePeriodSeconds")
    grace = DEFAULT_GRACE_SECONDS if setting is None else to_number(setting)
    hook = find_table(row, "lifecycle", "preStop")
    lost = to_number(find(hook, "sleep", "seconds")) or _read_sleep(find_texts(hook, "exec", "command"))
    if grace is not None:
        yield from find_short_grace(container, grace, "terminationGracePeriodSeconds", lost)


def _read_sleep(command: Sequence[str]) -> float:
    words = " ".join(command).split()
    after = (words[place + 1] for place, word in enumerate(words[:-1]) if word.rpartition("/")[2] == "sleep")
    return to_number(next(after, None)) or 0


def _find_root(container: Container, row: dict[str, Any], pod: dict[str, Any]) -> Iterator[Finding]:
    user = find(row, "securityContext", "runAsUser")
    user = find(pod, "securityContext", "runAsUser") if user is None else user
    if user == 0 and not isinstance(user, bool):
        yield container.make_finding(
            "SP202", "the worker runs as root: runAsUser is 0", "set securityContext.runAsUser to 10001"
        )


def _read_container(row: dict[str, Any], owner: str, document: Document, settings: WorkerSettings) -> Container:
    variables = {str(one.get("name")): one.get("value") for one in find_rows(row, "env")}
    paths = [find(row, probe, "httpGet", "path") for probe in ("livenessProbe", "readinessProbe", "startupProbe")]
    return Container(
        resource=f"{owner}, container {row.get('name')}",
        place=document.place,
        command=[*find_words(row, "command"), *find_words(row, "args")],
        environment=variables,
        settings=settings,
        paths=[str(path) for path in paths if path],
        hides_variables=bool(find_rows(row, "envFrom")),
    )
