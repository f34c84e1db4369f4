from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml

from smartpipe import ConfigError
from smartpipe.cli.export import run_export
from smartpipe.cli.telemetry import commands, files
from smartpipe.cli.telemetry.files import run_alerts, run_dashboards
from smartpipe.monitoring.rules import AlertOptions

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from tests.support import exported

mailer = exported.mailer()
portal = exported.portal()
"""
TARGETS = ["watched_shop:mailer"]
OPTIONS = AlertOptions()


@pytest.fixture(autouse=True)
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a working directory with services, and an environment without AWS settings."""
    (tmp_path / "watched_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "SMARTPIPE_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMARTPIPE_PREFIX", "shop-")
    monkeypatch.setenv("SMARTPIPE_APPLICATION", "the shop")


def test_the_help_names_every_format() -> None:
    assert (commands.ALERT_FORMATS, commands.DASHBOARD_FORMATS) == (files.ALERT_FORMATS, files.DASHBOARD_FORMATS)


def test_alerts_are_printed_for_the_services_and_the_application(capsys: pytest.CaptureFixture[str]) -> None:
    run_alerts(TARGETS, "prometheus", None, OPTIONS, ["env=prod"])

    [group] = yaml.safe_load(capsys.readouterr().out)["groups"]
    assert group["name"] == "smartpipe the shop"
    assert 'service="mailer",queue="mailer",env="prod"' in group["rules"][0]["expr"]


def test_alarms_have_the_names_of_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_alerts(TARGETS, "cloudwatch", tmp_path / "alarms.json", OPTIONS, [])

    resources = json.loads((tmp_path / "alarms.json").read_text())["Resources"]
    assert resources["MailerQueueAgeAlarm"]["Properties"]["Dimensions"][0]["Value"] == "shop-mailer"
    assert capsys.readouterr().out == f"cloudwatch written to {tmp_path / 'alarms.json'}\n"


def test_dashboards_are_files_and_a_second_run_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dashboards(TARGETS, "grafana", tmp_path / "new" / "folder", [])
    first = capsys.readouterr().out
    run_dashboards(TARGETS, "grafana", tmp_path / "new" / "folder", [])

    names = ["smartpipe-fleet.json", "smartpipe-service.json"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == names
    assert json.loads((tmp_path / "new" / "folder" / names[0]).read_text())["title"] == "smartpipe fleet: the shop"
    assert first.count("written") == 2
    assert capsys.readouterr().out == first.replace("written  ", "unchanged  ")


def test_a_template_of_the_topology_has_alarms_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    run_export(TARGETS, "cloudformation", None, alarms=True)
    alarmed = json.loads(capsys.readouterr().out)["Resources"]
    run_export(TARGETS, "cloudformation", None)
    plain = json.loads(capsys.readouterr().out)["Resources"]

    assert {one["Type"] for name, one in alarmed.items() if name not in plain} == {"AWS::CloudWatch::Alarm"}


def test_alarms_are_refused_in_other_formats() -> None:
    with pytest.raises(ConfigError, match="--alarms is for --format cloudformation, not terraform"):
        run_export(TARGETS, "terraform", None, alarms=True)


@pytest.mark.parametrize(
    ("form", "options", "labels", "message"),
    [
        ("yaml", OPTIONS, [], "--format 'yaml' is unknown: use one of prometheus, cloudwatch"),
        ("prometheus", AlertOptions(promise_seconds=0), [], "--promise 0 must be a number of seconds above 0"),
        ("prometheus", AlertOptions(slow_handler_seconds=float("nan")), [], "--slow-handler nan must be"),
        ("prometheus", AlertOptions(slow_handler_seconds=300), [], "--slow-handler 300 must be below 300: "),
        ("prometheus", OPTIONS, ["env"], "--label 'env' is not NAME=VALUE, such as env=prod"),
        ("prometheus", OPTIONS, ["1env=prod"], "is not NAME=VALUE"),
        ("prometheus", OPTIONS, ["queue=mailer"], "'queue' is a label that smartpipe sets"),
        ("cloudwatch", OPTIONS, ["env=prod"], "--label is for --format prometheus"),
    ],
)
def test_wrong_options_are_named(form: str, options: AlertOptions, labels: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_alerts(TARGETS, form, None, options, labels)


def test_dashboards_are_only_for_grafana_and_go_into_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "smartpipe-fleet.json").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match="--format 'kibana' is unknown: use grafana"):
        run_dashboards(TARGETS, "kibana", tmp_path, [])
    with pytest.raises(ConfigError, match=r"file.smartpipe-fleet.json cannot be written: "):
        run_dashboards(TARGETS, "grafana", tmp_path / "file", [])
    with pytest.raises(ConfigError, match="it exists, and is not text"):
        run_dashboards(TARGETS, "grafana", tmp_path / "binary", [])


def test_a_service_that_only_publishes_has_no_worker_to_watch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no service has handlers \(portal\)"):
        run_dashboards(["watched_shop:portal"], "grafana", tmp_path, [])
    with pytest.raises(ConfigError, match=r"no service has handlers \(portal\)"):
        run_alerts(["watched_shop:portal"], "prometheus", None, OPTIONS, [])
