"""Each rule of ``smartpipe doctor`` about manifests, with a bad and a good example."""

from __future__ import annotations

import json
import re
import sys
from datetime import date
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Event, Service, Topic
from smartpipe.doctor.examine import examine
from smartpipe.doctor.lookup import to_bytes, to_quantity, to_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe.doctor.findings import Finding
    from smartpipe.doctor.report import Report

pytest.importorskip("yaml", reason="needs the extra doctor")

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: shop, tier: worker}}
    spec:
      terminationGracePeriodSeconds: 30
      containers:
        - name: worker
          command: [smartpipe, worker, "shop:service"]
          env: []
          livenessProbe: {failureThreshold: 6, httpGet: {path: /livez, port: 8080}}
          readinessProbe: {httpGet: {path: /readyz, port: 8080}}
          resources: {limits: {memory: 512Mi, cpu: "1"}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: shop}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app: shop}}
"""
SCALED_OBJECT = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: shop}
spec:
  cooldownPeriod: 300
  scaleTargetRef: {name: shop}
  triggers:
    - type: aws-sqs-queue
      metadata: {queueURL: "https://sqs", scaleOnInFlight: "true"}
"""
HPA = """
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: shop}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: shop}
  metrics:
    - type: Resource
      resource: {name: memory}
"""
TASK: dict[str, Any] = {
    "family": "shop",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": "1024",
    "memory": "2048",
    "containerDefinitions": [{"name": "worker", "command": ["smartpipe", "worker"], "stopTimeout": 30}],
}
TEMPLATE = """
Resources:
  Queue:
    Type: AWS::SQS::Queue
    Properties: {VisibilityTimeout: 180, RedrivePolicy: {deadLetterTargetArn: "arn:aws:sqs:a:1:d", maxReceiveCount: 5}}
  Function:
    Type: AWS::Lambda::Function
    Properties: {Timeout: 30}
  Mapping:
    Type: AWS::Lambda::EventSourceMapping
    Properties:
      EventSourceArn: !GetAtt Queue.Arn
      FunctionName: !Ref Function
      FunctionResponseTypes: [ReportBatchItemFailures]
"""
SAM = """
Transform: AWS::Serverless-2016-10-31
Globals: {Function: {Timeout: 30}}
Resources:
  Queue:
    Type: AWS::SQS::Queue
    Properties: {VisibilityTimeout: 180, RedrivePolicy: {deadLetterTargetArn: "arn:aws:sqs:a:1:d", maxReceiveCount: 5}}
  Function:
    Type: AWS::Serverless::Function
    Properties:
      Events:
        Orders:
          Type: SQS
          Properties: {Queue: !GetAtt Queue.Arn, FunctionResponseTypes: [ReportBatchItemFailures]}
"""
TERRAFORM: dict[str, Any] = {
    "resource": {
        "aws_sqs_queue": {
            "orders": {
                "visibility_timeout_seconds": 180,
                "redrive_policy": '{"deadLetterTargetArn": "arn:aws:sqs:a:1:d", "maxReceiveCount": 5}',
            }
        },
        "aws_lambda_function": {"orders": {"timeout": 30}},
        "aws_lambda_event_source_mapping": {
            "orders": {
                "event_source_arn": "${aws_sqs_queue.orders.arn}",
                "function_name": "${aws_lambda_function.orders.arn}",
                "function_response_types": ["ReportBatchItemFailures"],
            }
        },
        "aws_ecs_task_definition": {
            "shop": {
                "requires_compatibilities": ["FARGATE"],
                "cpu": 1024,
                "memory": 2048,
                "container_definitions": '[{"name": "worker", "command": ["smartpipe", "worker"], "stopTimeout": 30}]',
            }
        },
        "aws_ecs_service": {
            "shop": {"desired_count": 2, "network_configuration": {"subnets": ["subnet-1", "subnet-2"]}}
        },
    }
}
COMPOSE = """
services:
  shop:
    command: [smartpipe, worker]
    stop_grace_period: 30s
    deploy:
      replicas: 2
      update_config: {parallelism: 1, order: start-first}
      restart_policy: {condition: any}
      resources: {limits: {cpus: "1", memory: 512M}}
"""
DOCKERFILE = """
FROM python:3.13-slim
USER 10001
ENTRYPOINT ["smartpipe", "worker"]
"""


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DRAIN_SECONDS", "CONCURRENCY", "PROCESSES"):
        monkeypatch.delenv(f"SMARTPIPE_{name}", raising=False)


@pytest.fixture
def diagnose(tmp_path: Path) -> Any:
    def run(**files: str) -> Report:
        paths = []
        for key, text in files.items():
            paths.append(tmp_path / {"dockerfile": "Dockerfile", "json": "task.json"}.get(key, f"{key}.yaml"))
            paths[-1].write_text(dedent(text))
        return examine([], paths, (), date(2026, 11, 27))

    return run


def codes(report: Report) -> list[str]:
    return [one.code for one in report.findings]


def change(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    "files",
    [
        {"deployment": DEPLOYMENT},
        {"deployment": DEPLOYMENT, "keda": SCALED_OBJECT},
        {"deployment": DEPLOYMENT, "hpa": HPA},
        {"json": json.dumps(TASK)},
        {"template": TEMPLATE},
        {"template": SAM},
        {"json": json.dumps(TERRAFORM)},
        {"compose": COMPOSE},
        {"dockerfile": DOCKERFILE},
    ],
    ids=lambda files: "+".join(files),
)
def test_good_manifests_have_no_findings(files: dict[str, str], diagnose: Any) -> None:
    report = diagnose(**files)

    assert report.findings == []
    assert [one.partition(":")[0] for one in report.not_seen] == ["settings of other environments", "declared services"]


@pytest.mark.parametrize(
    ("old", "new", "code", "text"),
    [
        ("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 29", "SP201", "29 s"),
        ("env: []", "env: [{name: SMARTPIPE_DRAIN_SECONDS, value: '26'}]", "SP201", "drains for 26 s"),
        ('"shop:service"]', '"shop:service", --drain-seconds, "60"]', "SP201", "drains for 60 s"),
        ('"shop:service"]', "--drain-seconds=60]", "SP201", "drains for 60 s"),
        ("env: []", "lifecycle: {preStop: {exec: {command: [sleep, '5']}}}", "SP201", "of which 5 s"),
        ("env: []", "lifecycle: {preStop: {sleep: {seconds: 5}}}", "SP201", "of which 5 s"),
        ('[smartpipe, worker, "shop:service"]', '[sh, -c, "smartpipe worker"]', "SP202", "runs in a shell"),
        ("env: []", "securityContext: {runAsUser: 0}", "SP202", "as root"),
        ("path: /livez", "path: /readyz", "SP203", "the path of readiness"),
        ("failureThreshold: 6", "failureThreshold: 2", "SP203", "answer for 20 s"),
        ("{matchLabels: {app: shop}}", "{matchLabels: {app: other}}", "SP207", "PodDisruptionBudget"),
        ("{name: shop}\nspec:\n  maxUn", "{name: shop, namespace: b}\nspec:\n  maxUn", "SP207", "PodDisruptionBudget"),
        ("memory: 512Mi", "memory: 16Mi", "SP208", "30 MiB"),
    ],
)
def test_mistakes_in_a_deployment_are_found(old: str, new: str, code: str, text: str, diagnose: Any) -> None:
    report = diagnose(deployment=change(DEPLOYMENT, old, new))

    [finding] = report.findings
    assert finding.code == code
    assert text in finding.message


def test_several_processes_need_a_whole_cpu(diagnose: Any) -> None:
    two = change(DEPLOYMENT, "env: []", "env: [{name: SMARTPIPE_PROCESSES, value: '2'}]")

    assert codes(diagnose(deployment=two)) == []
    assert codes(diagnose(deployment=change(two, 'cpu: "1"', "cpu: 500m"))) == ["SP208"]


def test_exec_replaces_the_shell(diagnose: Any) -> None:
    command = '[sh, -c, "cd /app && exec smartpipe worker"]'

    assert codes(diagnose(deployment=change(DEPLOYMENT, '[smartpipe, worker, "shop:service"]', command))) == []


def test_one_replica_needs_no_disruption_budget_unless_it_is_scaled(diagnose: Any) -> None:
    one = change(DEPLOYMENT.partition("---")[0], "replicas: 2", "replicas: 1")

    assert codes(diagnose(deployment=one)) == []
    assert codes(diagnose(deployment=one, keda=SCALED_OBJECT)) == ["SP207"]


@pytest.mark.parametrize(
    ("old", "new", "code", "text"),
    [
        ('scaleOnInFlight: "true"', 'scaleOnInFlight: "false"', "SP204", "scaleOnInFlight is false"),
        ('scaleOnInFlight: "true"', "scaleOnInFlight: false", "SP204", "scaleOnInFlight is false"),
        ('scaleOnInFlight: "true"', "identityOwner: operator", "SP204", "identityOwner"),
        ("cooldownPeriod: 300", "cooldownPeriod: 10", "SP204", "cooldownPeriod is 10 s"),
        ("- type: aws-sqs-queue", "- {type: cpu, metadata: {value: '60'}}\n    - type: aws-sqs-queue", "SP205", "CPU"),
    ],
)
def test_mistakes_in_a_scaled_object_are_found(old: str, new: str, code: str, text: str, diagnose: Any) -> None:
    report = diagnose(deployment=DEPLOYMENT, keda=change(SCALED_OBJECT, old, new))

    [finding] = report.findings
    assert (finding.code, finding.place.file) == (code, "keda.yaml")
    assert text in finding.message


def test_an_autoscaler_by_cpu_usage_is_found(diagnose: Any) -> None:
    bad = change(HPA, "name: memory", "name: cpu")

    assert codes(diagnose(deployment=DEPLOYMENT, hpa=bad)) == ["SP205"]
    api = change(DEPLOYMENT, '[smartpipe, worker, "shop:service"]', "[uvicorn, app]")
    assert codes(diagnose(deployment=api, hpa=bad)) == []


def test_containers_that_run_other_programs_are_not_judged(diagnose: Any) -> None:
    other = change(DEPLOYMENT, '[smartpipe, worker, "shop:service"]', "[uvicorn, 'shop:app']")

    report = diagnose(deployment=change(other, "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 1"))

    assert report.findings == []


def test_a_command_in_the_image_is_not_guessed(diagnose: Any) -> None:
    hidden = change(DEPLOYMENT, '          command: [smartpipe, worker, "shop:service"]\n', "")
    for probe in ("path: /livez", "path: /readyz"):
        hidden = change(hidden, probe, "path: /health")

    report = diagnose(deployment=hidden)

    assert report.findings == []
    assert any("it is in the image" in one and "deployment.yaml:2" in one for one in report.not_seen)


NO_PROTECTION = {"SMARTPIPE_PROTECT_TASK": "false"}
LONG_DRAIN = {"SMARTPIPE_DRAIN_SECONDS": "300"}


@pytest.mark.parametrize("timeout", [120, 300])
@pytest.mark.parametrize(
    ("arguments", "variables", "protected"),
    [
        ([], {}, False),
        ([], NO_PROTECTION, False),
        (["--protect-task"], NO_PROTECTION, True),
        ([], {"SMARTPIPE_PROTECT_TASK": "True"}, True),
        ([], {"SMARTPIPE_PROTECT_TASK": "1"}, True),
    ],
)
def test_a_drain_over_120_s_on_fargate_is_an_error_that_names_task_protection_unless_it_is_on(
    timeout: int, arguments: list[str], variables: dict[str, str], protected: bool, diagnose: Any
) -> None:
    container = TASK["containerDefinitions"][0]
    changed = container | {
        "command": [*container["command"], *arguments],
        "stopTimeout": timeout,
        "environment": [{"name": name, "value": value} for name, value in {**LONG_DRAIN, **variables}.items()],
    }

    [found] = diagnose(json=json.dumps(TASK | {"containerDefinitions": [changed]})).findings

    assert (found.code, found.severity) == ("SP201", "error")
    assert ("run smartpipe worker --protect-task" in found.remedy) != protected
    assert ("does not hold back Spot interruptions" in found.remedy) == protected


@pytest.mark.parametrize(
    "command",
    [
        "[python, -m, smartpipe, worker]",
        "[/app/.venv/bin/smartpipe, worker, shop.worker]",
        "[opentelemetry-instrument, smartpipe, worker]",
        '[sh, -c, "set -e\\nexec smartpipe worker"]',
        '[sh, -c, "alembic upgrade head; exec smartpipe worker;"]',
    ],
)
def test_each_way_to_start_a_worker_is_known(command: str, diagnose: Any) -> None:
    with_long_drain = change(DEPLOYMENT, "env: []", "env: [{name: SMARTPIPE_DRAIN_SECONDS, value: 26}]")

    report = diagnose(deployment=change(with_long_drain, '[smartpipe, worker, "shop:service"]', command))

    assert codes(report) == ["SP201"]


@pytest.mark.parametrize(
    "command",
    [
        '[smartpipe, topology, apply, --yes, "shop.worker:service"]',
        '[smartpipe, relay, --metrics, "worker:service"]',
        '[sh, -c, "smartpipe health && celery worker"]',
        "[smartpipe, publish, worker]",
    ],
)
def test_other_commands_of_smartpipe_are_no_workers(command: str, diagnose: Any) -> None:
    pod = (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: job}}\nspec:\n  containers: [{{name: a, command: {command}}}]\n"
    )

    report = diagnose(pod=f"{pod}  terminationGracePeriodSeconds: 5\n")

    assert report.findings == []
    assert not any("command of" in one for one in report.not_seen)


@pytest.mark.parametrize(
    "words", ["args: [worker]", "command: [/app/start.sh]", 'command: [sh, -c, "./run.sh worker"]']
)
def test_a_command_of_the_image_or_of_a_script_is_not_seen_unless_a_setting_shows_a_worker(
    words: str, diagnose: Any
) -> None:
    pod = f"apiVersion: v1\nkind: Pod\nmetadata: {{name: shop}}\nspec:\n  containers: [{{name: a, {words}, env: []}}]\n"
    unknown = diagnose(pod=pod)
    known = diagnose(pod=change(pod, "env: []", "env: [{name: SMARTPIPE_DRAIN_SECONDS, value: 60}]"))

    assert codes(unknown) == []
    assert any("the command of Pod shop" in one for one in unknown.not_seen)
    assert "SP201" in codes(known)


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        ([{"Ref": "Program"}, "shop:service"], True),
        (["smartpipe", {"Ref": "Command"}], True),
        (["/app/.venv/bin/smartpipe", "${COMMAND}"], True),
        ({"Fn::Split": [" ", {"Ref": "Command"}]}, True),
        (["smartpipe", "worker", {"Ref": "Target"}], False),
        (["nginx", "-g", {"Ref": "Options"}], False),
        (["sh", "-c", "echo $HOME"], False),
    ],
)
def test_a_command_that_is_a_variable_is_not_seen(command: Any, hidden: bool, diagnose: Any) -> None:
    container = {key: one for key, one in TASK["containerDefinitions"][0].items() if key != "environment"}
    task = TASK | {"containerDefinitions": [container | {"command": command}]}
    service = {"services": {"shop": {"command": command, "stop_grace_period": "1m"}}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop"}}
    pod["spec"] = {"containers": [{"name": "a", "command": command}]}

    for document in (task, service, pod):
        report = diagnose(json=json.dumps(document))

        assert any("the command of" in one and "it has a variable" in one for one in report.not_seen) == hidden


def test_a_grace_period_without_a_value_is_the_default(diagnose: Any) -> None:
    with_long_drain = change(DEPLOYMENT, "env: []", "env: [{name: SMARTPIPE_DRAIN_SECONDS, value: 26}]")

    assert codes(diagnose(deployment=change(with_long_drain, "PeriodSeconds: 30", "PeriodSeconds:"))) == ["SP201"]


def test_deployments_of_one_name_in_several_namespaces_are_all_examined(diagnose: Any) -> None:
    deployment = DEPLOYMENT.partition("---")[0]
    others = [change(deployment, "{name: shop}\nspec", f"{{name: shop, namespace: {one}}}\nspec") for one in "ab"]

    report = diagnose(deployment="---".join([*others, DEPLOYMENT]))

    assert codes(report) == ["SP207", "SP207"]


def test_the_cooldown_counts_only_if_the_last_worker_may_be_stopped(diagnose: Any) -> None:
    def scaled(setting: str) -> list[str]:
        return codes(diagnose(deployment=DEPLOYMENT, scaler=change(SCALED_OBJECT, "cooldownPeriod: 300", setting)))

    assert scaled("cooldownPeriod: 0") == ["SP204"]
    assert scaled("cooldownPeriod: 0\n  minReplicaCount: 1") == []
    assert scaled("cooldownPeriod: 0\n  minReplicaCount: 1\n  idleReplicaCount: 0") == ["SP204"]


def test_the_scaler_of_another_program_is_not_judged(diagnose: Any) -> None:
    scaler = change(SCALED_OBJECT, '"true"', '"false"')
    other = change(DEPLOYMENT, '[smartpipe, worker, "shop:service"]', "[celery, worker]")

    assert codes(diagnose(scaler=scaler)) == ["SP204"]
    assert codes(diagnose(deployment=other, scaler=scaler)) == []


def test_an_autoscaler_by_the_cpu_of_one_container_is_found(diagnose: Any) -> None:
    one = change(HPA, "resource: {name: memory}", "containerResource: {name: cpu, container: worker}")

    assert codes(diagnose(deployment=DEPLOYMENT, scaler=one)) == ["SP205"]


def test_variables_from_elsewhere_are_not_seen(diagnose: Any) -> None:
    report = diagnose(deployment=change(DEPLOYMENT, "env: []", "envFrom: [{configMapRef: {name: shop}}]"))

    assert any("come from elsewhere" in one for one in report.not_seen)


@pytest.mark.parametrize(
    "files",
    [
        {"compose": change(COMPOSE, "30s", "30s\n    environment: {SMARTPIPE_DRAIN_SECONDS: '${DRAIN:-60}'}")},
        {
            "template": "Resources:\n  A:\n    Type: AWS::ECS::TaskDefinition\n    Properties:\n      "
            "ContainerDefinitions: [{Name: a, Command: [smartpipe, worker], "
            "Environment: [{Name: SMARTPIPE_PROCESSES, Value: !Ref Processes}]}]\n"
        },
    ],
)
def test_a_setting_that_follows_from_a_variable_is_not_seen(files: dict[str, str], diagnose: Any) -> None:
    report = diagnose(**files)

    assert report.findings == []
    assert any("come from elsewhere" in one for one in report.not_seen)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"stopTimeout": 29}, "SP201", "stopTimeout is 29 s"),
        ({"stopTimeout": 300}, "SP201", "at most 120 s"),
        ({"environment": [{"name": "SMARTPIPE_DRAIN_SECONDS", "value": "116"}], "stopTimeout": 120}, "SP201", "116 s"),
        ({"entryPoint": ["/bin/sh", "-c"], "command": ["smartpipe worker"]}, "SP202", "runs in a shell"),
        ({"memory": 16}, "SP208", "30 MiB"),
        ({"cpu": 512, "environment": [{"name": "SMARTPIPE_PROCESSES", "value": "4"}]}, "SP208", "0.5 CPU"),
    ],
)
def test_mistakes_in_a_task_definition_are_found_in_json_and_cloudformation(
    changes: dict[str, Any], code: str, text: str, diagnose: Any
) -> None:
    container = TASK["containerDefinitions"][0] | changes
    task = TASK | {"containerDefinitions": [container]}
    upper = {
        "RequiresCompatibilities": ["FARGATE"],
        "ContainerDefinitions": [{key[0].upper() + key[1:]: value for key, value in container.items()}],
    }
    template = {"Resources": {"Task": {"Type": "AWS::ECS::TaskDefinition", "Properties": upper}}}

    for document in (task, template):
        [finding] = diagnose(json=json.dumps(document)).findings
        assert finding.code == code
        assert text in finding.message


def test_tasks_on_ec2_may_stop_for_longer_than_two_minutes(diagnose: Any) -> None:
    container = TASK["containerDefinitions"][0] | {"stopTimeout": 300}
    task = TASK | {"requiresCompatibilities": ["EC2"], "containerDefinitions": [container]}

    assert codes(diagnose(json=json.dumps(task))) == []


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("VisibilityTimeout: 180", "VisibilityTimeout: 179", "is 179 s"),
        ("{VisibilityTimeout: 180, ", "{", "is 30 s"),
        (
            "FunctionName: !Ref Function",
            "FunctionName: !Ref Function\n      MaximumBatchingWindowInSeconds: 5",
            "185 s",
        ),
        (
            "FunctionName: !Ref Function",
            "FunctionName: {Ref: Function}\n      MaximumBatchingWindowInSeconds: 5",
            "185",
        ),
        ("\n      FunctionResponseTypes: [ReportBatchItemFailures]", "", "ReportBatchItemFailures"),
    ],
)
def test_mistakes_in_an_event_source_mapping_are_found(old: str, new: str, text: str, diagnose: Any) -> None:
    [finding] = diagnose(template=change(TEMPLATE, old, new)).findings

    assert (finding.code, finding.resource) == ("SP206", "Mapping")
    assert text in finding.message


def test_a_queue_outside_of_the_template_is_not_seen(diagnose: Any) -> None:
    report = diagnose(template=change(TEMPLATE, "!GetAtt Queue.Arn", "arn:aws:sqs:eu-west-1:123456789012:shop"))

    assert report.findings == []
    assert any("timeouts of queue and function of Mapping" in one for one in report.not_seen)


def test_event_sources_that_are_not_queues_are_not_judged(diagnose: Any) -> None:
    stream = change(TEMPLATE, "!GetAtt Queue.Arn", "arn:aws:kinesis:eu-west-1:123456789012:stream/shop")

    assert codes(diagnose(template=change(stream, "[ReportBatchItemFailures]", "[]"))) == []


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("{command: smartpipe worker}", ["SP201"]),
        ("{command: smartpipe worker, stop_grace_period: 30s}", []),
        ("{command: smartpipe worker, stop_grace_period: 1m, environment: [SMARTPIPE_DRAIN_SECONDS=56]}", ["SP201"]),
        ("{command: smartpipe worker, stop_grace_period: 1m, environment: {SMARTPIPE_DRAIN_SECONDS: 55}}", []),
        ("{command: [sh, -c, smartpipe worker], stop_grace_period: 30s}", ["SP202"]),
        ("{image: postgres}", []),
    ],
)
def test_mistakes_in_compose_files_are_found(service: str, expected: list[str], diagnose: Any) -> None:
    assert codes(diagnose(compose=f"services:\n  shop: {service}\n")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (change(DOCKERFILE, 'ENTRYPOINT ["smartpipe", "worker"]', "ENTRYPOINT smartpipe worker"), ["SP202"]),
        (change(DOCKERFILE, 'ENTRYPOINT ["smartpipe", "worker"]', "CMD smartpipe worker"), ["SP202"]),
        (change(DOCKERFILE, 'ENTRYPOINT ["smartpipe", "worker"]', "CMD exec smartpipe worker"), []),
        (change(DOCKERFILE, "ENTRYPOINT", 'CMD ["sh", "-c", "run"]\nENTRYPOINT'), []),
        (f"{DOCKERFILE}\nCMD shop:service\n", ["SP202"]),
        (f'{DOCKERFILE}\nCMD ["shop:service"]\n', []),
        (change(DOCKERFILE, '["smartpipe", "worker"]', '["/bin/sh", "-c", "smartpipe worker"]'), ["SP202"]),
        (change(DOCKERFILE, "USER 10001\n", ""), ["SP202"]),
        (change(DOCKERFILE, "USER 10001", "USER root:root"), ["SP202"]),
        (change(DOCKERFILE, "USER 10001", "USER 10001\n# CMD smartpipe\nRUN <<EOF\nCMD smartpipe\nEOF"), []),
        (change(DOCKERFILE, '["smartpipe", "worker"]', '["smartpipe", \\\n  # a comment\n  "worker"]'), []),
        (f"FROM alpine AS build\nCMD run\n{DOCKERFILE}", []),
        (f"{change(DOCKERFILE, 'slim', 'slim AS base')}\nFROM base\nUSER root\n", ["SP202"]),
        (f"{change(DOCKERFILE, 'slim', 'slim AS base')}\nFROM base\n", []),
        (DOCKERFILE.replace(" ", "\t", 1).replace("USER ", "USER\t"), []),
        (change(DOCKERFILE, '["smartpipe", "worker"]', "[" * 100_000), ["SP202"]),
        ("# nothing\n", ["SP200"]),
    ],
)
def test_mistakes_in_dockerfiles_are_found(text: str, expected: list[str], diagnose: Any) -> None:
    assert codes(diagnose(dockerfile=text)) == expected


def test_a_finding_in_a_dockerfile_has_its_line(diagnose: Any) -> None:
    [finding] = diagnose(dockerfile=change(DOCKERFILE, "USER 10001", "USER 0")).findings

    assert finding.place == ("Dockerfile", 3)


def test_one_broken_document_of_ten_does_not_hide_the_others(diagnose: Any) -> None:
    bad = change(
        DEPLOYMENT.partition("---")[0], "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 5"
    )
    documents = [bad.replace("name: shop", f"name: shop-{number}").replace("replicas: 2", "") for number in range(9)]
    documents.insert(4, "\napiVersion: v1\nkind: [unclosed\n")

    report = diagnose(many="---".join(documents))

    assert sorted(codes(report)) == ["SP200", *["SP201"] * 9]
    broken = next(one for one in report.findings if one.code == "SP200")
    text = "---".join(documents).splitlines()
    assert "unclosed" in text[broken.place.line - 2]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("kind: {{ .Values.kind }}\n  a: b", "helm template"),
        ("when: 2024-13-45", "correct the syntax"),
        ('{"a": ', "correct the syntax"),
        ("a: !!python/object:os.system b", "correct the syntax"),
    ],
)
def test_text_that_cannot_be_parsed_is_a_finding(text: str, remedy: str, diagnose: Any) -> None:
    [finding] = diagnose(file=text).findings

    assert finding.code == "SP200"
    assert remedy in finding.remedy


def test_files_that_cannot_be_read_are_findings_and_the_others_are_examined(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "good.yaml").write_text(change(DEPLOYMENT, "path: /livez", "path: /readyz"))
    paths = [tmp_path, tmp_path / "missing.yaml", tmp_path / "binary.yaml", tmp_path / "good.yaml"]

    report = examine([], paths, (), date(2026, 11, 27))

    assert codes(report) == ["SP200", "SP200", "SP200", "SP203"]
    assert any("each with --manifest" in one.remedy for one in report.findings)


def test_other_documents_are_not_seen(diagnose: Any) -> None:
    report = diagnose(file="a: b\n---\n# a comment alone\n")

    assert report.findings == []
    assert any(re.match(r"file.yaml:1: the document is neither", one) for one in report.not_seen)


@pytest.mark.parametrize("text", ["", "# all values are off\n", "---\n---\n"])
def test_a_file_without_documents_is_not_seen(text: str, diagnose: Any) -> None:
    report = diagnose(file=text)

    assert report.findings == []
    assert "file.yaml: it has no documents" in report.not_seen


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("Rollout", "spec:\n  replicas", "spec:\n  strategy: {canary: {}}\n  replicas"),
        ("ScaledJob", "  template:\n    metadata", "  jobTargetRef:\n   template:\n    metadata"),
    ],
)
def test_workers_in_kinds_that_are_no_part_of_kubernetes_are_examined(
    kind: str, old: str, new: str, diagnose: Any
) -> None:
    text = change(change(DEPLOYMENT, "kind: Deployment", f"kind: {kind}"), old, new)

    assert codes(diagnose(file=change(text, "PeriodSeconds: 30", "PeriodSeconds: 29"))) == ["SP201"]


def test_structures_that_do_not_fit_their_kind_do_not_raise(diagnose: Any) -> None:
    texts = (DEPLOYMENT, SCALED_OBJECT, HPA, TEMPLATE, SAM, COMPOSE, json.dumps(TASK), json.dumps(TERRAFORM, indent=1))
    for text in texts:
        for found in re.finditer(r"[:\[,] *([\w{\[\"/-][^,\n]*)", text):
            for wrong in ("7", "[[x]]", "a", "null"):
                diagnose(file=text[: found.start(1)] + wrong + text[found.end(1) :])


def test_without_pyyaml_an_error_names_the_extra(diagnose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)

    assert codes(diagnose(json=json.dumps(TASK), dockerfile=DOCKERFILE)) == []
    with pytest.raises(ConfigError, match=r"reading deployment.yaml needs PyYAML: pip install 'smartpipe\[doctor\]'"):
        diagnose(deployment=DEPLOYMENT)


FIFO = "VisibilityTimeout: 180, FifoQueue: true"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("FunctionName: !Ref Function", "FunctionName: !Ref Function\n      BatchSize: 11", "needs a batching window"),
        ("maxReceiveCount: 5", "maxReceiveCount: 4", "after 4 deliveries"),
        (', RedrivePolicy: {deadLetterTargetArn: "arn:aws:sqs:a:1:d", maxReceiveCount: 5}', "", "no dead-letter queue"),
        ("{Timeout: 30}", "{Timeout: 30, ReservedConcurrentExecutions: 4}", "begins with 5 batches"),
    ],
)
def test_limits_of_batches_and_concurrency_are_found(old: str, new: str, text: str, diagnose: Any) -> None:
    [finding] = diagnose(template=change(TEMPLATE, old, new)).findings

    assert finding.code == "SP206"
    assert text in finding.message


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("BatchSize: 10", "BatchSize: 11", "at most 10 messages"),
        ("BatchSize: 10", "MaximumBatchingWindowInSeconds: 0", None),
        ("BatchSize: 10", "BatchSize: 10\n      ScalingConfig: {MaximumConcurrency: 7}", "MaximumConcurrency is 7"),
    ],
)
def test_fifo_queues_and_maximum_concurrency_have_limits_of_their_own(
    old: str, new: str, text: str | None, diagnose: Any
) -> None:
    fifo = change(TEMPLATE, "VisibilityTimeout: 180", FIFO).replace(
        "{Timeout: 30}", "{Timeout: 30, ReservedConcurrentExecutions: 6}"
    )
    fifo = change(fifo, "FunctionName: !Ref Function", "FunctionName: !Ref Function\n      BatchSize: 10")

    messages = [one.message for one in diagnose(template=change(fifo, old, new)).findings]

    assert len(messages) == (1 if text else 0)
    assert text is None or text in messages[0]


def test_five_reserved_calls_are_enough_for_the_first_batches(diagnose: Any) -> None:
    enough = change(TEMPLATE, "{Timeout: 30}", "{Timeout: 30, ReservedConcurrentExecutions: 5}")

    assert codes(diagnose(template=enough)) == []


def test_terraform_writes_no_reserved_concurrency_as_a_negative_number(diagnose: Any) -> None:
    none = change(json.dumps(TERRAFORM), '"timeout": 30', '"timeout": 30, "reserved_concurrent_executions": -1')

    assert codes(diagnose(json=none)) == []


def test_a_separate_resource_of_terraform_may_have_the_redrive_policy(diagnose: Any) -> None:
    queue = {"visibility_timeout_seconds": 180}
    resources = {**TERRAFORM["resource"], "aws_sqs_queue": {"orders": queue}}
    own = {"aws_sqs_queue_redrive_policy": {"orders": {"queue_url": "${aws_sqs_queue.orders.id}"}}}

    assert codes(diagnose(json=json.dumps({"resource": resources}))) == ["SP206"]
    assert codes(diagnose(json=json.dumps({"resource": {**resources, **own}}))) == []


def test_a_global_service_has_one_replica_on_each_node(diagnose: Any) -> None:
    one = change(change(COMPOSE, "replicas: 2", "replicas: 1"), ", order: start-first", "")

    assert codes(diagnose(compose=one)) == ["SP207"]
    assert codes(diagnose(compose=change(one, "replicas: 1", "mode: global"))) == []


def test_replicas_that_start_before_others_stop_may_all_be_updated_at_once(diagnose: Any) -> None:
    at_once = change(COMPOSE, "parallelism: 1", "parallelism: 0")

    assert codes(diagnose(compose=at_once)) == []


def test_a_batching_window_of_a_fifo_queue_is_refused_by_aws(diagnose: Any) -> None:
    fifo = change(TEMPLATE, "VisibilityTimeout: 180", "VisibilityTimeout: 185, FifoQueue: true")
    window = change(
        fifo, "FunctionName: !Ref Function", "FunctionName: !Ref Function\n      MaximumBatchingWindowInSeconds: 5"
    )

    [finding] = diagnose(template=window).findings

    assert "no batching window" in finding.message


def test_a_large_batch_with_a_window_is_accepted(diagnose: Any) -> None:
    large = "FunctionName: !Ref Function\n      BatchSize: 100\n      MaximumBatchingWindowInSeconds: 1"
    good = change(
        change(TEMPLATE, "VisibilityTimeout: 180", "VisibilityTimeout: 181"), "FunctionName: !Ref Function", large
    )

    assert codes(diagnose(template=good)) == []


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (", FunctionResponseTypes: [ReportBatchItemFailures]", "", "ReportBatchItemFailures"),
        ("Timeout: 30", "Timeout: 31", "asks for 186 s"),
        ("Properties:\n      Events", "Properties:\n      Timeout: 60\n      Events", "asks for 360 s"),
        ("maxReceiveCount: 5", "maxReceiveCount: 1", "after 1 deliveries"),
    ],
)
def test_mistakes_in_a_template_of_sam_are_found(old: str, new: str, text: str, diagnose: Any) -> None:
    [finding] = diagnose(template=change(SAM, old, new)).findings

    assert (finding.code, finding.resource) == ("SP206", "Function, event Orders")
    assert text in finding.message


@pytest.mark.parametrize(
    ("old", "new", "code", "text"),
    [
        ('"visibility_timeout_seconds": 180', '"visibility_timeout_seconds": 179', "SP206", "is 179 s"),
        ('"timeout": 30', '"timeout": 31', "SP206", "asks for 186 s"),
        ('"timeout": 30', '"timeout": 30, "reserved_concurrent_executions": 2', "SP206", "at most 2 times"),
        ('["ReportBatchItemFailures"]', "[]", "SP206", "ReportBatchItemFailures"),
        ('\\"maxReceiveCount\\": 5', '\\"maxReceiveCount\\": 2', "SP206", "after 2 deliveries"),
        ('\\"stopTimeout\\": 30', '\\"stopTimeout\\": 300', "SP201", "at most 120 s"),
        ('["subnet-1", "subnet-2"]', '["subnet-1"]', "SP207", "one subnet"),
    ],
)
def test_mistakes_in_a_configuration_of_terraform_are_found(
    old: str, new: str, code: str, text: str, diagnose: Any
) -> None:
    [finding] = diagnose(json=change(json.dumps(TERRAFORM), old, new)).findings

    assert finding.code == code
    assert finding.resource.startswith("aws_")
    assert text in finding.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"visibility_timeout_seconds": 180', '"visibility_timeout_seconds": "${var.seconds}"'),
        ('"${aws_sqs_queue.orders.arn}"', '"${module.queues.arn}"'),
        ('"[{\\"name\\": ', '"${jsonencode([{\\"name\\": '),
    ],
)
def test_expressions_of_terraform_are_not_seen(old: str, new: str, diagnose: Any) -> None:
    report = diagnose(json=change(json.dumps(TERRAFORM), old, new))

    assert report.findings == []
    assert len(report.not_seen) == 3


def test_subnets_of_an_expression_are_not_counted(diagnose: Any) -> None:
    one = change(json.dumps(TERRAFORM), '["subnet-1", "subnet-2"]', '["${var.subnet}"]')
    list_ = change(json.dumps(TERRAFORM), '["subnet-1", "subnet-2"]', '"${var.subnets}"')

    assert codes(diagnose(json=one)) == codes(diagnose(json=list_)) == []


@pytest.mark.parametrize(
    ("old", "new", "code", "severity", "text"),
    [
        ("30s", "29s", "SP201", "error", "29 s"),
        ("parallelism: 1, order: start-first", "parallelism: 0", "SP207", "warning", "stops all replicas"),
        (
            "replicas: 2\n      update_config: {parallelism: 1, order: start-first}",
            "replicas: 1\n      update_config: {parallelism: 1}",
            "SP207",
            "note",
            "only replica",
        ),
        ("condition: any", "max_attempts: 3", "SP207", "warning", "max_attempts is 3"),
        ("512M", "16mb", "SP208", "warning", "30 MiB"),
    ],
)
def test_mistakes_in_a_stack_of_swarm_are_found(
    old: str, new: str, code: str, severity: str, text: str, diagnose: Any
) -> None:
    [finding] = diagnose(compose=change(COMPOSE, old, new)).findings

    assert (finding.code, finding.severity) == (code, severity)
    assert text in finding.message


def test_a_service_of_ecs_in_one_subnet_is_a_warning(diagnose: Any) -> None:
    template = """
    Resources:
      Shop:
        Type: AWS::ECS::Service
        Properties: {DesiredCount: 2, NetworkConfiguration: {AwsvpcConfiguration: {Subnets: [a, b]}}}
    """

    assert codes(diagnose(template=template)) == []
    assert codes(diagnose(template=template.replace("[a, b]", "[a]"))) == ["SP207"]
    assert codes(diagnose(template=template.replace("[a, b]", "!Ref Subnets"))) == []


def test_a_service_of_another_program_may_have_one_subnet(diagnose: Any) -> None:
    template = """
    Resources:
      Task:
        Type: AWS::ECS::TaskDefinition
        Properties: {ContainerDefinitions: [{Name: a, Command: [smartpipe, worker]}]}
      Shop:
        Type: AWS::ECS::Service
        Properties:
          TaskDefinition: !Ref Task
          NetworkConfiguration: {AwsvpcConfiguration: {Subnets: [a]}}
    """
    service = '"task_definition": "${aws_ecs_task_definition.shop.arn}", "network_configuration": {"subnets": ['
    text = change(json.dumps(TERRAFORM), '"network_configuration": {"subnets": ["subnet-1", ', service)
    terraform = change(text, ', "stopTimeout": 30'.replace('"', '\\"'), "")

    assert codes(diagnose(template=template)) == ["SP207"]
    assert codes(diagnose(template=change(template, "[smartpipe, worker]", "[nginx]"))) == []
    assert codes(diagnose(json=terraform)) == ["SP207"]
    assert codes(diagnose(json=change(terraform, "smartpipe", "celery"))) == []


def test_pods_that_one_zone_may_stop_are_a_warning(diagnose: Any) -> None:
    selector = 'nodeSelector: {"topology.kubernetes.io/zone": eu-west-1a}'
    moved = change(DEPLOYMENT, "      containers:", f"      {selector}\n      containers:")

    assert codes(diagnose(deployment=moved)) == ["SP207"]
    assert codes(diagnose(deployment=change(moved, "replicas: 2", "replicas: 1"))) == []


promised = Topic("promised")


class Promised(Event, topic=promised, type="promised.happened", version="1.0"):
    number: int


def diagnose_promise(
    tmp_path: Path, old: str, new: str, seconds_per_message: float = 2, rate: float | None = None
) -> list[Finding]:
    """Return SP204 for a service that promises 60 s, with 10 slots and 2 s for each message: 300 messages."""
    service = Service("promised")

    @service.subscribe(Promised, rate_per_second=rate)
    async def handle(event: Promised) -> None: ...

    scaler = change(SCALED_OBJECT, "https://sqs", "https://sqs.eu-west-1.amazonaws.com/1/promised")
    files = {"keda.yaml": scaler, "deployment.yaml": DEPLOYMENT}
    for name, text in files.items():
        (tmp_path / name).write_text(change(text, old, new) if old in text else text)
    options = {"max_wait_seconds": 60, "promised": {"seconds_per_message": seconds_per_message}}
    pyproject = {"tool": {"smartpipe": {"deploy": options}}}
    paths = [tmp_path / name for name in files]
    report = examine([service], paths, (), date(2026, 11, 27), pyproject=pyproject)
    return [one for one in report.findings if one.code == "SP204"]


def test_the_queue_length_of_the_remedy_keeps_the_promise(tmp_path: Path) -> None:
    [found] = diagnose_promise(tmp_path, IN_FLIGHT, 'queueLength: "900"', seconds_per_message=0.7)  # 857.14 messages
    assert found.remedy == "set queueLength to 857"

    [found] = diagnose_promise(tmp_path, IN_FLIGHT, 'queueLength: "900"', seconds_per_message=0.9)  # 666.67 messages
    assert found.remedy == "set queueLength to 666"
    assert diagnose_promise(tmp_path, IN_FLIGHT, 'queueLength: "666"', seconds_per_message=0.9) == []


def test_a_rate_limit_counts_for_the_promise(tmp_path: Path) -> None:
    [found] = diagnose_promise(tmp_path, IN_FLIGHT, 'queueLength: "300"', rate=1)

    assert "one container then needs 300 s" in found.message
    assert "(10 slots, 2 s for each message, at most 1 a second)" in found.message
    assert found.remedy == "set queueLength to 60"
    assert diagnose_promise(tmp_path, IN_FLIGHT, 'queueLength: "60"', rate=1) == []


IN_FLIGHT, COOLDOWN, READINESS = 'scaleOnInFlight: "true"', "cooldownPeriod: 300", "readinessProbe: {"


@pytest.mark.parametrize(
    ("old", "new", "severity", "text"),
    [
        (IN_FLIGHT, 'queueLength: "301"', "warning", "promises 60 s (10 slots, 2 s for each message)"),
        (IN_FLIGHT, 'queueLength: "1200000"', "warning", "queueLength is 1200000: one container"),
        (IN_FLIGHT, 'queueLength: "300"', None, ""),
        (COOLDOWN, "pollingInterval: 61", "warning", "KEDA looks at the queue every 61 s"),
        (COOLDOWN, "pollingInterval: 60", None, ""),
        (COOLDOWN, "pollingInterval: 61\n  minReplicaCount: 1", None, ""),
        (
            READINESS,
            "readinessProbe: {initialDelaySeconds: 31, ",
            "warning",
            "becomes ready 31 s after its start",
        ),
        (READINESS, "readinessProbe: {initialDelaySeconds: 30, ", None, ""),
        (IN_FLIGHT, "awsRegion: us-east-1", "error", "the queue is in eu-west-1"),
        (IN_FLIGHT, "awsRegion: eu-west-1", None, ""),
        (IN_FLIGHT, 'activationQueueLength: "5"', "error", "up to 5 messages stay"),
    ],
)
def test_a_scaler_has_to_keep_the_promise_of_the_service(
    old: str, new: str, severity: str | None, text: str, tmp_path: Path
) -> None:
    found = diagnose_promise(tmp_path, old, new)

    assert [one.severity for one in found] == ([severity] if severity else [])
    assert all(text in one.message for one in found)


def test_a_minimum_of_one_worker_takes_the_last_messages(diagnose: Any) -> None:
    activated = change(SCALED_OBJECT, IN_FLIGHT, 'activationQueueLength: "5"')
    one = change(activated, COOLDOWN, "minReplicaCount: 1")

    assert codes(diagnose(deployment=DEPLOYMENT, keda=activated)) == ["SP204"]
    assert codes(diagnose(deployment=DEPLOYMENT, keda=one)) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("512M", 536_870_912), ("1gb", 2**30), ("16b", 16), (1_024, 1_024), ("lots", None), (True, None)],
)
def test_sizes_of_compose_are_read(text: Any, value: float | None) -> None:
    assert to_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("512Mi", 536_870_912), ("1.5G", 1.5e9), (2, 2), ("many", None), (None, None)]
)
def test_quantities_of_kubernetes_are_read(text: Any, value: float | None) -> None:
    assert to_quantity(text) == value


@pytest.mark.parametrize(("text", "value"), [("1m30s", 90), ("1h", 3_600), ("10s", 10), ("", None), ("soon", None)])
def test_durations_of_compose_are_read(text: str, value: float | None) -> None:
    assert to_seconds(text) == value
