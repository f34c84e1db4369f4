"""The exports for Amazon ECS on moto: a stack of moto's engine, calls of the scaling API, and a plan of terraform."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.conftest import lead_to
from tests.support.ecs import configuration_of, template_of
from tests.support.terraform_program import initialize, run_terraform

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe import EmbeddedBroker

CLUSTER = "parcels"
STORE = "arn:aws:ssm:eu-west-1:123456789012:parameter/store"


@pytest.fixture
def network(moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Create a cluster; return the subnets and the security groups of the account."""
    lead_to(moto.environment, monkeypatch)
    boto3.client("ecs").create_cluster(clusterName=CLUSTER)
    ec2 = boto3.client("ec2")
    return {
        "subnets": [one["SubnetId"] for one in ec2.describe_subnets()["Subnets"]][:2],
        "security_groups": [one["GroupId"] for one in ec2.describe_security_groups()["SecurityGroups"]][:1],
    }


async def test_a_stack_of_motos_engine_runs_the_services_with_their_roles(network: dict[str, list[str]]) -> None:
    values = {
        "Cluster": CLUSTER,
        "Subnets": ",".join(network["subnets"]),
        "SecurityGroups": ",".join(network["security_groups"]),
        "CapacityProvider": "instances",
        "SmartpipeIdempotencyUrlArn": STORE,
        "VideosIdempotencyUrlArn": STORE,
    }
    parameters = [{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()]

    body = json.dumps(template_of())
    boto3.client("cloudformation").create_stack(StackName="workers", TemplateBody=body, Parameters=parameters)

    ecs = boto3.client("ecs")
    services = ecs.describe_services(cluster=CLUSTER, services=ecs.list_services(cluster=CLUSTER)["serviceArns"])
    by_family = {one["taskDefinition"].split("/")[1].split(":")[0]: one for one in services["services"]}
    assert by_family.keys() == {"prod-billing", "prod-Order_Mail", "prod-reports", "prod-videos"}
    definition = ecs.describe_task_definition(taskDefinition="prod-billing")["taskDefinition"]
    [container] = definition["containerDefinitions"]
    assert container["secrets"] == [{"name": "SMARTPIPE_IDEMPOTENCY_URL", "valueFrom": STORE}]
    assert container["logConfiguration"]["options"]["awslogs-group"] == "/ecs/workers/prod-billing"
    assert {"name": "AWS_REGION", "value": ecs.meta.region_name} in container["environment"]
    iam = boto3.client("iam")
    [role] = [one["RoleName"] for one in iam.list_roles()["Roles"] if "BillingTaskRole" in one["RoleName"]]
    policy = iam.get_role_policy(RoleName=role, PolicyName="consume")["PolicyDocument"]
    account = boto3.client("sts").get_caller_identity()["Account"]
    assert f"arn:aws:sqs:{ecs.meta.region_name}:{account}:prod-billing" in json.dumps(policy)


async def test_the_scaling_api_accepts_policies_and_alarms_that_motos_engine_leaves_out(
    network: dict[str, list[str]],
) -> None:
    known = {"Cluster": CLUSTER, "AlarmTopicArn": "arn:aws:sns:eu-west-1:123456789012:alarms"}
    scaling, cloudwatch = boto3.client("application-autoscaling"), boto3.client("cloudwatch")
    ecs = boto3.client("ecs")

    def resolve(value: Any) -> Any:
        match value:
            case {"Ref": name}:
                return known[name]
            case {"Fn::GetAtt": [name, "Name"]}:
                return name
            case {"Fn::If": [_, chosen, _]}:
                return resolve(chosen)
            case {"Fn::Sub": text}:
                return text.replace("${Cluster}", CLUSTER).replace("${", "").replace(".Name}", "")
            case dict():
                return {key: resolve(one) for key, one in value.items()}
            case list():
                return [resolve(one) for one in value]
        return value

    targets: dict[str, dict[str, str]] = {}
    resources = template_of()["Resources"]
    for name, resource in resources.items():
        if resource["Type"] == "AWS::ApplicationAutoScaling::ScalableTarget":
            properties = resolve(resource["Properties"])
            service = properties["ResourceId"].rpartition("/")[2]
            ecs.register_task_definition(
                family=service, containerDefinitions=[{"name": "a", "image": "b", "memory": 8}]
            )
            ecs.create_service(cluster=CLUSTER, serviceName=service, taskDefinition=service, desiredCount=1)
            scaling.register_scalable_target(**properties)
            known[name] = name
            targets[name] = {key: properties[key] for key in ("ServiceNamespace", "ScalableDimension", "ResourceId")}
    for name, resource in resources.items():
        if resource["Type"] == "AWS::ApplicationAutoScaling::ScalingPolicy":
            properties = resolve(resource["Properties"])
            target = targets[properties.pop("ScalingTargetId")]
            known[name] = scaling.put_scaling_policy(**target, **properties)["PolicyARN"]
    alarms = [resolve(one["Properties"]) for one in resources.values() if one["Type"] == "AWS::CloudWatch::Alarm"]
    for alarm in alarms:
        cloudwatch.put_metric_alarm(**alarm)

    assert len(targets) == 3
    kinds = [one["PolicyType"] for one in scaling.describe_scaling_policies(ServiceNamespace="ecs")["ScalingPolicies"]]
    assert sorted(kinds) == ["StepScaling"] * 2 + ["TargetTrackingScaling"] * 3
    names = {one["AlarmName"] for one in alarms}
    found = cloudwatch.describe_alarms(AlarmNamePrefix="prod-")["MetricAlarms"]
    assert names <= {one["AlarmName"] for one in found}


@pytest.mark.timeout(400)
async def test_terraform_plans_every_resource_and_resolves_every_expression(
    network: dict[str, list[str]], moto: EmbeddedBroker, tmp_path: Path
) -> None:
    configuration = configuration_of()
    configuration["provider"] = {"aws": {"skip_credentials_validation": True, "skip_metadata_api_check": True}}
    initialize(tmp_path, configuration)
    values = {
        "cluster": CLUSTER,
        **network,
        "capacity_provider": "instances",
        "smartpipe_idempotency_url_arn": STORE,
        "videos_idempotency_url_arn": STORE,
    }
    (tmp_path / "terraform.tfvars.json").write_text(json.dumps(values))

    planned = run_terraform(tmp_path, "plan", "-input=false", "-out=plan", **moto.environment)
    assert planned.returncode == 0, planned.stderr
    changes = json.loads(run_terraform(tmp_path, "show", "-json", "plan").stdout)["resource_changes"]

    assert {tuple(one["change"]["actions"]) for one in changes} == {("create",)}
    assert len(changes) == sum(map(len, configuration["resource"].values()))
    alarm = next(one for one in changes if one["address"] == "aws_cloudwatch_metric_alarm.billing_tasks")
    assert not alarm["change"]["after"]["alarm_actions"]  # without a topic

    values["videos_idempotency_url_arn"] = "redis://:hunter2@cache/0"
    (tmp_path / "terraform.tfvars.json").write_text(json.dumps(values))
    refused = run_terraform(tmp_path, "plan", "-input=false", "-no-color", **moto.environment)
    assert "without a JSON key or a version" in " ".join(refused.stderr.split())
