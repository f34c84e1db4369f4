"""Kubernetes manifests of services: Deployment, ServiceAccount, PodDisruptionBudget, and a scaler of KEDA. Pure.

Sources: Kubernetes API reference 1.37; KEDA 2.21, "ScaledObject specification" and "AWS SQS Queue".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from smartpipe.deploy.yaml import write_documents
from smartpipe.names import is_arn, region_in
from smartpipe.telemetry.resource import POD_VARIABLES
from smartpipe.topology.export.portable import make_unique

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.deploy.place import Place
    from smartpipe.deploy.workloads import Scaling, Workload

USER_ID = 10001
"""The user of the containers; the Dockerfile has the same."""
MIN_STABILIZATION_SECONDS = 300
"""The default of Kubernetes for scaling down."""
MAX_STABILIZATION_SECONDS = 3_600
"""The maximum of stabilizationWindowSeconds."""
DEFAULT_POLLING_SECONDS = 30
"""The default of KEDA's pollingInterval."""
LIVENESS_SECONDS = 10
MIN_LIVENESS_FAILURES = 6
_SPOT_LABELS = {"eks.amazonaws.com/capacityType": "SPOT", "karpenter.sh/capacity-type": "spot"}
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_MAX_NAME = 52
"""Longer names of Deployments leave no room for the suffixes of ReplicaSets and Pods in a label of 63 characters."""


def write_manifests(workloads: Sequence[Workload], producers: Sequence[str], place: Place) -> str:
    """Return the manifests of all workloads as one file.

    Args:
        producers: The names of services without handlers. The header says that they are left out.
    """
    names = name_workloads(workloads)
    header = _header(", ".join(one.name for one in workloads))
    if producers:
        header.append(f"Without {', '.join(producers)}: no worker runs a service without handlers.")
    return write_documents(header, [document for one in workloads for document in _build(one, names[one.name], place)])


def write_files(workloads: Sequence[Workload], place: Place) -> dict[str, str]:
    """Return the texts of a directory by the names of its files: one for each workload, and one for Kustomize."""
    names = name_workloads(workloads)
    files = {
        f"{names[one.name]}.yaml": write_documents(_header(one.name), _build(one, names[one.name], place))
        for one in workloads
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(files),
    }
    return {**files, "kustomization.yaml": write_documents(_header("all services"), [kustomization])}


def _header(described: str) -> list[str]:
    return [
        f"Kubernetes manifests of {described}.",
        "Written by `smartpipe deploy export --format kubernetes`; run it again when services or settings change.",
        "Keep your own changes in an overlay of Kustomize, because the next export replaces this file.",
    ]


def _build(one: Workload, name: str, place: Place) -> list[dict[str, Any]]:
    documents = [_service_account(one, name), _deployment(one, name), _disruption_budget(name)]
    if one.options.max_wait_seconds is not None:
        documents += [_authentication(name), _scaled_object(one, name, place)]
    return documents


def name_workloads(workloads: Sequence[Workload]) -> dict[str, str]:
    """Return the name in Kubernetes of each workload: lower-case letters, digits and hyphens."""
    wanted = {one.name: _NOT_IN_NAMES.sub("-", one.name.lower()).strip("-") or "service" for one in workloads}
    valid = {name: one if one[0].isalpha() else f"s{one}" for name, one in wanted.items()}
    return make_unique(valid, longest=_MAX_NAME)


def _metadata(name: str, **more: Any) -> dict[str, Any]:
    labels = {**_selector(name), "app.kubernetes.io/managed-by": "smartpipe"}
    return {"name": name, "labels": labels, **more}


def _selector(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}


def _service_account(one: Workload, name: str) -> dict[str, Any]:
    role = {"annotations": {"eks.amazonaws.com/role-arn": one.options.role}} if one.options.role else {}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(name, **role),
        "automountServiceAccountToken": False,
    }


def _deployment(one: Workload, name: str) -> dict[str, Any]:
    """Return the Deployment; without ``replicas`` if a scaler sets them, because applying it would undo scaling."""
    scales = one.options.max_wait_seconds is not None
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(name),
        "spec": {
            **({} if scales else {"replicas": one.options.min}),
            "selector": {"matchLabels": _selector(name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": _selector(name)}, "spec": _pod(one, name)},
        },
    }


def _pod(one: Workload, name: str) -> dict[str, Any]:
    spread = {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": _selector(name)},
    }
    return {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": one.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"affinity": _prefer_spot()} if one.options.spot else {}),
        "topologySpreadConstraints": [spread],
        "containers": [_container(one, name)],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }


def _prefer_spot() -> dict[str, Any]:
    terms = [
        {"weight": 100, "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}}
        for key, value in _SPOT_LABELS.items()
    ]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}


def _container(one: Workload, name: str) -> dict[str, Any]:
    secrets = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": one.options.secret, "key": variable}}}
        for variable in one.secrets
    ]
    pod = [
        {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for variable, (_, path) in POD_VARIABLES.items()
    ]
    size = one.options.memory
    return {
        "name": name,
        "image": one.options.image,
        "command": list(one.command),
        "env": [*({"name": key, "value": value} for key, value in sorted(one.environment.items())), *pod, *secrets],
        "ports": [{"name": "health", "containerPort": one.port}],
        "startupProbe": {"httpGet": _path("/livez"), "periodSeconds": 2, "failureThreshold": 60},
        "livenessProbe": {
            "httpGet": _path("/livez"),
            "periodSeconds": LIVENESS_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": one.count_health_failures(LIVENESS_SECONDS, MIN_LIVENESS_FAILURES),
        },
        "readinessProbe": {"httpGet": _path("/readyz"), "periodSeconds": 10, "timeoutSeconds": 5},
        "resources": {
            "requests": {"cpu": f"{round(one.options.cpu * 1000)}m", "memory": size},
            "limits": {"memory": size},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - in the container
    }


def _path(path: str) -> dict[str, str]:
    return {"path": path, "port": "health"}


def _disruption_budget(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _selector(name)}},
    }


def _authentication(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": _metadata(name),
        "spec": {"podIdentity": {"provider": "aws"}},
    }


def _scaled_object(one: Workload, name: str, place: Place) -> dict[str, Any]:
    """Return the scaler: the queue that needs most containers decides.

    Messages in flight count, because otherwise a worker that has received everything would be scaled down while it
    handles it. The window for scaling down is at least the grace period, as far as Kubernetes allows
    it, so that no pod starts while others drain.
    """
    window = min(MAX_STABILIZATION_SECONDS, max(MIN_STABILIZATION_SECONDS, one.grace_seconds))
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _metadata(name),
        "spec": {
            "scaleTargetRef": {"name": name},
            "minReplicaCount": one.options.min,
            "maxReplicaCount": one.maximum,
            **_polling(one),
            "cooldownPeriod": max(MIN_STABILIZATION_SECONDS, one.grace_seconds),
            "advanced": {
                "horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": window}}}
            },
            "triggers": [_trigger(queue, name, place) for queue in one.queues],
        },
    }


def _polling(one: Workload) -> dict[str, int]:
    """Return the interval in which KEDA looks for the first message, if its default is too long for the promise.

    While pods run, the HorizontalPodAutoscaler asks for the numbers every 15 s, whatever the interval.
    """
    promise = one.options.max_wait_seconds
    if one.options.min or promise is None or promise >= 2 * DEFAULT_POLLING_SECONDS:
        return {}
    return {"pollingInterval": max(1, int(promise / 2))}


def _trigger(queue: Scaling, name: str, place: Place) -> dict[str, Any]:
    arn = queue.queue if is_arn(queue.queue) else None
    return {
        "type": "aws-sqs-queue",
        "metadata": {
            "queueURL": place.locate(queue.queue),
            "queueLength": str(queue.target),
            "awsRegion": region_in(arn) if arn else place.region,
            "scaleOnInFlight": "true",
        },
        "authenticationRef": {"name": name},
    }
