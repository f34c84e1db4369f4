"""``smartpipe deploy export --format terraform``: judged by terraform, and by a table of the provider's arguments."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Queue, Service
from smartpipe.topology.export.terraform import build_configuration
from tests.support import ecs, exported
from tests.support.ecs import PROMISE, SIZES, configuration_of, metrics_of, properties, subscribe, template_of
from tests.support.terraform_program import adapt_to_older_provider, initialize, validate

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "deploy-ecs.md"
TABLE = json.loads((Path(__file__).parents[1] / "support" / "terraform_ecs.json").read_text())["resources"]
META_ARGUMENTS = {"depends_on": "list", "lifecycle": "map"}
TYPES = {"string": str, "number": (int, float), "bool": bool, "list": list, "set": list, "map": dict}
WHOLE_REFERENCE = re.compile(r"\$\{[^}]+\}")


@pytest.fixture(autouse=True)
def _outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")


def find_errors(configuration: dict[str, Any]) -> list[str]:
    """Return the arguments that the provider does not know, or that have another type, and unknown references."""
    resources = configuration["resource"]
    found = [
        error
        for kind, blocks in resources.items()
        for label, block in blocks.items()
        for error in check(block, TABLE[kind], f"{kind}.{label}", {**META_ARGUMENTS})
    ]
    text = json.dumps({**configuration, "//": ""})
    for kind, label, attribute in re.findall(r"\$\{(aws_[a-z_]+)\.([A-Za-z0-9_-]+)\.([a-z_]+)\}", text):
        if label not in resources.get(kind, {}) or attribute not in TABLE[kind]["exported"]:
            found.append(f"{kind}.{label}.{attribute} refers to an unknown object")
    used = re.findall(r"var\.([a-z_A-Z0-9]+)", text)
    found += [f"var.{name} is not declared" for name in used if name not in configuration["variable"]]
    for blocks in resources.values():
        for block in blocks.values():
            found += [
                f"depends on {one}, which does not exist"
                for one in block.get("depends_on", [])
                if one.partition(".")[2] not in resources.get(one.partition(".")[0], {})
            ]
    return found


def check(block: dict[str, Any], table: dict[str, Any], place: str, more: dict[str, str]) -> Iterator[str]:
    arguments, blocks = {**table["arguments"], **more}, table.get("blocks", {})
    yield from (f"{place}: {name} is required" for name in table["required"] if name not in block)
    for name, value in block.items():
        if name in blocks:
            for one in value if isinstance(value, list) else [value]:
                yield from check(one, blocks[name], f"{place}.{name}", {})
        elif name not in arguments:
            yield f"{place}: no such argument {name}"
        elif not isinstance(value, TYPES[arguments[name]]) and not (  # type: ignore[arg-type]
            isinstance(value, str) and WHOLE_REFERENCE.fullmatch(value)
        ):
            yield f"{place}: {name} is not of type {arguments[name]}"


@pytest.mark.timeout(400)
def test_terraform_accepts_a_configuration_with_every_option(tmp_path: Path) -> None:
    initialize(tmp_path, configuration_of())

    assert validate(tmp_path) == []


@pytest.mark.timeout(400)
def test_terraform_accepts_services_with_unusual_names(tmp_path: Path) -> None:
    initialize(tmp_path, configuration_of(ecs.unusual(), {**SIZES, **PROMISE}))

    assert validate(tmp_path) == []


@pytest.mark.timeout(400)
def test_terraform_accepts_the_modules_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMARTPIPE_OUTBOX_URL")
    topology = build_configuration([exported.mailer(), exported.affiliates()], prefix="test-", application="shop")
    modules = {"topology": adapt_to_older_provider(topology), "workers": configuration_of([exported.mailer()], SIZES)}
    for name, module in modules.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.tf.json").write_text(json.dumps(module))
    [block] = re.findall(r"^```terraform\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "modules.tf").write_text(block)
    initialize(tmp_path, {"terraform": {"required_version": ">= 1.5"}})

    assert validate(tmp_path) == []


@pytest.mark.timeout(400)
def test_terraform_would_notice_an_unknown_argument(tmp_path: Path) -> None:
    configuration = configuration_of()
    configuration["resource"]["aws_ecs_service"]["billing"]["color"] = "red"
    initialize(tmp_path, configuration)

    assert any("color" in error for error in validate(tmp_path))


def test_the_aws_provider_knows_every_argument_of_a_configuration_with_every_option() -> None:
    assert find_errors(configuration_of()) == []


@pytest.mark.parametrize(
    ("kind", "change", "error"),
    [
        ("aws_ecs_service", {"color": "red"}, "no such argument color"),
        ("aws_ecs_service", {"desired_count": "2"}, "desired_count is not of type number"),
        ("aws_ecs_service", {"network_configuration": {"zones": []}}, "no such argument zones"),
        ("aws_ecs_service", {"depends_on": ["aws_iam_role.gone"]}, "depends on aws_iam_role.gone"),
        ("aws_cloudwatch_metric_alarm", {"alarm_name": "${var.gone}"}, "var.gone is not declared"),
        ("aws_iam_role_policy", {"role": "${aws_iam_role.gone.name}"}, "gone.name refers to an unknown object"),
    ],
)
def test_the_table_of_the_provider_finds_errors(kind: str, change: dict[str, Any], error: str) -> None:
    configuration = configuration_of()
    next(iter(configuration["resource"][kind].values())).update(change)

    assert any(error in one for one in find_errors(configuration))


def test_a_configuration_names_no_account_no_region_and_no_secret_value() -> None:
    text = json.dumps(configuration_of())

    assert not re.search(r"this-|\b\d{12}\b|[a-z]{2}-[a-z]+-\d|arn:aws:|hunter2", text)


def test_a_configuration_does_not_depend_on_the_order_of_the_targets() -> None:
    one, other = (configuration_of(services) for services in (ecs.shop(), list(reversed(ecs.shop()))))

    assert json.dumps(one) == json.dumps(other)


def test_terraform_and_cloudformation_describe_the_same_containers() -> None:
    configuration, template = configuration_of(), template_of()

    for label, name in (("billing", "Billing"), ("Order_Mail", "OrderMail"), ("videos", "Videos")):
        block = configuration["resource"]["aws_ecs_task_definition"][label]
        [container] = json.loads(block["container_definitions"])
        [wanted] = properties(template, f"{name}TaskDefinition")["ContainerDefinitions"]
        assert {key[0].upper() + key[1:] for key in container} == wanted.keys()
        for key in ("stopTimeout", "entryPoint", "command", "user"):
            assert container[key] == wanted[key[0].upper() + key[1:]]
        assert (block["cpu"], block["memory"]) == tuple(
            properties(template, f"{name}TaskDefinition")[key] for key in ("Cpu", "Memory")
        )


def test_terraform_and_cloudformation_scale_and_alarm_by_the_same_formulas() -> None:
    resources, template = configuration_of()["resource"], template_of()
    policies, alarms = resources["aws_appautoscaling_policy"], resources["aws_cloudwatch_metric_alarm"]

    def formulas(queries: list[dict[str, Any]]) -> dict[str, str | None]:
        return {one.get("id") or one["Id"]: one.get("expression") or one.get("Expression") for one in queries}

    for key in ("tasks", "age", "age2", "wake", "sleep"):
        block = alarms[f"Order_Mail_{key}"]
        name = f"OrderMail{key.capitalize()}Alarm"
        assert formulas(block["metric_query"]) == formulas(metrics_of(template, name))
        wanted = properties(template, name)
        keys = ("Threshold", "ComparisonOperator", "EvaluationPeriods", "TreatMissingData", "AlarmName")
        names = ("threshold", "comparison_operator", "evaluation_periods", "treat_missing_data", "alarm_name")
        assert [block[one] for one in names] == [wanted[one] for one in keys]
    tracking = policies["Order_Mail_backlog"]["target_tracking_scaling_policy_configuration"]
    metrics = tracking["customized_metric_specification"]["metrics"]
    assert formulas(metrics) == formulas(metrics_of(template, "OrderMailBacklogPolicy"))
    steps = policies["Order_Mail_wake"]["step_scaling_policy_configuration"]["step_adjustment"]
    wanted_steps = properties(template, "OrderMailWakePolicy")["StepScalingPolicyConfiguration"]["StepAdjustments"]
    assert [one["scaling_adjustment"] for one in steps] == [one["ScalingAdjustment"] for one in wanted_steps]


def test_terraform_does_not_undo_scaling_and_waits_until_new_workers_run() -> None:
    services = configuration_of()["resource"]["aws_ecs_service"]

    assert services["Order_Mail"]["lifecycle"] == {"ignore_changes": ["desired_count"]}
    assert "lifecycle" not in services["billing"]
    assert all(one["wait_for_steady_state"] for one in services.values())


def test_text_of_users_that_looks_like_a_template_stays_text() -> None:
    configuration = configuration_of([subscribe(Service("parcels"))], {**SIZES, "image": "shop:${TAG}%{if}"})

    assert configuration["variable"]["image"]["default"] == "shop:$${TAG}%%{if}"


def test_policies_that_are_too_long_for_a_role_are_managed_policies() -> None:
    queues = [Queue(f"parcels-with-a-long-name-{number}") for number in range(60)]
    configuration = configuration_of([subscribe(Service("parcels"), *queues, concurrency=1)], {**SIZES, **PROMISE})

    assert find_errors(configuration) == []
    attached = configuration["resource"]["aws_iam_role_policy_attachment"]
    assert len(attached) == 2
    waits_for = configuration["resource"]["aws_ecs_service"]["parcels"]["depends_on"]
    assert {f"aws_iam_role_policy_attachment.{name}" for name in attached} <= set(waits_for)


def test_eighty_services_are_no_problem() -> None:
    services = [subscribe(Service(f"service-{number}")) for number in range(80)]

    assert find_errors(configuration_of(services, {**SIZES, **PROMISE, "min": 0})) == []
