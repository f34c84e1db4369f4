"""cfn-lint judges every template for CloudFormation that smartpipe exports. It takes seconds for each of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Service
from smartpipe.deploy.ecs_tasks import FARGATE_SIZES
from tests.support import ecs, exported
from tests.support.ecs import SIZES, properties, subscribe, template_of
from tests.support.programs import find_program, judge
from tests.unit import test_deploy_pipelines, test_export_alarms, test_export_cloudformation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "redis://:hunter2@cache/0")


def lint(template: dict[str, Any], region: str = "eu-west-1") -> list[Any]:
    """Return the findings of cfn-lint."""
    import cfnlint.api  # type: ignore[import-untyped] # 1.4 s of CPU

    found: list[Any] = cfnlint.api.lint(json.dumps(template), config=cfnlint.api.ManualArgs(regions=[region]))
    return found


@pytest.mark.parametrize(
    "build",
    [
        test_export_cloudformation.template_of,
        test_export_alarms.alarms_of,
        test_export_alarms.with_alarms,
    ],
    ids=["topology", "alarms", "topology with alarms"],
)
def test_it_finds_nothing_in_a_topology_with_every_feature(build: Callable[..., dict[str, Any]]) -> None:
    assert [str(one) for one in lint(build(*exported.everything()))] == []


@pytest.mark.parametrize("region", ["eu-west-1", "us-gov-west-1"])
def test_it_finds_nothing_in_ecs_services_with_every_option(region: str) -> None:
    assert [str(one) for one in lint(template_of(), region)] == []


def test_it_finds_nothing_if_all_services_run_on_ec2() -> None:
    assert lint(template_of([subscribe(Service("parcels"))], {**SIZES, "platform": "ec2"})) == []


def test_it_finds_nothing_in_services_with_unusual_names() -> None:
    assert lint(template_of(ecs.unusual(), SIZES)) == []


def test_it_accepts_the_smallest_and_the_largest_memory_of_each_cpu_of_fargate() -> None:
    sizes = [(cpu, memory) for cpu, known in FARGATE_SIZES.items() for memory in (known[0], known[-1])]
    table = {f"size-{cpu}-{memory}": {"cpu": cpu / 1_024, "memory": f"{memory}Mi"} for cpu, memory in sizes}
    template = template_of([subscribe(Service(name)) for name in table], {**SIZES, **table})

    assert lint(template) == []
    properties(template, "Size256512TaskDefinition")["Memory"] = "600"
    assert {one.rule.id for one in lint(template)} == {"E3047"}


def test_it_finds_nothing_in_pipelines_and_their_roles(tmp_path: Path) -> None:
    for platform in test_deploy_pipelines.PLATFORMS:
        options = test_deploy_pipelines.OPTIONS.model_copy(update={"deploy": platform})
        for name, one in {
            "inline": test_deploy_pipelines.template(options),
            "with-files": test_deploy_pipelines.template(options, inline=False),
            "roles": test_deploy_pipelines.roles(options),
        }.items():
            (tmp_path / f"{platform}-{name}.json").write_text(json.dumps(one))

    judge(find_program("cfn-lint"), *map(str, sorted(tmp_path.iterdir())))
