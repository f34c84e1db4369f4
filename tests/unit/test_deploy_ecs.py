"""``smartpipe deploy export --format ecs``: the template, judged by doctor. tests/acceptance has other judges."""

from __future__ import annotations

import json
import re
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Queue, Service
from smartpipe.deploy.ecs_tasks import Home
from smartpipe.deploy.options import RELAY
from smartpipe.doctor.examine import examine
from tests.support import ecs
from tests.support.ecs import PROMISE, SIZES, properties, subscribe, template_of

if TYPE_CHECKING:
    from pathlib import Path

THEIRS = "arn:aws:sqs:us-east-1:210987654321:parcels"


@pytest.fixture(autouse=True)
def _outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "redis://:hunter2@cache/0")


def container(name: str, template: dict[str, Any] | None = None) -> dict[str, Any]:
    [found] = properties(template or template_of(), f"{name}TaskDefinition")["ContainerDefinitions"]
    assert isinstance(found, dict)
    return found


def refusal(*services: Service, home: Home = ecs.NOWHERE, **options: Any) -> str:
    """Return the error of a service with these options."""
    with pytest.raises(ConfigError) as caught:
        template_of(services or [subscribe(Service("parcels"))], {**SIZES, **options}, home)
    return str(caught.value)


def test_only_an_export_with_fargate_asks_for_a_public_address() -> None:
    for platform, asks in (("fargate", True), ("ec2", False)):
        services, table = [subscribe(Service("parcels"))], {**SIZES, "platform": platform}
        assert ("AssignPublicIp" in template_of(services, table)["Parameters"]) == asks
        assert ("assign_public_ip" in ecs.configuration_of(services, table)["variable"]) == asks


def test_doctor_finds_nothing_in_the_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ecs.json"
    file.write_text(json.dumps(template_of()))
    report = examine([], [file], (), date(2026, 11, 27))
    assert report.findings == []

    monkeypatch.setitem(ecs.TABLE, "videos", {**ecs.TABLE["videos"], "drain_seconds": 7_200})
    template = template_of()
    container("Videos", template)["StopTimeout"] = 120
    file.write_text(json.dumps(template))
    assert [one.code for one in examine([], [file], (), date(2026, 11, 27)).findings] == ["SP201"]


def test_every_service_and_the_relay_have_a_service_with_a_role_and_a_log_group() -> None:
    resources = template_of()["Resources"]

    for name in ("Billing", "OrderMail", "Reports", "Videos", "SmartpipeRelay"):
        for suffix in ("TaskDefinition", "Service", "TaskRole", "LogGroup", "TasksAlarm"):
            assert f"{name}{suffix}" in resources


def test_a_template_names_no_account_no_region_and_no_secret_value() -> None:
    text = json.dumps(template_of())

    assert not re.search(r"this-|\b\d{12}\b|[a-z]{2}-[a-z]+-\d|arn:aws:|hunter2", text)


def test_a_template_does_not_depend_on_the_order_of_the_targets() -> None:
    assert json.dumps(template_of(ecs.shop())) == json.dumps(template_of(list(reversed(ecs.shop()))))


def test_the_description_names_the_command_and_the_services_that_are_left_out() -> None:
    description = template_of()["Description"]

    assert "smartpipe deploy export --format ecs" in description
    assert "Without portal" in description


def test_ecs_waits_for_the_drain_and_checks_the_health_of_the_worker() -> None:
    mail = container("OrderMail")

    assert mail["StopTimeout"] == 120
    assert [*mail["EntryPoint"], *mail["Command"]] == ["smartpipe", "worker", "shop:Order_Mail", "--protect-task"]
    assert mail["HealthCheck"]["Command"] == ["CMD", "smartpipe", "health"]
    assert mail["HealthCheck"]["Interval"] * mail["HealthCheck"]["Retries"] >= 120  # a blocked event loop may drain
    assert {"Name": "SMARTPIPE_DRAIN_SECONDS", "Value": "115"} in mail["Environment"]
    assert {"Name": "AWS_REGION", "Value": {"Ref": "AWS::Region"}} in mail["Environment"]
    assert container("Videos")["StopTimeout"] == 905
    assert container("SmartpipeRelay")["Command"] == ["relay"]


def test_containers_have_no_more_rights_than_they_need_and_can_write_only_to_tmp() -> None:
    for name in ("Billing", "Videos", "SmartpipeRelay"):
        one = container(name)
        assert one["ReadonlyRootFilesystem"] is True
        assert one["User"] == "10001:10001"
        assert one["LinuxParameters"] == {"InitProcessEnabled": True, "Capabilities": {"Drop": ["ALL"]}}
        assert one["MountPoints"] == [{"SourceVolume": "tmp", "ContainerPath": "/tmp", "ReadOnly": False}]
        assert properties(template_of(), f"{name}Service")["EnableExecuteCommand"] is False


def test_an_outage_of_logs_does_not_block_a_worker() -> None:
    options = container("Billing")["LogConfiguration"]["Options"]

    assert options["mode"] == "non-blocking"
    assert options["awslogs-group"] == {"Ref": "BillingLogGroup"}


def test_a_deployment_never_stops_a_worker_before_its_successor_runs_and_rolls_back_if_none_does() -> None:
    assert properties(template_of(), "BillingService")["DeploymentConfiguration"] == {
        "MinimumHealthyPercent": 100,
        "MaximumPercent": 200,
        "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
    }


def test_a_service_has_a_count_only_without_a_scaler() -> None:
    template = template_of()

    assert properties(template, "BillingService")["DesiredCount"] == 1
    assert "BillingScalableTarget" not in template["Resources"]
    assert "DesiredCount" not in properties(template, "OrderMailService")
    target = properties(template, "OrderMailScalableTarget")
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 5)
    assert target["ResourceId"] == {"Fn::Sub": "service/${Cluster}/${OrderMailService.Name}"}


def test_spot_capacity_never_runs_all_tasks_of_a_service_that_always_has_one_and_may_have_more() -> None:
    template = template_of()
    spot = {"CapacityProvider": "FARGATE_SPOT", "Weight": 1}
    base = {"CapacityProvider": "FARGATE", "Base": 1, "Weight": 0}

    assert properties(template, "ReportsService")["CapacityProviderStrategy"] == [base, spot]
    assert properties(template, "OrderMailService")["CapacityProviderStrategy"] == [spot]
    alone = template_of([subscribe(Service("parcels"))], {**SIZES, "spot": True})
    assert properties(alone, "ParcelsService")["CapacityProviderStrategy"] == [spot]  # or spot would have no effect
    assert properties(template, "BillingService")["LaunchType"] == "FARGATE"
    ec2 = properties(template, "VideosService")
    assert ec2["CapacityProviderStrategy"] == [{"CapacityProvider": {"Ref": "CapacityProvider"}, "Weight": 1}]
    assert properties(template, "VideosTaskDefinition")["RequiresCompatibilities"] == ["EC2"]
    assert "CapacityProvider" not in template_of([subscribe(Service("parcels"))], SIZES)["Parameters"]


def test_secrets_are_references_to_parameters_that_accept_only_arns() -> None:
    template = template_of()

    reference = {"Name": "SMARTPIPE_IDEMPOTENCY_URL", "ValueFrom": {"Ref": "SmartpipeIdempotencyUrlArn"}}
    assert container("Billing", template)["Secrets"] == [reference]
    assert container("Videos", template)["Secrets"][0]["ValueFrom"] == {"Ref": "VideosIdempotencyUrlArn"}
    pattern = template["Parameters"]["SmartpipeIdempotencyUrlArn"]["AllowedPattern"]
    assert re.search(pattern, "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop/redis-AbCdEf")
    assert re.search(pattern, "arn:aws-cn:ssm:cn-north-1:123456789012:parameter/shop/redis")
    assert not re.search(pattern, "redis://:hunter2@cache/0")
    assert not re.search(pattern, "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop-AbCdEf:url::")


def test_only_the_execution_role_may_read_secrets_and_only_those_of_the_template() -> None:
    template = template_of()
    [policy] = properties(template, "ExecutionRole")["Policies"]
    [read] = [one for one in policy["PolicyDocument"]["Statement"] if one["Sid"] == "ReadSecrets"]

    names = ("SmartpipeIdempotencyUrlArn", "SmartpipeOutboxUrlArn", "VideosIdempotencyUrlArn")
    assert sorted(one["Ref"] for one in read["Resource"]) == sorted(names)
    for name in ("Billing", "OrderMail", "SmartpipeRelay"):
        assert "secretsmanager" not in json.dumps(properties(template, f"{name}TaskRole"))


def test_the_role_of_a_task_has_exactly_the_rights_of_its_service() -> None:
    def allowed(name: str) -> dict[str, list[str]]:
        role = properties(template_of(), f"{name}TaskRole")
        statements = [one for policy in role["Policies"] for one in policy["PolicyDocument"]["Statement"]]
        return {one["Sid"]: [part["Fn::Sub"] for part in one["Resource"] if "Fn::Sub" in part] for one in statements}

    place = "${AWS::Region}:${AWS::AccountId}"
    assert allowed("Billing")["PublishToTopics"] == [f"arn:${{AWS::Partition}}:sns:{place}:prod-ecs-losses"]
    assert allowed("Billing")["ReceiveFromQueues"] == [f"arn:${{AWS::Partition}}:sqs:{place}:prod-billing"]
    assert "PublishToTopics" not in allowed("Reports")
    assert allowed("SmartpipeRelay") == {"PublishToTopics": allowed("Billing")["PublishToTopics"]}
    assert allowed("OrderMail")["ProtectTasks"] == [f"arn:${{AWS::Partition}}:ecs:{place}:task/${{Cluster}}/*"]
    assert "ProtectTasks" not in allowed("Reports")


def test_the_table_of_claims_the_bucket_and_keys_of_other_accounts_keep_their_arns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "dynamodb://claims")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads/shop")
    key = "arn:aws:kms:eu-west-1:210987654321:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    service = subscribe(Service("parcels", queue=Queue("parcels", kms_key=key)), idempotent=True)

    role = json.dumps(properties(template_of([service], {**SIZES, "memory": "1Gi"}), "ParcelsTaskRole"))

    assert '{"Fn::Sub": "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/claims"}' in role
    assert '{"Fn::Sub": "arn:${AWS::Partition}:s3:::payloads/shop/*"}' in role
    assert f'["{key}"]' in role


def test_task_protection_in_the_environment_of_the_export_comes_with_its_permission(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_PROTECT_TASK", "true")

    template = template_of([subscribe(Service("parcels"), Queue("parcels"))], SIZES)

    assert "--protect-task" in container("Parcels", template)["Command"]
    assert "ecs:UpdateTaskProtection" in json.dumps(properties(template, "ParcelsTaskRole"))


def test_policies_that_are_too_long_for_a_role_are_managed_and_attached_before_the_service_starts() -> None:
    queues = [Queue(f"parcels-with-a-long-name-{number}") for number in range(60)]
    template = template_of([subscribe(Service("parcels"), *queues, concurrency=1)], {**SIZES, "protect_task": True})

    managed = [name for name, one in template["Resources"].items() if one["Type"] == "AWS::IAM::ManagedPolicy"]
    assert "Policies" not in properties(template, "ParcelsTaskRole")
    assert len(managed) >= 3
    assert template["Resources"]["ParcelsService"]["DependsOn"] == managed
    for name in managed:
        resolved = re.sub(r'\{"Fn::Sub": ("[^"]+")\}', r"\1", json.dumps(properties(template, name)["PolicyDocument"]))
        for token, value in {
            "Partition": "aws-us-gov",
            "Region": "ap-southeast-5",
            "AccountId": "123456789012",
        }.items():
            resolved = resolved.replace(f"${{AWS::{token}}}", value)
        assert len("".join(resolved.split())) <= 6_144


def test_the_image_that_most_services_have_is_one_parameter_and_others_have_their_own() -> None:
    parameters = template_of()["Parameters"]

    assert parameters["Image"]["Default"] == SIZES["image"]
    assert parameters["ReportsImage"]["Default"] == "reports:2"
    assert container("Reports")["Image"] == {"Ref": "ReportsImage"}
    assert container("SmartpipeRelay")["Image"] == {"Ref": "Image"}


def test_services_whose_names_differ_only_in_signs_share_nothing() -> None:
    names = ("a-b", "a_b", "c", "d", "e")
    table = {**SIZES, "a-b": {"image": "one:1"}, "a_b": {"image": "two:2"}}

    template = template_of([subscribe(Service(name)) for name in names], table)

    assert sum(name.endswith("TaskDefinition") for name in template["Resources"]) == 6
    images = {name: one["Default"] for name, one in template["Parameters"].items() if name.endswith("Image")}
    assert sorted(images.values()) == ["one:1", "one:1", SIZES["image"], "two:2"]  # and the relay
    assert images["Image"] == SIZES["image"]


def test_services_with_unusual_names_have_different_names_on_aws() -> None:
    template = template_of(ecs.unusual(), SIZES)

    definitions = [one for one in template["Resources"].values() if one["Type"] == "AWS::ECS::TaskDefinition"]
    assert len({one["Properties"]["Family"] for one in definitions}) == len(ecs.unusual()) + 1


def test_fifty_services_fit_into_a_stack_and_too_many_are_refused_with_an_alternative() -> None:
    def many(number: int) -> list[Service]:
        return [subscribe(Service(f"service-{one}")) for one in range(number)]

    assert len(template_of(many(50), {**SIZES, **PROMISE})["Resources"]) == 50 * 8 + 5 + 1  # and the relay
    with pytest.raises(ConfigError, match=r"646 resources, and CloudFormation takes 500: .*--format terraform"):
        template_of(many(80), {**SIZES, **PROMISE})
    queues = [Queue(f"parcels-{number}") for number in range(4)]
    large = [subscribe(Service(f"service-{one}"), *queues) for one in range(43)]
    with pytest.raises(ConfigError, match=r"characters, and CloudFormation takes 1,000,000"):
        template_of(large, {**SIZES, **PROMISE, "memory": "1Gi"})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cpu": 0.3}, "cpu = 0.3 is not a size of Fargate (0.25, 0.5, 1, 2, 4, 8, 16, 32): set cpu = 0.5"),
        ({"cpu": 64, "memory": "64Gi"}, 'cpu = 64 is more than the 32 of Fargate; set platform = "ec2"'),
        ({"memory": "600Mi"}, "memory = '600Mi' is not a size of Fargate with cpu = 0.25"),
        ({"memory": "600Mi"}, 'which has "512Mi" to "2Gi": set memory = "1Gi"'),
        ({"memory": "4Gi"}, 'which has "512Mi" to "2Gi": set memory = "4Gi" and cpu = 0.5'),
        ({"memory": "500Gi"}, 'which has "512Mi" to "2Gi": set platform = "ec2"'),
        ({"drain_seconds": 600}, "drain_seconds = 600 is too long for Fargate, which kills a task 120 s after SIGTERM"),
        ({"drain_seconds": 600}, "set drain_seconds to at most 115, with protect_task = true (task protection)"),
        ({"platform": "ec2", "spot": True}, 'spot = true and platform = "ec2" contradict each other'),
        ({"platform": "lambda"}, "platform = 'lambda' is wrong: input should be 'fargate' or 'ec2'"),
        ({"protect_task": "yes"}, "protect_task = 'yes' is wrong"),
    ],
)
def test_a_service_that_ecs_cannot_run_is_refused_with_a_remedy(options: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(**options)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"cpu": 0.3}, "cpu = 0.3 is not a size of Fargate"),
        ({"memory": "600Mi"}, "memory = '600Mi' is not a size of Fargate"),
        ({"platform": "ec2", "spot": True}, 'spot = true and platform = "ec2" contradict each other'),
    ],
)
def test_a_relay_that_ecs_cannot_run_is_refused_too(own: dict[str, Any], sentence: str) -> None:
    options: dict[str, Any] = {RELAY: own}
    assert f"service 'smartpipe-relay': {sentence}" in refusal(**options)


def test_a_wrong_size_that_the_relay_has_from_a_service_is_reported_once() -> None:
    assert refusal(cpu=0.3, memory="1Gi", spot=True).count("is not a size of Fargate") == 1


def test_a_drain_at_the_limit_of_fargate_and_any_size_on_ec2_are_accepted() -> None:
    service = [subscribe(Service("parcels"))]

    template_of(service, {**SIZES, "drain_seconds": 115})
    found = template_of(service, {**SIZES, "cpu": 0.3, "memory": "600Mi", "drain_seconds": 7_200, "platform": "ec2"})
    assert properties(found, "ParcelsTaskDefinition")["Cpu"] == "307"


def test_all_errors_of_all_services_are_reported_together() -> None:
    services = [subscribe(Service(name)) for name in ("parcels", "letters")]

    with pytest.raises(ConfigError) as caught:
        template_of(services, {**SIZES, "cpu": 0.3, "memory": "600Mi", "letters": {"drain_seconds": 600}})

    assert len(caught.value.problems) == 5


def test_a_queue_in_another_account_or_region_is_refused_if_the_service_scales() -> None:
    service = subscribe(Service("parcels"), Queue(THEIRS, existing=True))

    for home in (Home(None, None), Home("eu-west-1", "210987654321"), Home("us-east-1", "123456789012")):
        assert "set AWS_REGION and SMARTPIPE_ACCOUNT_ID if the tasks run there too" in refusal(
            service, home=home, **PROMISE
        )
    template_of([service], SIZES)
    found = template_of([service], {**SIZES, **PROMISE}, Home("us-east-1", "210987654321"))
    assert '"parcels"' in json.dumps(ecs.metrics_of(found, "ParcelsBacklogPolicy"))


def test_scaling_to_zero_is_refused_for_more_queues_than_an_alarm_can_watch() -> None:
    service = subscribe(Service("parcels"), *(Queue(f"parcels-{number}") for number in range(5)))

    assert "min = 0 with 5 queues" in refusal(service, **PROMISE, min=0)
    template_of([service], {**SIZES, **PROMISE})


def test_a_topic_by_arn_may_be_in_the_account_of_the_stack_or_not() -> None:
    from tests.support.exported import affiliates

    role = properties(template_of([affiliates()], SIZES), "AffiliatesTaskRole")
    actions = {action for one in role["Policies"][0]["PolicyDocument"]["Statement"] for action in one["Action"]}

    assert {"sns:ListSubscriptionsByTopic", "sns:ListSubscriptions"} <= actions
