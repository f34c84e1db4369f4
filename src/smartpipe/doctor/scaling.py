"""Rules over what starts and stops pods: KEDA, HorizontalPodAutoscaler and PodDisruptionBudget. Pure.

Sources: KEDA 2.21, "AWS SQS Queue" and "ScaledObject specification"; Kubernetes, "Specifying a Disruption Budget".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from smartpipe.deploy.kubernetes import DEFAULT_POLLING_SECONDS
from smartpipe.doctor.findings import Finding
from smartpipe.doctor.lookup import find, find_region, find_rows, find_table, to_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from smartpipe.doctor.findings import Severity
    from smartpipe.doctor.kubernetes import Workload
    from smartpipe.doctor.manifests import Document
    from smartpipe.doctor.promises import Promise

DEFAULT_COOLDOWN_SECONDS = 300
DEFAULT_QUEUE_LENGTH = 5
SQS_TRIGGER = "aws-sqs-queue"
ZONE_LABEL = "topology.kubernetes.io/zone"


def find_scaling_mistakes(
    documents: Sequence[Document], workloads: Sequence[Workload], promises: Mapping[str, Promise]
) -> Iterator[Finding]:
    """Apply the rules to scalers and budgets, and the workers that they are about.

    Args:
        promises: By the physical name of a queue.
    """
    workers = {(one.kind, one.name): one for one in workloads if one.workers}
    others = {(one.kind, one.name) for one in workloads if one.runs_other_programs}
    for document in documents:
        kind = find(document.value, "kind")
        target = find_table(document.value, "spec", "scaleTargetRef")
        key = (str(target.get("kind", "Deployment")), str(target.get("name")))
        worker = workers.get(key)
        if worker is None and key in others:
            continue
        if kind == "ScaledObject":
            yield from find_keda_mistakes(document, worker)
            yield from find_wrong_targets(document, worker, promises)
        elif kind == "HorizontalPodAutoscaler" and worker is not None:
            rows = find_rows(document.value, "spec", "metrics")
            metrics = [find(one, source, "name") for one in rows for source in ("resource", "containerResource")]
            if "cpu" in metrics or find(document.value, "spec", "targetCPUUtilizationPercentage") is not None:
                yield _report_cpu(document, worker)
    scaled = {str(find(one.value, "spec", "scaleTargetRef", "name")) for one in documents}
    for workload in workloads:
        if not workload.workers:
            continue
        yield from find_missing_budget(workload, documents, is_scaled=workload.name in scaled)
        yield from find_single_zone(workload, is_scaled=workload.name in scaled)


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
    cooldown = find_cooldown(document)
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


def find_cooldown(document: Document) -> float | None:
    """Return the seconds before KEDA removes the last pod; None if it keeps one, or if the time is not a number."""
    least, idle, cooldown = (
        find(document.value, "spec", name) for name in ("minReplicaCount", "idleReplicaCount", "cooldownPeriod")
    )
    if to_number(least or 0) != 0 and idle is None:
        return None
    return to_number(DEFAULT_COOLDOWN_SECONDS if cooldown is None else cooldown)


def find_wrong_targets(
    document: Document, worker: Workload | None, promises: Mapping[str, Promise]
) -> Iterator[Finding]:
    """SP204: a scaler that starts too few workers for the promise of the service, or reads the wrong region."""
    least = to_number(find(document.value, "spec", "minReplicaCount") or 0)
    for trigger in find_rows(document.value, "spec", "triggers"):
        metadata = find_table(trigger, "metadata")
        if trigger.get("type") != SQS_TRIGGER:
            continue
        url = str(metadata.get("queueURL", ""))
        yield from _find_wrong_region(document, url, metadata.get("awsRegion"))
        activation = to_number(metadata.get("activationQueueLength", 0))
        if least == 0 and activation:
            yield _make_finding(
                document,
                f"minReplicaCount is 0, and activationQueueLength is {activation:g}: up to {activation:g} messages "
                "stay in the queue for as long as no more arrive",
                "remove activationQueueLength",
            )
        promise = promises.get(url.rpartition("/")[2])
        if promise is not None:
            yield from _find_broken_promise(document, metadata, promise)
            if least == 0:
                yield from _find_slow_start(document, worker, promise)


def _find_wrong_region(document: Document, url: str, region: object) -> Iterator[Finding]:
    found = find_region(url)
    if found is not None and isinstance(region, str) and "{" not in region and region != found:
        yield _make_finding(
            document,
            f"the queue is in {found}, and awsRegion is {region}: KEDA cannot read its length",
            f"set awsRegion to {found}",
        )


def _find_broken_promise(document: Document, metadata: dict[str, Any], promise: Promise) -> Iterator[Finding]:
    length = to_number(metadata.get("queueLength", DEFAULT_QUEUE_LENGTH))
    if length is not None and length > promise.target:
        seconds = length / promise.messages_per_second
        limit = f", at most {promise.rate:g} a second" if math.isfinite(promise.rate) else ""
        yield _make_finding(
            document,
            f"queueLength is {length:.15g}: one container then needs {seconds:,.0f} s for its messages, and service "
            f"{promise.service} promises {promise.max_wait_seconds:g} s ({promise.slots} slots, "
            f"{promise.seconds_per_message:g} s for each message{limit})",
            f"set queueLength to {math.floor(promise.target)}",
            milder="warning",
        )


def _find_slow_start(document: Document, worker: Workload | None, promise: Promise) -> Iterator[Finding]:
    polling = to_number(find(document.value, "spec", "pollingInterval") or DEFAULT_POLLING_SECONDS) or 0
    delays = [
        to_number(find(row, probe, "initialDelaySeconds")) or 0
        for _, row in (worker.workers if worker else ())
        for probe in ("readinessProbe", "startupProbe")
    ]
    start = max(delays, default=0)
    later = f", the worker becomes ready {start:g} s after its start at the earliest" if start else ""
    if polling + start > promise.max_wait_seconds:
        yield _make_finding(
            document,
            f"minReplicaCount is 0: KEDA looks at the queue every {polling:g} s{later}, and service {promise.service} "
            f"promises {promise.max_wait_seconds:g} s",
            "set minReplicaCount to 1, or lower pollingInterval and initialDelaySeconds",
            milder="warning",
        )


def _make_finding(document: Document, message: str, remedy: str, milder: Severity | None = None) -> Finding:
    return Finding(
        code="SP204", resource=_name(document), message=message, remedy=remedy, place=document.place, milder=milder
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


def find_single_zone(workload: Workload, *, is_scaled: bool) -> Iterator[Finding]:
    """SP207: all pods of a Deployment can run only in one zone."""
    replicas = to_number(find(workload.document.value, "spec", "replicas"))
    zone = find(workload.pod, "nodeSelector", ZONE_LABEL)
    if zone is not None and (is_scaled or (replicas or 1) > 1):
        yield Finding(
            code="SP207",
            resource=workload.resource,
            message=f"nodeSelector keeps all its pods in zone {zone}: no worker runs while this zone fails",
            remedy="remove the zone from nodeSelector, and add topologySpreadConstraints",
            place=workload.document.place,
        )


def _selects(document: Document, workload: Workload, labels: dict[str, Any]) -> bool:
    selector = find_table(document.value, "spec", "selector")
    if selector.get("matchExpressions"):
        return True  # not evaluated, and it may well select them
    namespaces = {str(find(one.value, "metadata", "namespace")) for one in (document, workload.document)}
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
