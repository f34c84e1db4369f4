"""Where a process runs: the metadata of its ECS task, or the variables of its pod on Kubernetes."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from smartpipe.cli.logs import JsonFormatter
from smartpipe.telemetry.prometheus import OPENMETRICS, TEXT, render
from smartpipe.telemetry.resource import ProcessResource, describe_task, read_resource
from tests.support.ecs_agent import METADATA, TASK, Answer, FakeEcsAgent
from tests.support.loopback import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

CLUSTER = "arn:aws:ecs:eu-west-1:123456789012:cluster/shop"
ATTRIBUTES = {
    "aws.ecs.task.arn": TASK,
    "aws.ecs.task.id": "5f0c1bda5d3f4f6c9f5e0d6f7a3f1c55",
    "aws.ecs.cluster.arn": CLUSTER,
    "aws.ecs.task.family": "films",
    "aws.ecs.task.revision": "26",
    "aws.ecs.launchtype": "fargate",
    "cloud.availability_zone": "eu-west-1a",
}
POD = {"K8S_POD_NAME": "billing-5d9f-x2x", "K8S_NAMESPACE_NAME": "shop", "K8S_NODE_NAME": "ip-10-0-1-2"}


@pytest.fixture
def agent() -> Iterator[FakeEcsAgent]:
    with FakeEcsAgent() as agent:
        yield agent


def test_the_metadata_of_a_fargate_task_become_attributes_of_opentelemetry() -> None:
    assert describe_task(METADATA) == ATTRIBUTES


def test_the_arn_of_a_cluster_follows_from_its_name_as_agents_on_ec2_report_it() -> None:
    found = describe_task({"Cluster": "shop", "TaskARN": TASK, "LaunchType": "EC2"})

    assert (found["aws.ecs.cluster.arn"], found["aws.ecs.launchtype"]) == (CLUSTER, "ec2")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"TaskARN": None, "Cluster": 7, "Family": ["a"], "LaunchType": {}, "Revision": ""},
        {"TaskARN": "task", "Cluster": "shop"},
    ],
)
def test_values_of_other_types_are_left_out(metadata: dict[str, object]) -> None:
    assert describe_task(metadata) == {}


def test_the_metadata_are_read_from_the_endpoint_of_the_task(agent: FakeEcsAgent) -> None:
    found = read_resource({"ECS_CONTAINER_METADATA_URI_V4": agent.metadata_uri})

    assert found == ProcessResource(ATTRIBUTES)


def test_a_throttled_request_for_metadata_is_repeated(agent: FakeEcsAgent) -> None:
    agent.metadata_script.append(Answer({}, 429))

    assert read_resource({"ECS_CONTAINER_METADATA_URI_V4": agent.metadata_uri}).attributes == ATTRIBUTES


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer({}, 404), "status 404"),
        (Answer({}, 200, delay_seconds=3), "no answer within 1 s"),
        (Answer([]), "the response is not a JSON object"),
        (Answer(b"<html>"), "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        (Answer(b"[" * 100_000), "RecursionError: maximum recursion depth exceeded while decoding a JSON array"),
    ],
)
def test_metadata_that_cannot_be_read_are_a_problem_that_names_the_variable(
    agent: FakeEcsAgent, answer: Answer, reason: str
) -> None:
    agent.metadata_script.append(answer)

    found = read_resource({"ECS_CONTAINER_METADATA_URI_V4": agent.metadata_uri})

    prefix = "Cannot read the metadata of the ECS task at ECS_CONTAINER_METADATA_URI_V4: "
    assert found.attributes == {}
    assert found.problem.startswith(prefix + reason)


@pytest.mark.parametrize("uri", ["nonsense", "http://", "http://[", "http://host:port", "https://169.254.170.2/v4"])
def test_a_wrong_address_of_the_metadata_is_a_problem(uri: str) -> None:
    found = read_resource({"ECS_CONTAINER_METADATA_URI_V4": uri})

    assert not found.attributes
    assert found.problem


def test_an_endpoint_that_refuses_connections_is_a_problem() -> None:
    found = read_resource({"ECS_CONTAINER_METADATA_URI_V4": f"http://127.0.0.1:{free_port()}/v4/x"})

    assert "ConnectionRefusedError" in found.problem


def test_the_variables_of_a_pod_become_attributes_of_opentelemetry() -> None:
    assert read_resource({**POD, "K8S_NODE_NAME": " "}) == ProcessResource(
        {"k8s.pod.name": "billing-5d9f-x2x", "k8s.namespace.name": "shop"}
    )


def test_labels_contain_no_account_id() -> None:
    labels = ProcessResource(ATTRIBUTES).labels

    assert labels == {
        "aws_ecs_cluster_name": "shop",
        "aws_ecs_launchtype": "fargate",
        "aws_ecs_task_family": "films",
        "aws_ecs_task_id": "5f0c1bda5d3f4f6c9f5e0d6f7a3f1c55",
        "aws_ecs_task_revision": "26",
        "cloud_availability_zone": "eu-west-1a",
    }
    assert "123456789012" not in str(labels)


def test_target_info_is_an_info_in_openmetrics_and_a_gauge_in_the_older_text() -> None:
    families = read_resource(POD).collect()
    sample = 'target_info{k8s_namespace_name="shop",k8s_node_name="ip-10-0-1-2",k8s_pod_name="billing-5d9f-x2x"} 1'

    assert render(families, TEXT).splitlines()[1:] == ["# TYPE target_info gauge", sample]
    assert render(families, OPENMETRICS).splitlines() == [
        "# HELP target The place where this target runs.",
        "# TYPE target info",
        sample,
        "# EOF",
    ]


def test_on_a_laptop_there_are_no_attributes_and_no_metric() -> None:
    found = read_resource({"PATH": "/bin"})

    assert (found, found.collect(), found.labels) == (ProcessResource({}), [], {})


def test_each_line_of_json_has_the_labels_and_a_field_of_the_caller_replaces_one() -> None:
    formatter = JsonFormatter(labels=read_resource(POD).labels)
    record = logging.LogRecord("shop", logging.INFO, "", 0, "hello", None, None)
    record.k8s_pod_name = "mine"

    line = json.loads(formatter.format(record))

    assert line["message"] == "hello"
    assert (line["k8s_pod_name"], line["k8s_namespace_name"]) == ("mine", "shop")
