"""``smartpipe deploy export`` as a user runs it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml

from smartpipe import ConfigError
from smartpipe.cli.deploy.commands import DEPLOY_FORMATS
from smartpipe.cli.deploy.export import FORMATS, run_export
from smartpipe.deploy.place import find_partition

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from smartpipe import Event, Service, Topic

class OrderPlaced(Event, topic=Topic("orders"), type="{name}.placed", version="1.0"):
    order_id: str

portal, billing, other = Service("portal", publishes=[OrderPlaced]), Service("billing"), Service("billing")

@billing.subscribe(OrderPlaced)
@other.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...
"""
PROJECT = """
[tool.smartpipe]
services = ["{name}:portal", "{name}:billing"]

[tool.smartpipe.deploy]
image = "registry.example.com/shop:1"
cpu = 0.5
memory = "512Mi"

[tool.smartpipe.deploy.portal]
image = "a table for a service that no worker runs is ignored"
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a project with services, and an environment without AWS settings; return the name of its module."""
    name = f"deployed_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name))
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "SMARTPIPE_ACCOUNT_ID"):
        monkeypatch.delenv(variable, raising=False)
    return name


@pytest.fixture
def _region(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")


def test_the_formats_in_the_help_are_those_that_work() -> None:
    assert tuple(FORMATS) == DEPLOY_FORMATS


@pytest.mark.usefixtures("_region")
def test_the_services_of_the_project_are_exported(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_export([], "kubernetes", None)

    text = capsys.readouterr().out
    assert f"- {name}:billing\n" in text
    assert "# Without portal" in text


@pytest.mark.usefixtures("_region")
def test_a_second_export_writes_the_same_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    run_export([], "kubernetes", file)
    first = file.read_text()
    run_export([], "kubernetes", file)

    assert file.read_text() == first


@pytest.mark.usefixtures("_region")
@pytest.mark.parametrize("form", ["kubernetes", "compose", "ecs", "terraform", "dockerfile"])
def test_services_that_only_publish_by_an_outbox_have_a_relay(
    form: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(project.replace('memory = "512Mi"', 'memory = "1Gi"'))
    (tmp_path / "uv.lock").touch()
    with pytest.raises(ConfigError, match="or set SMARTPIPE_OUTBOX_URL if they use an outbox"):
        run_export([f"{name}:portal"], form, None)

    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me@db/shop")
    run_export([f"{name}:portal"], form, tmp_path / "exported")

    text = (tmp_path / "exported").read_text()
    assert "relay" in text
    assert '"worker"' not in text
    assert "- worker" not in text


@pytest.mark.usefixtures("_region", "name")
@pytest.mark.parametrize(("common", "annotated"), [(True, 2), (False, 1)])
def test_the_relay_has_the_role_of_all_services_and_never_that_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, common: bool, annotated: int
) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me@db/shop")
    role = 'role = "arn:aws:iam::123456789012:role/shop"\n'
    project, portal = (tmp_path / "pyproject.toml").read_text(), "[tool.smartpipe.deploy.portal]"
    own = f"{role}{portal}" if common else f"[tool.smartpipe.deploy.billing]\n{role}{portal}"
    (tmp_path / "pyproject.toml").write_text(project.replace(portal, own))

    run_export([], "kubernetes", tmp_path / "workers.yaml")

    assert (tmp_path / "workers.yaml").read_text().count("eks.amazonaws.com/role-arn") == annotated


@pytest.mark.usefixtures("_region", "name")
@pytest.mark.parametrize("form", ["kubernetes", "compose", "ecs", "terraform"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [("SMARTPIPE_CLAIM_CHECK_URL", "s3://bodies?owner=me"), ("SMARTPIPE_IDEMPOTENCY_URL", "dynamodb://")],
)
def test_every_format_refuses_a_location_that_a_worker_would_refuse(
    form: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigError, match=variable):
        run_export([], form, None)


@pytest.mark.usefixtures("_region", "name")
@pytest.mark.parametrize("seconds", ["60", "0"])
def test_a_role_may_read_the_ages_of_messages_only_if_the_setting_of_its_worker_asks_for_them(
    seconds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "123456789012")
    monkeypatch.setenv("SMARTPIPE_QUEUE_AGE_SECONDS", seconds)
    project = (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(project.replace('memory = "512Mi"', 'memory = "1Gi"'))

    run_export([], "kubernetes", None, tmp_path / "k8s")
    run_export([], "ecs", tmp_path / "ecs.json")
    run_export([], "terraform", tmp_path / "main.tf.json")

    for file in ("k8s/billing.consume.json", "ecs.json", "main.tf.json"):
        assert ("cloudwatch:GetMetricData" in (tmp_path / file).read_text()) == (seconds != "0"), file


@pytest.mark.usefixtures("_region")
def test_a_directory_has_a_manifest_and_the_policies_of_each_service(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "123456789012")
    monkeypatch.setenv("SMARTPIPE_PREFIX", "prod-")
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    directory = tmp_path / "deploy" / "k8s"

    run_export([], "kubernetes", None, directory)
    assert capsys.readouterr().out.count("  written  ") == 5
    run_export([], "kubernetes", None, directory)
    assert capsys.readouterr().out.count("  unchanged  ") == 5

    assert sorted(path.name for path in directory.iterdir()) == [
        "billing.consume.json",
        "billing.yaml",
        "kustomization.yaml",
        "smartpipe-relay.publish.json",
        "smartpipe-relay.yaml",
    ]
    resources = yaml.safe_load((directory / "kustomization.yaml").read_text())["resources"]
    assert resources == ["billing.yaml", "smartpipe-relay.yaml"]
    assert "kind: Deployment" in (directory / "billing.yaml").read_text()
    received = json.loads((directory / "billing.consume.json").read_text())["Statement"][0]
    assert received["Resource"] == ["arn:aws:sqs:eu-west-1:123456789012:prod-billing"]
    (published,) = json.loads((directory / "smartpipe-relay.publish.json").read_text())["Statement"]
    assert published["Resource"] == ["arn:aws:sns:eu-west-1:123456789012:prod-orders"]  # an event of the portal
    assert "hunter2" not in "".join(path.read_text() for path in directory.iterdir())


@pytest.mark.usefixtures("_region")
def test_a_directory_is_refused_with_a_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="set SMARTPIPE_ACCOUNT_ID"):
        run_export([], "kubernetes", None, tmp_path / "k8s")
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "123456789012")
    with pytest.raises(ConfigError, match="use only one of them"):
        run_export([], "kubernetes", tmp_path / "file", tmp_path / "k8s")
    with pytest.raises(ConfigError, match="--directory is for --format kubernetes or compose or .*, not dockerfile"):
        run_export([], "dockerfile", None, tmp_path / "k8s")
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match="billing.yaml cannot be written: "):
        run_export([], "kubernetes", None, tmp_path / "taken")
    assert not (tmp_path / "k8s").exists()


@pytest.mark.parametrize(("form", "key"), [("ecs", "Resources"), ("terraform", "resource")])
def test_the_formats_for_amazon_ecs_need_neither_region_nor_account(
    name: str, form: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(project.replace("512Mi", "1Gi"))
    run_export([], form, None)
    printed = capsys.readouterr().out
    run_export([], form, tmp_path / "file.json")

    assert json.loads(printed)[key]
    assert f"{name}:billing" in printed
    assert "Without portal" in printed
    assert (tmp_path / "file.json").read_text() == printed


@pytest.mark.parametrize("form", ["ecs", "terraform"])
def test_a_service_that_ecs_cannot_run_is_refused_and_kubernetes_ignores_its_options(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = 'drain_seconds = 600\nplatform = "fargate"\nprotect_task = true\n\n[tool.smartpipe.deploy.portal]'
    project = (tmp_path / "pyproject.toml").read_text().replace("\n[tool.smartpipe.deploy.portal]", more)
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")

    with pytest.raises(ConfigError) as caught:
        run_export([], form, None)
    assert "drain_seconds = 600 is too long for Fargate" in str(caught.value)
    assert "memory = '512Mi' is not a size of Fargate with cpu = 0.5" in str(caught.value)
    run_export([], "kubernetes", None)
    assert "--protect-task" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("region", "partition"), [("eu-west-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")]
)
def test_policies_have_the_partition_of_the_region(region: str, partition: str) -> None:
    assert find_partition(region) == partition


def test_kubernetes_needs_a_region(name: str) -> None:
    with pytest.raises(ConfigError, match="no AWS region for the queues: set AWS_REGION"):
        run_export([], "kubernetes", None)


@pytest.mark.usefixtures("_region")
def test_mistakes_are_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--format 'helm' is unknown: use"):
        run_export([], "helm", None)
    with pytest.raises(ConfigError, match="no worker runs portal"):
        run_export([f"{name}:portal"], "kubernetes", None)
    with pytest.raises(ConfigError, match="several TARGETs are services called billing"):
        run_export([f"{name}:billing", f"{name}:other"], "kubernetes", None)
    (tmp_path / "pyproject.toml").write_text("[tool.smartpipe]\ndeploy = 5")
    with pytest.raises(ConfigError, match=r"tool.smartpipe.deploy is not a table"):
        run_export([f"{name}:billing"], "kubernetes", None)
    (tmp_path / "pyproject.toml").write_text("")
    with pytest.raises(ConfigError, match="'billing' has no image") as caught:
        run_export([f"{name}:billing"], "kubernetes", None)
    assert len(caught.value.problems) == 3


def test_compose_on_this_machine_needs_no_region_and_on_aws_it_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export([], "compose", None)
    printed = capsys.readouterr()
    with pytest.raises(ConfigError, match="no AWS region for the queues: set AWS_REGION"):
        run_export([], "compose", None, tmp_path)
    assert not (tmp_path / "compose.yaml").exists()
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    run_export([], "compose", None, tmp_path)

    assert (tmp_path / "compose.yaml").read_text() == printed.out
    assert f"- {name}:portal\n" in printed.out  # topology apply creates its topics
    assert "AWS_REGION: eu-west-1\n" in (tmp_path / "compose.aws.yaml").read_text()
    assert "does not name smartpipe[local]: run `uv add --dev 'smartpipe[local]'`" in printed.err


@pytest.mark.usefixtures("_region")
@pytest.mark.parametrize("requirement", ["smartpipe[local]", "smartpipe[postgres,local]>=0.1"])
def test_a_project_with_the_broker_in_its_packages_gets_no_warning(
    requirement: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PROJECT.format(name=name) + f'\n[dependency-groups]\ndev = ["{requirement}"]\n[tool.x]\nday = 2027-06-30\n'
    (tmp_path / "pyproject.toml").write_text(text)

    run_export([], "compose", None)

    assert capsys.readouterr().err == ""


def test_a_dockerfile_runs_the_services_with_handlers_and_needs_no_options(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "uv.lock").touch()
    run_export([f"{name}:portal", f"{name}:billing"], "dockerfile", None)
    alone = capsys.readouterr().out
    (tmp_path / "pyproject.toml").write_text("[build-system]")
    run_export([f"{name}:billing"], "dockerfile", None)
    packaged = capsys.readouterr().out

    assert f'CMD ["worker", "{name}:billing"]\n' in alone
    assert "--no-editable" not in alone
    assert "--no-editable" in packaged


@pytest.mark.parametrize("text", [b"\xff", b"3.12\xff", "3.12\n".encode("utf-16")])
def test_a_pinned_python_that_is_no_text_is_refused_or_read_as_far_as_it_is(
    name: str, text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "uv.lock").touch()
    (tmp_path / ".python-version").write_bytes(text)
    if b"3.12" in text:
        run_export([], "dockerfile", None)
        assert "3.12" in capsys.readouterr().out
    else:
        with pytest.raises(ConfigError, match=r"^\.python-version is '.*', and the image can have Python"):
            run_export([], "dockerfile", None)


def test_a_dockerfile_needs_a_lock_file_and_a_service_with_handlers(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no uv.lock.*run `uv lock`"):
        run_export([], "dockerfile", None)
    (tmp_path / "uv.lock").touch()
    with pytest.raises(ConfigError, match="no worker runs portal"):
        run_export([f"{name}:portal"], "dockerfile", None)


@pytest.mark.usefixtures("_region")
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_of_your_own_is_never_replaced_and_an_export_always(name: str, form: str, tmp_path: Path) -> None:
    (tmp_path / "uv.lock").touch()
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("512Mi", "1Gi"))  # a size of Fargate
    file = tmp_path / "file"
    file.write_text("# mine\n")

    with pytest.raises(ConfigError, match="file was not written by `smartpipe deploy export`: move it away"):
        run_export([], form, file)
    assert file.read_text() == "# mine\n"

    file.write_text("")
    run_export([], form, file)
    written = file.read_text()
    run_export([], form, file)
    assert file.read_text() == written != ""


@pytest.mark.usefixtures("_region")
def test_a_file_of_your_own_in_the_directory_stops_the_export_before_the_first_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "123456789012")
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s" / "kustomization.yaml").write_text("resources: [mine.yaml]\n")

    with pytest.raises(ConfigError, match=r"kustomization\.yaml was not written by"):
        run_export([], "kubernetes", None, tmp_path / "k8s")

    assert [one.name for one in (tmp_path / "k8s").iterdir()] == ["kustomization.yaml"]
