"""``smartpipe deploy export --format compose``, judged by Compose, Swarm, the schema of Compose, and doctor."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from smartpipe import ConfigError, Event, Service, Topic
from smartpipe.deploy.compose import (
    AWS_FILE,
    BROKER,
    BROKER_HEALTH_PATH,
    BROKER_URL,
    LOCAL_FILE,
    TOPOLOGY,
    WITH_DEVELOPMENT_PACKAGES,
    Contents,
    write_aws,
    write_local,
)
from smartpipe.deploy.dockerfile import write_dockerfile
from smartpipe.deploy.options import read_options
from smartpipe.deploy.workloads import build_workloads
from smartpipe.doctor.compose import examine_compose
from smartpipe.doctor.manifests import Document, read_documents
from smartpipe.local.broker import BACKENDS, list_variables
from smartpipe.settings import WorkerSettings
from tests.support.programs import find_program

if TYPE_CHECKING:
    from pathlib import Path

TABLE = {
    "image": "registry.example.com:5000/shop:1.4.2",
    "cpu": 0.25,
    "memory": "1Gi",
    "Order_Mail": {"min": 3, "drain_seconds": 100, "image": "mail@sha256:" + "0" * 64},
}
SECRETS = {"SMARTPIPE_IDEMPOTENCY_URL": "redis://cache/0", "SMARTPIPE_OUTBOX_URL": "postgresql://db/shop"}


class ParcelPacked(Event, topic=Topic("compose-parcels"), type="compose.parcel.packed", version="1.0"):
    parcel_id: str


async def handle(_: Event) -> None: ...


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "redis://:hunter2@cache/0")
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "123456789012")
    monkeypatch.setenv("SMARTPIPE_PREFIX", "prod-")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://bucket/$HOME")


def contents(environment: dict[str, str], **services: Service) -> Contents:
    if not services:
        billing, mail = Service("billing"), Service("Order_Mail")
        billing.subscribe(ParcelPacked, idempotent=True)(handle)
        mail.subscribe(ParcelPacked)(handle)
        services = {"billing": billing, "mail": mail}
    found = {f"shop:{name}": one for name, one in services.items()}
    options = read_options(TABLE, [one.name for one in found.values()], complete=False)
    return Contents(build_workloads(found, options, environment), ["shop:portal", *found], ["portal"])


def export_local() -> str:
    variables = list_variables(BROKER_URL)
    return write_local(contents(variables), variables)


def export_aws() -> str:
    return write_aws(contents({"AWS_REGION": "eu-west-1"}))


def services(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def find_tool(name: str, *arguments: str) -> list[str]:
    return [find_program(name), *arguments]


def judge(command: list[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SMARTPIPE_")}
    return subprocess.run(
        command,
        cwd=directory,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory with both files."""
    (tmp_path / LOCAL_FILE).write_text(export_local())
    (tmp_path / AWS_FILE).write_text(export_aws())
    return tmp_path


def test_the_broker_and_the_topology_come_before_the_workers() -> None:
    found = services(export_local())

    assert list(found) == [BROKER, TOPOLOGY, "order-mail", "billing", "smartpipe-relay"]
    assert found[TOPOLOGY]["depends_on"] == {BROKER: {"condition": "service_healthy"}}
    assert found[TOPOLOGY]["command"] == ["topology", "apply", "--yes", "shop:portal", "shop:billing", "shop:mail"]
    for name in ("order-mail", "billing", "smartpipe-relay"):
        assert found[name]["depends_on"] == {TOPOLOGY: {"condition": "service_completed_successfully"}}
        assert found[name]["environment"]["AWS_ENDPOINT_URL"] == BROKER_URL
    assert "portal" not in found
    assert "# Without portal" in export_local()


def test_the_broker_has_the_development_packages_and_only_this_machine_reaches_it() -> None:
    broker = services(export_local())[BROKER]

    assert broker["build"]["args"] == WITH_DEVELOPMENT_PACKAGES
    (argument,) = WITH_DEVELOPMENT_PACKAGES
    assert f"\nARG {argument}=" in write_dockerfile(["shop:billing"], 8080, packaged=True)
    assert broker["image"] == "mail-broker"
    assert broker["ports"] == ["127.0.0.1:${BROKER_PORT:-4566}:4566"]
    assert BACKENDS["ministack"].health_path == BROKER_HEALTH_PATH
    assert BROKER_HEALTH_PATH in broker["healthcheck"]["test"][-1]


def test_an_image_that_is_built_here_has_a_tag_and_no_digest() -> None:
    found = services(export_local())

    assert {name: one["image"] for name, one in found.items()} == {
        BROKER: "mail-broker",
        TOPOLOGY: "mail",
        "order-mail": "mail",
        "billing": "registry.example.com:5000/shop:1.4.2",
        "smartpipe-relay": "mail",
    }
    assert services(export_aws())["order-mail"]["image"] == TABLE["Order_Mail"]["image"]  # type: ignore[index]


@pytest.mark.parametrize("text", [export_local, export_aws])
def test_a_worker_that_ends_starts_again_and_the_topology_is_applied_once(text: Any) -> None:
    found = services(text())

    for name in ("billing", "order-mail", "smartpipe-relay"):
        assert found[name]["deploy"]["restart_policy"] == {"condition": "any", "delay": "5s"}
    assert TOPOLOGY not in found or found[TOPOLOGY]["restart"] == "no"


@pytest.mark.parametrize("text", [export_local, export_aws])
def test_every_container_is_hardened(text: Any) -> None:
    for one in services(text()).values():
        assert (one["user"], one["read_only"], one["init"], one["cap_drop"]) == ("10001:10001", True, True, ["ALL"])
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert one["volumes"] == [{"type": "tmpfs", "target": "/tmp"}]  # Swarm ignores the short form


@pytest.mark.parametrize("text", [export_local, export_aws])
def test_a_worker_drains_within_its_grace_period_and_is_asked_for_its_health(text: Any) -> None:
    found = services(text())

    assert (found["billing"]["stop_grace_period"], found["order-mail"]["stop_grace_period"]) == ("30s", "105s")
    assert found["order-mail"]["environment"]["SMARTPIPE_DRAIN_SECONDS"] == "100"
    assert found["billing"]["healthcheck"]["test"] == ["CMD", "smartpipe", "health"]
    assert (found["billing"]["healthcheck"]["retries"], found["order-mail"]["healthcheck"]["retries"]) == (4, 7)
    assert found["billing"]["healthcheck"]["interval"] == "15s"
    assert found["billing"]["stop_signal"] == "SIGTERM"
    assert found["billing"]["deploy"]["resources"] == {
        "limits": {"memory": "1024M"},
        "reservations": {"cpus": "0.25", "memory": "1024M"},
    }
    assert (found["billing"]["deploy"]["replicas"], found["order-mail"]["deploy"]["replicas"]) == (1, 3)


def test_secrets_are_references_which_a_laptop_does_not_need_for_its_idempotency_store() -> None:
    local, aws = services(export_local()), services(export_aws())

    assert "hunter2" not in export_local() + export_aws()
    assert local["billing"]["environment"]["SMARTPIPE_IDEMPOTENCY_URL"].startswith(
        "${SMARTPIPE_IDEMPOTENCY_URL:-dynamo"
    )
    assert local[TOPOLOGY]["environment"]["SMARTPIPE_IDEMPOTENCY_URL"].startswith("${SMARTPIPE_IDEMPOTENCY_URL:-dynamo")
    assert aws["billing"]["environment"]["SMARTPIPE_IDEMPOTENCY_URL"].startswith("${SMARTPIPE_IDEMPOTENCY_URL:?")
    assert "SMARTPIPE_IDEMPOTENCY_URL" not in aws["order-mail"]["environment"]


def test_settings_go_to_the_containers_but_not_the_account_to_a_laptop() -> None:
    local, aws = services(export_local()), services(export_aws())

    assert aws["billing"]["environment"]["SMARTPIPE_ACCOUNT_ID"] == "123456789012"
    assert not [name for name, one in local.items() if "SMARTPIPE_ACCOUNT_ID" in one.get("environment", {})]
    for found in (local["billing"], local[TOPOLOGY], aws["billing"]):
        assert found["environment"]["SMARTPIPE_PREFIX"] == "prod-"
        assert found["environment"]["SMARTPIPE_CLAIM_CHECK_URL"] == "s3://bucket/$$HOME"  # or Compose would replace it
    assert local["billing"]["environment"]["SMARTPIPE_WAIT_SECONDS"] == "1"
    for found in (local["smartpipe-relay"], aws["billing"]):
        assert "SMARTPIPE_WAIT_SECONDS" not in found["environment"]


def test_the_owner_of_a_bucket_does_not_go_to_a_laptop_where_the_broker_owns_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://bucket/shop?owner=123456789012")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_READ", "s3://a?owner=123456789012,s3://b/c?owner=210987654321")
    local, aws = services(export_local()), services(export_aws())

    for found in (local["billing"], local[TOPOLOGY]):
        assert found["environment"]["SMARTPIPE_CLAIM_CHECK_URL"] == "s3://bucket/shop"
        assert found["environment"]["SMARTPIPE_CLAIM_CHECK_READ"] == "s3://a,s3://b/c"
    assert aws["billing"]["environment"]["SMARTPIPE_CLAIM_CHECK_URL"] == "s3://bucket/shop?owner=123456789012"


def test_a_service_that_scales_to_zero_runs_in_one_container_because_swarm_has_no_scaler() -> None:
    service = Service("sleeper")
    service.subscribe(ParcelPacked)(handle)
    table = {**TABLE, "min": 0, "max_wait_seconds": 60, "seconds_per_message": 1}
    workloads = build_workloads({"shop:sleeper": service}, read_options(table, ["sleeper"], complete=False), {})

    text = write_aws(Contents(workloads, ["shop:sleeper"], []))

    assert services(text)["sleeper"]["deploy"]["replicas"] == 1


@pytest.mark.parametrize("name", [BROKER, TOPOLOGY])
def test_a_service_with_the_name_of_the_broker_or_the_topology_is_refused(name: str) -> None:
    service = Service(name)
    service.subscribe(ParcelPacked)(handle)

    with pytest.raises(ConfigError, match=f"service '{name}': the compose file has its own service"):
        write_aws(contents({}, service=service))


def test_doctor_has_no_findings(directory: Path) -> None:
    for file in (LOCAL_FILE, AWS_FILE):
        for one in read_documents((directory / file).read_text(), file):
            assert isinstance(one, Document)
            found = examine_compose(one, WorkerSettings())
            assert (found.findings, found.not_seen) == ([], [])


def test_the_schema_of_compose_accepts_both_files(directory: Path) -> None:
    command = find_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec")

    done = judge([*command, LOCAL_FILE, AWS_FILE], directory)
    assert done.returncode == 0, done.stdout + done.stderr
    (directory / LOCAL_FILE).write_text(export_local().replace("depends_on:", "depend_on:"))
    assert judge([*command, LOCAL_FILE], directory).returncode == 1


def test_compose_accepts_both_files(directory: Path) -> None:
    compose = find_tool("docker-compose")

    done = judge([*compose, "config", "--format", "json"], directory, SMARTPIPE_OUTBOX_URL="postgresql://db/shop")
    assert (done.returncode, done.stderr) == (0, "")
    billing = json.loads(done.stdout)["services"]["billing"]
    assert billing["environment"]["SMARTPIPE_IDEMPOTENCY_URL"] == "dynamodb://smartpipe-claims"
    assert billing["environment"]["SMARTPIPE_CLAIM_CHECK_URL"] == "s3://bucket/$$HOME"  # escaped again in the output
    assert billing["stop_grace_period"] == "30s"

    aws = [*compose, "-f", AWS_FILE, "config", "--quiet"]
    assert judge(aws, directory, **SECRETS).returncode == 0
    missing = judge(aws, directory, SMARTPIPE_OUTBOX_URL="postgresql://db/shop")
    assert missing.returncode != 0
    assert "SMARTPIPE_IDEMPOTENCY_URL is missing a value: set it in your shell or in .env" in missing.stderr


def test_swarm_accepts_the_file_for_aws(directory: Path) -> None:
    swarm = find_tool("docker", "stack", "config", "-c")
    if "deploy" not in judge([*swarm[:2], "--help"], directory).stdout:
        pytest.skip("this docker has no command stack")

    done = judge([*swarm, AWS_FILE], directory, **SECRETS)
    assert done.returncode == 0, done.stderr
    found = services(done.stdout)
    assert found["billing"]["deploy"]["update_config"]["order"] == "start-first"
    assert found["billing"]["volumes"] == [{"type": "tmpfs", "target": "/tmp"}]
    assert found["billing"]["stop_grace_period"] == "30s"
    missing = judge([*swarm, AWS_FILE], directory)
    assert "is missing a value" in missing.stderr
