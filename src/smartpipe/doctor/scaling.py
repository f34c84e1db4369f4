"""Rules over what starts and stops pods: KEDA, HorizontalPodAutoscaler and PodDisruptionBudget. Pure.

Sources: KEDA 2.21, "AWS SQS Queue" and "ScaledObject specification"; Kubernetes, "Specifying a Disruption Budget".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.doctor.findings import Finding
from smartpipe.doctor.lookup import find, find_rows, find_table, to_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.doctor.kubernetes import Workload
    from smartpipe.doctor.manifests import Document

DEFAULT_COOLDOWN_SECONDS = 300
SQS_TRIGGER = "aws-sqs-queue"


def find_scaling_mistakes(documents: Sequence[Document], workloads: Sequence[Workload]) -> Iterator[Finding]:
    """Apply the rules to scalers and budgets, and the workers that they are about."""
    workers = {(one.kind, one.name): one for one in workloads if one.workers}
    for document in documents:
        kind = find(document.value, "kind")
        target = find_table(document.value, "spec", "scaleTargetRef")
        worker = workers.get((str(target.get("kind", "Deployment")), str(target.get("name"))))
        if kind == "ScaledObject":
            yield from find_keda_mistakes(document, worker)
        elif kind == "HorizontalPodAutoscaler" and worker is not None:
            metrics = [find(one, "resource", "name") for one in find_rows(document.value, "spec", "metrics")]
            if "cpu" in metrics or find(document.value, "spec", "targetCPUUtilizationPercentage") is not None:
                yield _report_cpu(document, worker)
    scaled = {str(find(one.value, "spec", "scaleTargetRef", "name")) for one in documents}
    for workload in workers.values():
        yield from find_missing_budget(workload, documents, is_scaled=workload.name in scaled)


def find_keda_mistakes(document: Document, worker: Workload | None) -> Iterator[Finding]:
    """SP204 and SP205: a scaler that stops workers at work, or that does not see the queue."""
    resource = _name(document)
    triggers = find_rows(document.value, "spec", "triggers")
    for trigger in triggers:
        metadata = find_table(trigger, "metadata")
        if trigger.get("type") == SQS_TRIGGER and str(metadata.get("scaleOnInFlight", "true")).lower() == "false":
            yield Finding(
                code="SP204",
                resource=resource,
                message="scaleOnInFlight is false, so messages that handlers work on do not count: when the last "
                "message has been received, KEDA stops the workers that handle it",
                remedy='set scaleOnInFlight: "true" in the metadata of the trigger, or remove it',
                place=document.place,
            )
        if "identityOwner" in metadata:
            yield Finding(
                code="SP204",
                resource=resource,
                message="identityOwner is deprecated since KEDA 2.13, and KEDA 3 will not have it",
                remedy="use a TriggerAuthentication with podIdentity.provider: aws",
                place=document.place,
                milder="warning",
            )
        if trigger.get("type") == "cpu" and worker is not None:
            yield _report_cpu(document, worker)
    cooldown = to_number(find(document.value, "spec", "cooldownPeriod") or DEFAULT_COOLDOWN_SECONDS)
    drain = max((container.drain_seconds for container, _ in worker.workers), default=0) if worker else 0
    if cooldown is not None and cooldown < drain:
        yield Finding(
            code="SP204",
            resource=resource,
            message=f"cooldownPeriod is {cooldown:g} s, and workers drain for {drain:g} s: KEDA goes to zero, and "
            "back, while they still end",
            remedy=f"set cooldownPeriod to {max(DEFAULT_COOLDOWN_SECONDS, drain):g}",
            figures={"cooldown_seconds": cooldown, "drain_seconds": drain},
            place=document.place,
            milder="warning",
        )


def find_missing_budget(workload: Workload, documents: Sequence[Document], *, is_scaled: bool) -> Iterator[Finding]:
    """SP207: nothing keeps a node drain from stopping all workers of a Deployment at once."""
    replicas = to_number(find(workload.document.value, "spec", "replicas"))
    if workload.kind not in {"Deployment", "StatefulSet"} or not (is_scaled or (replicas or 1) > 1):
        return
    labels = find_table(workload.document.value, "spec", "template", "metadata", "labels")
    for document in documents:
        if find(document.value, "kind") == "PodDisruptionBudget" and _selects(document, workload, labels):
            return
    yield Finding(
        code="SP207",
        resource=workload.resource,
        message="no PodDisruptionBudget in these files selects its pods: the drain of nodes, as in an upgrade of the "
        "cluster, may stop all of them at once",
        remedy="add a PodDisruptionBudget with maxUnavailable: 1",
        place=workload.document.place,
    )


def _selects(document: Document, workload: Workload, labels: dict[str, Any]) -> bool:
    selector = find_table(document.value, "spec", "selector")
    if selector.get("matchExpressions"):
        return True  # not evaluated, and it may well select them
    namespaces = {find(one.value, "metadata", "namespace") for one in (document, workload.document)}
    wanted = find_table(selector, "matchLabels")
    return len(namespaces) == 1 and bool(wanted) and wanted.items() <= labels.items()


def _report_cpu(document: Document, worker: Workload) -> Finding:
    return Finding(
        code="SP205",
        resource=_name(document),
        message=f"it scales {worker.resource} by CPU usage: a worker that waits for databases and APIs uses little "
        "CPU, however long its queue is",
        remedy="scale by the length of the queue, as with KEDA's trigger aws-sqs-queue",
        place=document.place,
    )


def _name(document: Document) -> str:
    return f"{find(document.value, 'kind')} {find(document.value, 'metadata', 'name')}"
