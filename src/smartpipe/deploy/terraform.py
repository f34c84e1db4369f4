"""A Terraform configuration, in JSON syntax, that runs workloads on Amazon ECS. Pure.

Source: Terraform Registry, hashicorp/aws, ``aws_ecs_service``, ``aws_ecs_task_definition``,
``aws_appautoscaling_policy``, ``aws_appautoscaling_target``, ``aws_cloudwatch_metric_alarm``,
``aws_cloudwatch_log_group``, ``aws_iam_policy`` and ``aws_iam_role``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smartpipe.deploy.ecs_scaling import TARGET
from smartpipe.deploy.ecs_tasks import ARN_PATTERN, LOG_GROUP, PROTECTION, REGION, Input
from smartpipe.topology.export.portable import make_unique, replace_placeholders, rewrite
from smartpipe.topology.export.terraform import escape, make_identifier
from smartpipe.topology.resources import POLICY_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.deploy.ecs_scaling import Alarm, Formula, Steps, Tracking
    from smartpipe.deploy.ecs_tasks import Task

PROVIDER = {"source": "hashicorp/aws", "version": ">= 5.100"}
_ACCOUNT = "${data.aws_caller_identity.current.account_id}"
_REGION = "${data.aws_region.current.id}"
"""``id`` is the name of the region in all versions; 5 has no ``region``, and 6 will lose ``name``."""
_PARTITION = "${data.aws_partition.current.partition}"
_ARN = rf"arn:{_PARTITION}:\1:{_REGION}:{_ACCOUNT}:"
_LOG_GROUPS = "/ecs/smartpipe/"
_MAX_PREFIX = 38
"""The longest name_prefix of a role."""
_TARGET_ARGUMENTS = ("service_namespace", "resource_id", "scalable_dimension")
_ALARM_ACTIONS = '${var.alarm_topic_arn == "" ? [] : [var.alarm_topic_arn]}'
_VARIABLES: dict[str, Any] = {
    "cluster": {"type": "string", "description": "Name of the ECS cluster. Container Insights must be on."},
    "subnets": {"type": "list(string)", "description": "Subnets of the tasks, in several zones."},
    "security_groups": {
        "type": "list(string)",
        "description": "Security groups of the tasks. They need HTTPS to AWS, and no incoming traffic.",
    },
    "log_retention_days": {
        "type": "number",
        "default": 30,
        "description": "Days after which CloudWatch deletes log lines.",
    },
    "alarm_topic_arn": {
        "type": "string",
        "default": "",
        "description": "ARN of the SNS topic that CloudWatch notifies; empty: the alarms only change their state.",
    },
}
_PUBLIC_IP = {
    "type": "bool",
    "default": False,
    "description": "true in public subnets without a NAT gateway and without VPC endpoints.",
}


def build_configuration(tasks: Sequence[Task], producers: Sequence[str]) -> dict[str, Any]:
    """Return the configuration, as a module for any account and region.

    Args:
        producers: The names of services without handlers. The comment says that they are left out.
    """
    labels = make_unique({one.name: make_identifier(one.name) for one in tasks})
    resources: dict[str, dict[str, Any]] = {}
    for one in tasks:
        for kind, label, block in _build(one, labels[one.name]):
            resources.setdefault(kind, {})[label] = block
    secrets = list(dict.fromkeys(_reference(secret) for one in tasks for secret in one.secrets))
    for kind, label, block in _execution_role(secrets):
        resources.setdefault(kind, {})[label] = block
    left_out = f" Without {', '.join(producers)}: no worker runs a service without handlers." if producers else ""
    return {
        "//": f"Workers of smartpipe on Amazon ECS.{left_out} Written by `smartpipe deploy export --format terraform`; "
        "run it again when services or settings change.",
        "terraform": {"required_providers": {"aws": PROVIDER}},
        "variable": {**_VARIABLES, **_variables_of(tasks)},
        "data": {source: {"current": {}} for source in ("aws_caller_identity", "aws_partition", "aws_region")},
        "resource": {kind: dict(sorted(blocks.items())) for kind, blocks in sorted(resources.items())},
        "output": {
            "service_names": {
                "value": {escape(one.name): f"${{aws_ecs_service.{labels[one.name]}.name}}" for one in tasks},
            }
        },
    }


def _label(value: Input) -> str:
    return make_identifier("_".join(value.words))


def _reference(value: Input) -> str:
    return f"${{var.{_label(value)}}}"


def _variables_of(tasks: Sequence[Task]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if any(one.is_fargate for one in tasks):  # the tasks on instances of your own have no public address
        found["assign_public_ip"] = _PUBLIC_IP
    if not all(one.is_fargate for one in tasks):
        description = "Capacity provider of the cluster with the EC2 instances."
        found["capacity_provider"] = {"type": "string", "description": description}
    for one in tasks:
        found[_label(one.image)] = {
            "type": "string",
            "default": escape(one.default_image),
            "description": "Container image, with its tag or digest.",
        }
        for secret in one.secrets:
            name = _label(secret)
            found[name] = {
                "type": "string",
                "description": "ARN of a secret in Secrets Manager, or of a parameter in Systems Manager.",
                "validation": {
                    "condition": f"${{can(regex({json.dumps(ARN_PATTERN)}, var.{name}))}}",
                    "error_message": "Give the ARN of a secret or of a parameter, without a JSON key or a version.",
                },
            }
    return found


def _execution_role(secrets: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the role with which ECS itself pulls images, writes logs and reads secrets; containers cannot use it."""
    layers = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    logs = [f"arn:{_PARTITION}:logs:{_REGION}:{_ACCOUNT}:log-group:{_LOG_GROUPS}*"]
    statements = [
        _allow("LogIn", ["ecr:GetAuthorizationToken"], ["*"]),
        _allow("PullImages", layers, [f"arn:{_PARTITION}:ecr:*:*:repository/*"]),
        _allow("WriteLogs", ["logs:CreateLogStream", "logs:PutLogEvents"], logs),
    ]
    if secrets:
        statements.append(_allow("ReadSecrets", ["secretsmanager:GetSecretValue", "ssm:GetParameters"], secrets))
    yield from _role("smartpipe_execution", "smartpipe-execution-", {"execution": _document(statements)}, inline=True)


def _allow(sid: str, actions: Sequence[str], resources: Sequence[str]) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _document(statements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": POLICY_VERSION, "Statement": list(statements)}


def _role(
    label: str, prefix: str, policies: dict[str, Any], *, inline: bool
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "ecs-tasks.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {
            "StringEquals": {"aws:SourceAccount": _ACCOUNT},
            "ArnLike": {"aws:SourceArn": f"arn:{_PARTITION}:ecs:{_REGION}:{_ACCOUNT}:*"},
        },
    }
    yield (
        "aws_iam_role",
        label,
        {"name_prefix": prefix[:_MAX_PREFIX], "assume_role_policy": json.dumps(_document([trust]))},
    )
    role = f"${{aws_iam_role.{label}.name}}"
    for name, document in policies.items():
        named = make_identifier(f"{label}_{name}")
        if inline:
            yield "aws_iam_role_policy", named, {"name": name, "role": role, "policy": json.dumps(document)}
            continue
        yield "aws_iam_policy", named, {"name_prefix": prefix[:_MAX_PREFIX], "policy": json.dumps(document)}
        attached = {"role": role, "policy_arn": f"${{aws_iam_policy.{named}.arn}}"}
        yield "aws_iam_role_policy_attachment", named, attached


def _build(one: Task, label: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    policies = {name: rewrite(document, _substitute) for name, document in one.policies.items()}
    if one.protected:
        tasks = f"arn:{_PARTITION}:ecs:{_REGION}:{_ACCOUNT}:task/${{var.cluster}}/*"
        policies["protect"] = _document([_allow("ProtectTasks", PROTECTION, [tasks])])
    roles = list(_role(label, f"{one.family}-", policies, inline=one.fits_inline))
    yield from roles
    group = {"name": f"{_LOG_GROUPS}{one.family}", "retention_in_days": "${var.log_retention_days}"}
    yield "aws_cloudwatch_log_group", label, group
    yield "aws_ecs_task_definition", label, _task_definition(one, label)
    granted = [f"{kind}.{name}" for kind, name, _ in roles if kind in ("aws_iam_role_policy", _ATTACHMENT)]
    yield "aws_ecs_service", label, _service(one, label, granted)
    yield from _scale(one, label)
    for alarm in one.scaling.alarms:
        yield "aws_cloudwatch_metric_alarm", f"{label}_{alarm.key}", _alarm(alarm, label)


_ATTACHMENT = "aws_iam_role_policy_attachment"


def _substitute(text: str) -> str:
    return replace_placeholders(text, _ARN, _ACCOUNT).replace("arn:aws:s3:::", f"arn:{_PARTITION}:s3:::")


def _task_definition(one: Task, label: str) -> dict[str, Any]:
    known = {LOG_GROUP: f"${{aws_cloudwatch_log_group.{label}.name}}", REGION: _REGION}

    def resolve(value: Any) -> Any:
        if isinstance(value, Input):
            return known.get(value) or _reference(value)
        if isinstance(value, dict):
            return {key: resolve(part) for key, part in value.items()}
        if isinstance(value, list):
            return [resolve(part) for part in value]
        return escape(value) if isinstance(value, str) else value

    return {
        "family": one.family,
        "cpu": str(one.cpu_units),
        "memory": str(one.memory),
        "network_mode": "awsvpc",
        "requires_compatibilities": ["FARGATE" if one.is_fargate else "EC2"],
        "execution_role_arn": "${aws_iam_role.smartpipe_execution.arn}",
        "task_role_arn": f"${{aws_iam_role.{label}.arn}}",
        "container_definitions": json.dumps([resolve(one.container)]),
        "volume": [{"name": "tmp"}],
    }


def _service(one: Task, label: str, granted: list[str]) -> dict[str, Any]:
    """Return the service; a scaler changes its count, so Terraform ignores changes of it."""
    scales = one.scaling.maximum is not None
    network = {"subnets": "${var.subnets}", "security_groups": "${var.security_groups}"}
    public = {"assign_public_ip": "${var.assign_public_ip}"} if one.is_fargate else {}
    return {
        "name": one.family,
        "cluster": "${var.cluster}",
        "task_definition": f"${{aws_ecs_task_definition.{label}.arn}}",
        **_capacity(one),
        "desired_count": one.scaling.minimum,
        "deployment_minimum_healthy_percent": 100,
        "deployment_maximum_percent": 200,
        "deployment_circuit_breaker": {"enable": True, "rollback": True},
        "enable_execute_command": False,
        "enable_ecs_managed_tags": True,
        "propagate_tags": "SERVICE",
        "wait_for_steady_state": True,
        "network_configuration": {**network, **public},
        **({"lifecycle": {"ignore_changes": ["desired_count"]}} if scales else {}),
        "depends_on": [*granted, "aws_iam_role_policy.smartpipe_execution_execution"],
    }


def _capacity(one: Task) -> dict[str, Any]:
    if not one.is_fargate:
        return {"capacity_provider_strategy": [{"capacity_provider": "${var.capacity_provider}", "weight": 1}]}
    if one.on_demand is None:
        return {"launch_type": "FARGATE"}
    base = [{"capacity_provider": "FARGATE", "base": one.on_demand, "weight": 0}] if one.on_demand else []
    return {"capacity_provider_strategy": [*base, {"capacity_provider": "FARGATE_SPOT", "weight": 1}]}


def _scale(one: Task, label: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if one.scaling.maximum is None:
        return
    yield (
        "aws_appautoscaling_target",
        label,
        {
            "service_namespace": "ecs",
            "resource_id": f"service/${{var.cluster}}/${{aws_ecs_service.{label}.name}}",
            "scalable_dimension": "ecs:service:DesiredCount",
            "min_capacity": one.scaling.minimum,
            "max_capacity": one.scaling.maximum,
        },
    )
    target = {name: f"${{aws_appautoscaling_target.{label}.{name}}}" for name in _TARGET_ARGUMENTS}
    for tracking in one.scaling.trackings:
        block = {
            "name": f"{one.family}-{tracking.name}",
            "policy_type": "TargetTrackingScaling",
            **target,
            "target_tracking_scaling_policy_configuration": _tracking(tracking, label),
        }
        yield "aws_appautoscaling_policy", f"{label}_{tracking.name}", block
    for steps in one.scaling.steps:
        block = {
            "name": f"{one.family}-{steps.name}",
            "policy_type": "StepScaling",
            **target,
            "step_scaling_policy_configuration": _steps(steps),
        }
        yield "aws_appautoscaling_policy", f"{label}_{steps.name}", block


def _tracking(tracking: Tracking, label: str) -> dict[str, Any]:
    metrics = []
    for query in _queries(tracking.formula, label):
        if "metric" in query:
            metric = query.pop("metric")
            dimensions = [{"name": name, "value": value} for name, value in metric.pop("dimensions").items()]
            query["metric_stat"] = {"stat": metric.pop("stat"), "metric": {**metric, "dimensions": dimensions}}
        metrics.append(query)
    return {
        "target_value": TARGET,
        "scale_out_cooldown": tracking.scale_out_cooldown_seconds,
        "scale_in_cooldown": tracking.scale_in_cooldown_seconds,
        "customized_metric_specification": {"metrics": metrics},
    }


def _steps(steps: Steps) -> dict[str, Any]:
    adjustments = [
        {
            **({} if one.lower is None else {"metric_interval_lower_bound": str(one.lower)}),
            **({} if one.upper is None else {"metric_interval_upper_bound": str(one.upper)}),
            "scaling_adjustment": one.adjustment,
        }
        for one in steps.steps
    ]
    return {
        "adjustment_type": steps.adjustment_type,
        "cooldown": steps.cooldown_seconds,
        "metric_aggregation_type": "Maximum",
        "step_adjustment": adjustments,
    }


def _queries(formula: Formula, label: str) -> Iterator[dict[str, Any]]:
    for metric in formula.metrics:
        dimensions = (
            {"ClusterName": "${var.cluster}", "ServiceName": f"${{aws_ecs_service.{label}.name}}"}
            if metric.queue is None
            else {"QueueName": metric.queue}
        )
        yield {
            "id": metric.id,
            "metric": {
                "namespace": metric.namespace,
                "metric_name": metric.name,
                "dimensions": dimensions,
                "stat": metric.statistic,
            },
            "return_data": metric.id == formula.result,
        }
    for name, expression in formula.expressions.items():
        yield {"id": name, "expression": expression, "return_data": name == formula.result}


def _alarm(alarm: Alarm, label: str) -> dict[str, Any]:
    queries = list(_queries(alarm.formula, label))
    for query in queries:
        if "metric" in query:
            query["metric"]["period"] = 60
    actions = (
        {"alarm_actions": _ALARM_ACTIONS, "ok_actions": _ALARM_ACTIONS}
        if alarm.steps is None
        else {"alarm_actions": [f"${{aws_appautoscaling_policy.{label}_{alarm.steps}.arn}}"]}
    )
    return {
        "alarm_name": escape(alarm.name),
        "alarm_description": escape(alarm.description),
        "metric_query": queries,
        "evaluation_periods": alarm.minutes,
        "datapoints_to_alarm": alarm.minutes,
        "threshold": alarm.threshold,
        "comparison_operator": alarm.comparison,
        "treat_missing_data": alarm.missing,
        **actions,
    }
