"""Every export of one large example, whole, beside the file that people have read and approved.

After a change that is meant, ``python -m tests.unit.test_export_documents`` writes the files; read what changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.monitoring.dashboards import FLEET, SERVICE, build_dashboards
from smartpipe.monitoring.prometheus_rules import write_rule_file
from smartpipe.monitoring.rules import AlertOptions
from smartpipe.names import Naming
from smartpipe.topology.export.asyncapi import build_document
from smartpipe.topology.export.cloudformation import build_alarm_template, build_template
from smartpipe.topology.export.iam import build_policies
from smartpipe.topology.export.pictures import draw_dot, draw_mermaid
from smartpipe.topology.export.terraform import build_configuration
from tests.support import ecs, exported

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe import Service

APPROVED = Path(__file__).with_name("approved")
NAMING = Naming("aws", "eu-west-1", "123456789012", "test-", "shop")


def no_large_topics() -> list[Service]:
    return [one for one in exported.everything() if one.name != "cinema"]  # Terraform cannot set its topic's limit


def dashboards() -> dict[str, dict[str, Any]]:
    return build_dashboards(exported.everything(), application="shop", labels={"env": "prod"})


def write(document: object) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


EXPORTS: dict[str, Callable[[], str]] = {
    "asyncapi.json": lambda: write(build_document(exported.everything(), prefix="test-", application="shop")),
    "cloudformation.json": lambda: write(build_template(exported.everything(), prefix="test-", application="shop")),
    "terraform.json": lambda: write(build_configuration(no_large_topics(), prefix="test-", application="shop")),
    "iam.json": lambda: write({one.name: build_policies(one, NAMING) for one in exported.everything()}),
    "ecs.json": lambda: write(ecs.template_of()),
    "ecs-terraform.json": lambda: write(ecs.configuration_of()),
    "alarms.json": lambda: write(
        build_alarm_template(exported.everything(), prefix="test-", application="shop", options=AlertOptions())
    ),
    "alerts.yml": lambda: write_rule_file(
        exported.everything(), application="shop", options=AlertOptions(labels={"env": "prod"})
    ),
    "fleet.json": lambda: write(dashboards()[FLEET]),
    "service.json": lambda: write(dashboards()[SERVICE]),
    "picture.dot": lambda: draw_dot(exported.everything()),
    "picture.mmd": lambda: draw_mermaid(exported.everything()),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_of_everything_is_the_approved_one(name: str) -> None:
    assert EXPORTS[name]() == (APPROVED / name).read_text()


if __name__ == "__main__":
    APPROVED.mkdir(exist_ok=True)
    for name, export in EXPORTS.items():
        (APPROVED / name).write_text(export())
