"""Real processes on ECS and on Kubernetes: log lines and metrics say where they run."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from tests.support.ecs_agent import TASK, Answer, FakeEcsAgent
from tests.support.otlp import OtlpReceiver
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Jobs
    from tests.support.processes import Process

TARGET_INFO = (
    'target_info{aws_ecs_cluster_name="shop",aws_ecs_launchtype="fargate",aws_ecs_task_family="films",'
    'aws_ecs_task_id="5f0c1bda5d3f4f6c9f5e0d6f7a3f1c55",aws_ecs_task_revision="26",'
    'cloud_availability_zone="eu-west-1a"} 1'
)


@pytest.fixture
def agent() -> Iterator[FakeEcsAgent]:
    with FakeEcsAgent() as agent:
        yield agent


def read_metrics(worker: Process) -> list[str]:
    url = (worker.logged("serving") or {})["url"]
    with urlopen(f"{url}/metrics", timeout=5) as response:
        return [line for line in response.read().decode().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_on_ecs_each_line_names_the_task_and_one_metric_describes_it(
    jobs: Jobs, agent: FakeEcsAgent, processes: str
) -> None:
    worker = jobs.start_worker("--processes", processes, ECS_CONTAINER_METADATA_URI_V4=agent.metadata_uri)
    jobs.post("one")
    jobs.wait_for("done")
    worker.wait_until(lambda: any(record["message"] == "working" for record in worker.records))

    lines = read_metrics(worker)

    assert [line for line in lines if "aws_ecs" in line or "cloud_" in line] == [TARGET_INFO]
    assert {record["aws_ecs_task_id"] for record in worker.records} == {"5f0c1bda5d3f4f6c9f5e0d6f7a3f1c55"}
    assert "123456789012" not in "".join(worker.lines)


def test_on_ecs_metrics_by_otlp_have_the_arns_of_the_conventions(jobs: Jobs, agent: FakeEcsAgent) -> None:
    with OtlpReceiver() as receiver:
        jobs.start_worker(
            ECS_CONTAINER_METADATA_URI_V4=agent.metadata_uri,
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_METRIC_EXPORT_INTERVAL="100",
            OTEL_RESOURCE_ATTRIBUTES="aws.ecs.task.family=mine",
        )
        until_blocking(lambda: receiver.received)
        found = receiver.last()

    assert found.resource["aws.ecs.task.arn"] == TASK
    assert found.resource["aws.ecs.cluster.arn"].endswith(":cluster/shop")
    assert (found.resource["aws.ecs.task.family"], found.resource["service.name"]) == ("mine", "jobs")
    assert not any("target" in name for name in found.metrics)


def test_metadata_that_do_not_answer_cost_one_warning_and_do_not_fail_the_start(
    jobs: Jobs, agent: FakeEcsAgent
) -> None:
    agent.metadata_script.append(Answer({}, 200, delay_seconds=5))

    worker = jobs.start_worker(ECS_CONTAINER_METADATA_URI_V4=agent.metadata_uri)

    assert (worker.logged("Cannot read the metadata of the ECS task") or {})["level"] == "warning"
    assert not any("target_info" in line for line in read_metrics(worker))


def test_on_kubernetes_each_line_names_the_pod(jobs: Jobs) -> None:
    worker = jobs.start_worker(K8S_POD_NAME="jobs-1", K8S_NAMESPACE_NAME="shop")

    assert {record["k8s_pod_name"] for record in worker.records} == {"jobs-1"}
    assert 'target_info{k8s_namespace_name="shop",k8s_pod_name="jobs-1"} 1' in read_metrics(worker)
