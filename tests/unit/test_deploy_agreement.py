"""Whatever the options, doctor finds nothing in a file that ``smartpipe deploy export`` wrote."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smartpipe import ConfigError, Queue, Service
from smartpipe.cli.export import format_json
from smartpipe.deploy.compose import Contents, write_aws
from smartpipe.deploy.ecs_tasks import FARGATE_SIZES
from smartpipe.deploy.kubernetes import write_manifests
from smartpipe.deploy.options import read_options
from smartpipe.deploy.place import Place
from smartpipe.deploy.workloads import build_workloads
from smartpipe.doctor.examine import examine
from tests.support.ecs import PREFIX, configuration_of, subscribe, template_of

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = "registry.example.com/shop@sha256:" + "0" * 64
SIZES = [(cpu / 1_024, f"{memory}Mi") for cpu, known in FARGATE_SIZES.items() for memory in (known[0], known[-1])]
PROMISES = st.fixed_dictionaries(
    {"max_wait_seconds": st.sampled_from([30, 60, 900]), "seconds_per_message": st.sampled_from([0.05, 1, 20.5])},
    optional={"max": st.integers(5, 50)},
)
OPTIONS = st.builds(
    lambda size, promise, least, others: {
        "image": IMAGE,
        "cpu": size[0],
        "memory": size[1],
        "min": least if promise else max(1, least),
        **promise,
        **others,
    },
    st.sampled_from(SIZES),
    st.one_of(st.just({}), PROMISES),
    st.integers(0, 4),
    st.fixed_dictionaries(
        {},
        optional={
            "spot": st.booleans(),
            "platform": st.sampled_from(["fargate", "ec2"]),
            "protect_task": st.booleans(),
            "concurrency": st.sampled_from([1, 10, 64]),
            "drain_seconds": st.sampled_from([2, 25, 60.5, 115, 116, 900, 7_200]),
        },
    ),
)
VARIABLES = st.fixed_dictionaries(
    {},
    optional={
        "SMARTPIPE_PROCESSES": st.sampled_from(["1", "2", "8"]),
        "SMARTPIPE_WAIT_SECONDS": st.sampled_from(["1", "20"]),
        "SMARTPIPE_LIVENESS_SECONDS": st.sampled_from(["30", "600"]),
        "SMARTPIPE_METRICS": st.sampled_from(["true", "false"]),
        "SMARTPIPE_OUTBOX_URL": st.just("postgresql://me@db/shop"),
        "SMARTPIPE_PREFIX": st.just(PREFIX),
    },
)


def export(table: dict[str, Any]) -> dict[str, str]:
    """Return the files of each format that accepts the options, by name."""
    services = [subscribe(Service("billing")), subscribe(Service("Order_Mail"), None, Queue("audit", delay_seconds=30))]
    targets = {f"shop:{one.name}": one for one in services}
    options = read_options(table, [one.name for one in services], complete=True)
    workloads = build_workloads(targets, options, {"AWS_REGION": "eu-west-1"})
    files = {
        "shop.yaml": write_manifests(workloads, [], Place("eu-west-1", PREFIX, "123456789012")),
        "compose.yaml": write_aws(Contents(workloads, list(targets), [])),
    }
    try:
        return {
            **files,
            "ecs.json": format_json(template_of(services, table)),
            "main.tf.json": format_json(configuration_of(services, table)),
        }
    except ConfigError:  # sizes and drains that Amazon ECS cannot run
        return files


@pytest.mark.timeout(180)
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(table=OPTIONS, variables=VARIABLES)
def test_doctor_finds_nothing_in_an_export(table: dict[str, Any], variables: dict[str, str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            files = export(table)
        except ConfigError:
            return
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = examine([], [tmp_path / name for name in files], (), date(2026, 11, 27)).findings

    assert [(one.code, one.resource, one.message) for one in found if one.severity != "note"] == []
