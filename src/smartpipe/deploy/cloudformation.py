"""An AWS CloudFormation template that runs workloads on Amazon ECS. Pure.

Source: AWS CloudFormation, template reference of AWS::ECS::TaskDefinition, AWS::ECS::Service,
AWS::ApplicationAutoScaling::ScalableTarget and ScalingPolicy, AWS::CloudWatch::Alarm, AWS::IAM::Role and
AWS::Logs::LogGroup.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from smartpipe.deploy.ecs_scaling import TARGET
from smartpipe.deploy.ecs_tasks import ARN_PATTERN, CLUSTER, LOG_GROUP, PROTECTION, REGION, Input
from smartpipe.errors import ConfigError
from smartpipe.topology.export.alarms import ACTIONS, CONDITIONS
from smartpipe.topology.export.alarms import PARAMETERS as ALARM_PARAMETERS
from smartpipe.topology.export.cloudformation import MAX_RESOURCES
from smartpipe.topology.export.portable import make_unique, replace_placeholders, rewrite
from smartpipe.topology.resources import POLICY_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.deploy.ecs_scaling import Alarm, Formula, Steps, Tracking
    from smartpipe.deploy.ecs_tasks import Task

LOG_DAYS = (
    1,
    3,
    5,
    7,
    14,
    30,
    60,
    90,
    120,
    150,
    180,
    365,
    400,
    545,
    731,
    1_096,
    1_827,
    2_192,
    2_557,
    2_922,
    3_288,
    3_653,
)
MAX_PARAMETERS = 200
MAX_CHARACTERS = 1_000_000
"""CloudFormation takes 1 MB from an S3 bucket, and 51,200 bytes without one."""
_ARN = r"arn:${AWS::Partition}:\1:${AWS::Region}:${AWS::AccountId}:"
_CAPACITY_PROVIDER = "CapacityProvider"
_LONGEST_ID = 200
"""Logical ids have at most 255 characters, and ours get suffixes."""
_PARAMETERS: dict[str, Any] = {
    "Cluster": {
        "Type": "String",
        "AllowedPattern": "^[A-Za-z0-9_-]{1,255}$",
        "Description": "Name of the ECS cluster. Container Insights must be on.",
    },
    "Subnets": {"Type": "List<AWS::EC2::Subnet::Id>", "Description": "Subnets of the tasks, in several zones."},
    "SecurityGroups": {
        "Type": "List<AWS::EC2::SecurityGroup::Id>",
        "Description": "Security groups of the tasks. They need HTTPS to AWS, and no incoming traffic.",
    },
    "LogRetentionDays": {
        "Type": "Number",
        "Default": 30,
        "AllowedValues": list(LOG_DAYS),
        "Description": "Days after which CloudWatch deletes log lines.",
    },
}
_PUBLIC_IP = {
    "Type": "String",
    "Default": "DISABLED",
    "AllowedValues": ["DISABLED", "ENABLED"],
    "Description": "ENABLED in public subnets without a NAT gateway and without VPC endpoints.",
}


def build_template(tasks: Sequence[Task], producers: Sequence[str]) -> dict[str, Any]:
    """Return the template, for any account and region.

    Args:
        producers: The names of services without handlers. The description says that they are left out.

    Raises:
        ConfigError: It would have more than 500 resources, 200 parameters or a million characters.
    """
    ids = make_unique({one.name: _camel(one.name) or "Service" for one in tasks}, longest=_LONGEST_ID)
    resources = {"ExecutionRole": _execution_role(tasks)}
    for one in tasks:
        resources |= {f"{ids[one.name]}{suffix}": resource for suffix, resource in _build(one, ids[one.name])}
    parameters = {**_PARAMETERS, **ALARM_PARAMETERS, **_parameters_of(tasks)}
    left_out = f" Without {', '.join(producers)}: no worker runs a service without handlers." if producers else ""
    description = (
        f"Workers of smartpipe on Amazon ECS.{left_out} Written by `smartpipe deploy export --format ecs`; run it "
        "again when services or settings change."
    )
    template = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": description[:1_024],
        "Parameters": parameters,
        "Conditions": CONDITIONS,
        "Resources": resources,
    }
    _check_limits(template)
    return template


def _check_limits(template: dict[str, Any]) -> None:
    sizes = (
        (len(template["Resources"]), MAX_RESOURCES, "resources"),
        (len(template["Parameters"]), MAX_PARAMETERS, "parameters"),
        (len(json.dumps(template, indent=2)), MAX_CHARACTERS, "characters"),
    )
    for size, limit, unit in sizes:
        if size > limit:
            msg = (
                f"the template would have {size:,} {unit}, and CloudFormation takes {limit:,}: name fewer TARGETs and "
                "make several stacks, or use `--format terraform`, which has no such limit"
            )
            raise ConfigError(msg)


def _camel(text: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", text))


def _name(value: Input) -> str:
    return "".join(map(_camel, value.words))


def _parameters_of(tasks: Sequence[Task]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if any(one.is_fargate for one in tasks):  # the tasks on instances of your own have no public address
        found["AssignPublicIp"] = _PUBLIC_IP
    if not all(one.is_fargate for one in tasks):
        found[_CAPACITY_PROVIDER] = {
            "Type": "String",
            "Description": "Capacity provider of the cluster with the EC2 instances.",
        }
    for one in tasks:
        found[_name(one.image)] = {
            "Type": "String",
            "Default": one.default_image,
            "Description": "Container image, with its tag or digest.",
        }
        for secret in one.secrets:
            found[_name(secret)] = {
                "Type": "String",
                "AllowedPattern": ARN_PATTERN,
                "Description": "ARN of a secret in Secrets Manager, or of a parameter in Systems Manager.",
            }
    return found


def _execution_role(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the role with which ECS itself pulls images, writes logs and reads secrets; containers cannot use it."""
    secrets = list(dict.fromkeys(_name(secret) for one in tasks for secret in one.secrets))
    logs = "arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:log-group:/ecs/${AWS::StackName}/*"
    layers = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    statements = [
        _allow("LogIn", ["ecr:GetAuthorizationToken"], ["*"]),
        _allow("PullImages", layers, [{"Fn::Sub": "arn:${AWS::Partition}:ecr:*:*:repository/*"}]),
        _allow("WriteLogs", ["logs:CreateLogStream", "logs:PutLogEvents"], [{"Fn::Sub": logs}]),
    ]
    if secrets:
        actions = ["secretsmanager:GetSecretValue", "ssm:GetParameters"]
        statements.append(_allow("ReadSecrets", actions, [{"Ref": name} for name in secrets]))
    return _role({"execution": {"Version": POLICY_VERSION, "Statement": statements}})


def _allow(sid: str, actions: Sequence[str], resources: Sequence[Any]) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _role(policies: dict[str, Any]) -> dict[str, Any]:
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "ecs-tasks.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {
            "StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}},
            "ArnLike": {"aws:SourceArn": {"Fn::Sub": "arn:${AWS::Partition}:ecs:${AWS::Region}:${AWS::AccountId}:*"}},
        },
    }
    inline = [{"PolicyName": name, "PolicyDocument": document} for name, document in policies.items()]
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": {"Version": POLICY_VERSION, "Statement": [trust]},
            **({"Policies": inline} if inline else {}),
        },
    }


def _build(one: Task, id_: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the resources of a task, and the suffixes of their logical ids."""
    policies = {name: rewrite(document, _substitute) for name, document in one.policies.items()}
    if one.protected:
        tasks = "arn:${AWS::Partition}:ecs:${AWS::Region}:${AWS::AccountId}:task/${Cluster}/*"
        protect = _allow("ProtectTasks", PROTECTION, [{"Fn::Sub": tasks}])
        policies["protect"] = {"Version": POLICY_VERSION, "Statement": [protect]}
    yield "TaskRole", _role(policies if one.fits_inline else {})
    managed = [] if one.fits_inline else list(policies)
    for name in managed:
        yield (
            f"{_camel(name)}Policy",
            {
                "Type": "AWS::IAM::ManagedPolicy",
                "Properties": {"PolicyDocument": policies[name], "Roles": [{"Ref": f"{id_}TaskRole"}]},
            },
        )
    yield (
        "LogGroup",
        {
            "Type": "AWS::Logs::LogGroup",
            "Properties": {
                "LogGroupName": {"Fn::Sub": f"/ecs/${{AWS::StackName}}/{one.family}"},
                "RetentionInDays": {"Ref": "LogRetentionDays"},
            },
        },
    )
    yield "TaskDefinition", _task_definition(one, id_)
    yield "Service", _service(one, id_, [f"{id_}{_camel(name)}Policy" for name in managed])
    yield from _scale(one, id_)
    for alarm in one.scaling.alarms:
        yield f"{_camel(alarm.key)}Alarm", _alarm(alarm, id_)


def _substitute(text: str) -> Any:
    found = replace_placeholders(text, _ARN, "${AWS::AccountId}").replace(
        "arn:aws:s3:::", "arn:${AWS::Partition}:s3:::"
    )
    return text if found == text else {"Fn::Sub": found}


def _task_definition(one: Task, id_: str) -> dict[str, Any]:
    def resolve(value: Any) -> Any:
        """Write the keys of the API as CloudFormation does, and inputs as references."""
        if isinstance(value, Input):
            known = {LOG_GROUP: f"{id_}LogGroup", REGION: "AWS::Region"}
            return {"Ref": known.get(value) or _name(value)}
        if isinstance(value, dict):
            return {
                key[:1].upper() + key[1:]: part if key == "options" else resolve(part) for key, part in value.items()
            }
        return [resolve(part) for part in value] if isinstance(value, list) else value

    container = resolve(one.container)
    options = one.container["logConfiguration"]["options"]
    container["LogConfiguration"]["Options"] = {key: resolve(value) for key, value in options.items()}
    return {
        "Type": "AWS::ECS::TaskDefinition",
        "Properties": {
            "Family": one.family,
            "Cpu": str(one.cpu_units),
            "Memory": str(one.memory),
            "NetworkMode": "awsvpc",
            "RequiresCompatibilities": ["FARGATE" if one.is_fargate else "EC2"],
            "ExecutionRoleArn": {"Fn::GetAtt": ["ExecutionRole", "Arn"]},
            "TaskRoleArn": {"Fn::GetAtt": [f"{id_}TaskRole", "Arn"]},
            "Volumes": [{"Name": "tmp"}],
            "ContainerDefinitions": [container],
        },
    }


def _service(one: Task, id_: str, policies: list[str]) -> dict[str, Any]:
    """Return the service; without a count if a scaler sets it, because an update would undo scaling."""
    return {
        "Type": "AWS::ECS::Service",
        **({"DependsOn": policies} if policies else {}),
        "Properties": {
            "Cluster": {"Ref": _name(CLUSTER)},
            "TaskDefinition": {"Ref": f"{id_}TaskDefinition"},
            **_capacity(one),
            **({"DesiredCount": one.scaling.minimum} if one.scaling.maximum is None else {}),
            "DeploymentConfiguration": {
                "MinimumHealthyPercent": 100,
                "MaximumPercent": 200,
                "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
            },
            "EnableExecuteCommand": False,
            "EnableECSManagedTags": True,
            "PropagateTags": "SERVICE",
            "NetworkConfiguration": {
                "AwsvpcConfiguration": {
                    "Subnets": {"Ref": "Subnets"},
                    "SecurityGroups": {"Ref": "SecurityGroups"},
                    **({"AssignPublicIp": {"Ref": "AssignPublicIp"}} if one.is_fargate else {}),
                }
            },
        },
    }


def _capacity(one: Task) -> dict[str, Any]:
    if not one.is_fargate:
        return {"CapacityProviderStrategy": [{"CapacityProvider": {"Ref": _CAPACITY_PROVIDER}, "Weight": 1}]}
    if one.on_demand is None:
        return {"LaunchType": "FARGATE"}
    base = [{"CapacityProvider": "FARGATE", "Base": one.on_demand, "Weight": 0}] if one.on_demand else []
    return {"CapacityProviderStrategy": [*base, {"CapacityProvider": "FARGATE_SPOT", "Weight": 1}]}


def _scale(one: Task, id_: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if one.scaling.maximum is None:
        return
    yield (
        "ScalableTarget",
        {
            "Type": "AWS::ApplicationAutoScaling::ScalableTarget",
            "Properties": {
                "ServiceNamespace": "ecs",
                "ScalableDimension": "ecs:service:DesiredCount",
                "ResourceId": {"Fn::Sub": f"service/${{Cluster}}/${{{id_}Service.Name}}"},
                "MinCapacity": one.scaling.minimum,
                "MaxCapacity": one.scaling.maximum,
            },
        },
    )
    for tracking in one.scaling.trackings:
        configuration = _tracking(tracking, id_)
        yield _policy(id_, tracking.name, "TargetTrackingScaling", configuration)
    for steps in one.scaling.steps:
        yield _policy(id_, steps.name, "StepScaling", _steps(steps))


def _policy(id_: str, name: str, kind: str, configuration: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return f"{_camel(name)}Policy", {
        "Type": "AWS::ApplicationAutoScaling::ScalingPolicy",
        "Properties": {
            "PolicyName": name,
            "PolicyType": kind,
            "ScalingTargetId": {"Ref": f"{id_}ScalableTarget"},
            f"{kind}PolicyConfiguration": configuration,
        },
    }


def _tracking(tracking: Tracking, id_: str) -> dict[str, Any]:
    return {
        "CustomizedMetricSpecification": {"Metrics": list(_queries(tracking.formula, id_, {}))},
        "TargetValue": TARGET,
        "ScaleOutCooldown": tracking.scale_out_cooldown_seconds,
        "ScaleInCooldown": tracking.scale_in_cooldown_seconds,
    }


def _steps(steps: Steps) -> dict[str, Any]:
    adjustments = [
        {
            **({} if one.lower is None else {"MetricIntervalLowerBound": one.lower}),
            **({} if one.upper is None else {"MetricIntervalUpperBound": one.upper}),
            "ScalingAdjustment": one.adjustment,
        }
        for one in steps.steps
    ]
    return {
        "AdjustmentType": steps.adjustment_type,
        "Cooldown": steps.cooldown_seconds,
        "MetricAggregationType": "Maximum",
        "StepAdjustments": adjustments,
    }


def _queries(formula: Formula, id_: str, period: dict[str, int]) -> Iterator[dict[str, Any]]:
    for metric in formula.metrics:
        if metric.queue is None:
            service = {"Fn::GetAtt": [f"{id_}Service", "Name"]}
            dimensions = [
                {"Name": "ClusterName", "Value": {"Ref": _name(CLUSTER)}},
                {"Name": "ServiceName", "Value": service},
            ]
        else:
            dimensions = [{"Name": "QueueName", "Value": metric.queue}]
        yield {
            "Id": metric.id,
            "MetricStat": {
                "Metric": {"Namespace": metric.namespace, "MetricName": metric.name, "Dimensions": dimensions},
                **period,
                "Stat": metric.statistic,
            },
            "ReturnData": metric.id == formula.result,
        }
    for name, expression in formula.expressions.items():
        yield {"Id": name, "Expression": expression, "ReturnData": name == formula.result}


def _alarm(alarm: Alarm, id_: str) -> dict[str, Any]:
    actions = (
        {"AlarmActions": ACTIONS, "OKActions": ACTIONS}
        if alarm.steps is None
        else {"AlarmActions": [{"Ref": f"{id_}{_camel(alarm.steps)}Policy"}]}
    )
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmName": alarm.name,
            "AlarmDescription": alarm.description,
            "Metrics": list(_queries(alarm.formula, id_, {"Period": 60})),
            "EvaluationPeriods": alarm.minutes,
            "DatapointsToAlarm": alarm.minutes,
            "Threshold": alarm.threshold,
            "ComparisonOperator": alarm.comparison,
            "TreatMissingData": alarm.missing,
            **actions,
        },
    }
