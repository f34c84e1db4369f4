"""Describe where this process runs: its task on Amazon ECS, or its pod on Kubernetes.

Sources: OpenTelemetry, "Semantic conventions", resource attributes of AWS ECS, of the cloud and of Kubernetes; Amazon
ECS Developer Guide, "Amazon ECS task metadata endpoint version 4".
"""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from smartpipe.escaping import shorten_text
from smartpipe.telemetry.families import Family, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

READ_SECONDS = 1.0
NO_ANSWER = f"no answer within {READ_SECONDS:g} s"
RETRY_SECONDS = 0.2
"""The endpoint refuses requests above 40 a second, as when many processes of a task start together."""
MAX_RESPONSE_BYTES = 1_048_576
MAX_CHARACTERS = 256
METADATA_URI = "ECS_CONTAINER_METADATA_URI_V4"
POD_VARIABLES = {
    "K8S_POD_NAME": ("k8s.pod.name", "metadata.name"),
    "K8S_NAMESPACE_NAME": ("k8s.namespace.name", "metadata.namespace"),
    "K8S_NODE_NAME": ("k8s.node.name", "spec.nodeName"),
}
"""The variables that describe a pod: the attribute of each, and the field from which Kubernetes sets it."""
CLUSTER_NAME = "aws.ecs.cluster.name"
"""Not an attribute of OpenTelemetry, whose ``aws.ecs.cluster.arn`` contains the account."""
ARNS = ("aws.ecs.task.arn", "aws.ecs.cluster.arn")
_TASK_FIELDS = {
    "Family": "aws.ecs.task.family",
    "Revision": "aws.ecs.task.revision",
    "AvailabilityZone": "cloud.availability_zone",
}


class ProcessResource(NamedTuple):
    """The resource attributes of this process, by their names in OpenTelemetry. Outside of ECS and Kubernetes: none.

    Args:
        problem: A sentence if the metadata of the task could not be read.
    """

    attributes: Mapping[str, str]
    problem: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """The attributes for logs and for Prometheus: names with underscores, and no account id.

        The name of the cluster is there in place of the ARNs of cluster and task.
        """
        found = {name: value for name, value in self.attributes.items() if name not in ARNS}
        cluster = self.attributes.get("aws.ecs.cluster.arn")
        if cluster is not None:
            found[CLUSTER_NAME] = cluster.rpartition("/")[2]
        return {name.replace(".", "_"): found[name] for name in sorted(found)}

    def collect(self) -> list[Family]:
        """Return ``target_info``, as OpenTelemetry calls it; nothing if there are no attributes."""
        if not self.attributes:
            return []
        return [Family("target_info", "info", "The place where this target runs.", [Sample(self.labels, 1)])]


@lru_cache(maxsize=1)
def find_resource() -> ProcessResource:
    """Return the resource of this process. The first call may take up to 1 s on ECS, and the others take no time."""
    return read_resource(os.environ)


def read_resource(environ: Mapping[str, str]) -> ProcessResource:
    """Return the resource that *environ* describes. Reads the metadata of a task for up to 1 s, and raises nothing."""
    attributes = {name: environ.get(variable, "").strip() for variable, (name, _) in POD_VARIABLES.items()}
    found = {name: shorten_text(value, MAX_CHARACTERS) for name, value in attributes.items() if value}
    uri = environ.get(METADATA_URI, "").strip()
    if not uri:
        return ProcessResource(found)
    result = _read_within_limit(f"{uri.rstrip('/')}/task")
    if isinstance(result, str):
        return ProcessResource(found, f"Cannot read the metadata of the ECS task at {METADATA_URI}: {result}")
    return ProcessResource({**describe_task(result), **found})


def describe_task(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the attributes of a task from the response of its metadata endpoint. Pure."""
    found = {name: metadata.get(field) for field, name in _TASK_FIELDS.items()}
    arn, cluster, launch_type = (metadata.get(field) for field in ("TaskARN", "Cluster", "LaunchType"))
    if isinstance(launch_type, str):
        found["aws.ecs.launchtype"] = launch_type.lower()
    if isinstance(arn, str) and arn.startswith("arn:"):
        found |= {"aws.ecs.task.arn": arn, "aws.ecs.task.id": arn.rpartition("/")[2]}
        if isinstance(cluster, str) and cluster and not cluster.startswith("arn:"):
            cluster = f"{':'.join(arn.split(':')[:5])}:cluster/{cluster}"
    if isinstance(cluster, str) and cluster.startswith("arn:"):
        found["aws.ecs.cluster.arn"] = cluster
    return {name: shorten_text(text, MAX_CHARACTERS) for name, text in found.items() if isinstance(text, str) and text}


def _read_within_limit(url: str) -> Mapping[str, Any] | str:
    """Return the JSON object at *url*, or the reason why there is none. A thread bounds the time of all steps."""
    results: list[Mapping[str, Any] | str] = []
    until = time.monotonic() + READ_SECONDS

    def read() -> None:
        result = _read_object(url)
        while result == "429" and time.monotonic() + RETRY_SECONDS < until:
            time.sleep(RETRY_SECONDS)
            result = _read_object(url)
        results.append(result)

    thread = Thread(target=read, name="smartpipe-resource", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        return str(error)
    thread.join(READ_SECONDS)
    result = results[0] if results else NO_ANSWER
    return f"status {result}" if isinstance(result, str) and result.isdecimal() else result


def _read_object(url: str) -> Mapping[str, Any] | str:
    """Return the JSON object at *url*, the status of a response that is not 200, or the text of an error."""
    from http.client import HTTPConnection, HTTPException  # only on ECS

    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            return "it is not an http:// URL"
        connection = HTTPConnection(parts.hostname, parts.port, timeout=READ_SECONDS)
        try:
            connection.request("GET", parts.path)
            response = connection.getresponse()
            text = response.read(MAX_RESPONSE_BYTES)
        finally:
            connection.close()
        if response.status != 200:  # noqa: PLR2004
            return str(response.status)
        found = json.loads(text)
    except TimeoutError:
        return NO_ANSWER
    except (OSError, HTTPException, ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return found if isinstance(found, dict) else "the response is not a JSON object"
