"""The alert rules, as Prometheus reads them: promtool checks the file and evaluates the rules on synthetic series."""

from __future__ import annotations

import json
import subprocess
from shutil import which
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from smartpipe import ConfigError
from smartpipe.monitoring.prometheus_rules import write_rule_file
from smartpipe.monitoring.rules import AlertOptions, build_rules
from smartpipe.telemetry.histograms import AGE_BOUNDS, HANDLER_BOUNDS
from tests.support import exported
from tests.support.metrics import find_unknown_names, read_existing_metrics, samples_of
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PROMTOOL = which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
OPTIONS = AlertOptions()
MAILER = {"service": "mailer", "queue": "mailer"}


class Case(NamedTuple):
    """Series on which one rule fires, by the time at which it does; and the same series when all is well."""

    alert: str
    at: str
    labels: dict[str, str]
    firing: dict[str, str]
    quiet: dict[str, str]


def series(name: str, **labels: str) -> str:
    return f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in labels.items())}}}"


def buckets(name: str, fast: str, slow: str, **labels: str) -> dict[str, str]:
    """Return the buckets of a histogram: up to 10 s, up to an hour, all."""
    return {
        series(f"{name}_bucket", **labels, le="10.0"): fast,
        series(f"{name}_bucket", **labels, le="3600.0"): slow,
        series(f"{name}_bucket", **labels, le="+Inf"): slow,
    }


def beyond(name: str, bounds: tuple[float, ...], **labels: str) -> dict[str, str]:
    """Return the buckets of a histogram whose values are all above the highest bound."""
    found = {series(f"{name}_bucket", **labels, le=str(bound)): "0x30" for bound in bounds}
    return {**found, series(f"{name}_bucket", **labels, le="+Inf"): "0+100x30"}


def backlog(visible: str, *handled: str) -> dict[str, str]:
    """Return the series of hosts that see the same messages, with the number of messages that each has handled."""
    found = {}
    for host, number in enumerate(handled):
        labels = {**MAILER, "instance": f"{host}:80"}
        found[series("smartpipe_queue_messages", **labels, state="visible")] = visible
        found[series("smartpipe_messages_total", **labels, outcome="handled")] = number
    return found


TARGET = {"job": "workers", "instance": "a:80"}
POLLED = series("smartpipe_poll_age_seconds", **MAILER, **TARGET)
CASE_OF_FAILURES = {"service": "mailer", "destination": "accounts", "result": "NotFound", "instance": "a"}
CASES = [
    Case(
        "SmartpipeWorkerDown",
        "10m",
        MAILER,
        {POLLED: "1x3 stale"},
        {POLLED: "1x20"},
    ),
    Case(
        "SmartpipeInstanceDown",
        "12m",
        TARGET,
        {POLLED: "1x3 stale", series("up", **TARGET): "1x3 0x20"},
        {POLLED: "1x20", series("up", **TARGET): "1x20", series("up", job="other", instance="b:80"): "0x20"},
    ),
    Case("SmartpipeNotReceiving", "5m", MAILER, {POLLED: "20+60x20"}, {POLLED: "20x20"}),
    Case(
        "SmartpipeProcessRestarts",
        "10m",
        {**TARGET, "process": "1"},
        {series("smartpipe_process_restarts_total", **TARGET, process="1"): "0+1x20", POLLED: "1x20"},
        {series("smartpipe_process_restarts_total", **TARGET, process="1"): "0x5 1x20", POLLED: "1x20"},
    ),
    Case(
        "SmartpipeCircuitOpen",
        "10m",
        {**MAILER, "circuit": "bank"},
        {series("smartpipe_circuit_open", **MAILER, circuit="bank"): "1 0.5 1 0.5 1x20"},
        {series("smartpipe_circuit_open", **MAILER, circuit="bank"): "0x3 1 0x20"},
    ),
    Case(
        "SmartpipeBacklog",
        "15m",
        MAILER,
        backlog("2000x20", "0+160x20", "0+160x20"),
        backlog("2000x20", "0+240x20", "0+240x20"),
    ),
    Case(
        "SmartpipeCriticalTime",
        "25m",
        MAILER,
        buckets("smartpipe_critical_time_seconds", "0+90x30", "0+100x30", **MAILER, type="account.opened"),
        buckets("smartpipe_critical_time_seconds", "0+100x30", "0+100x30", **MAILER, type="account.opened"),
    ),
    Case(
        "SmartpipeOldestMessage",
        "15m",
        MAILER,
        {series("smartpipe_oldest_message_age_seconds", **MAILER): "301x20"},
        {series("smartpipe_oldest_message_age_seconds", **MAILER): "400x8 10x20"},
    ),
    Case(
        "SmartpipeDeadLetterMessages",
        "6m",
        MAILER,
        {series("smartpipe_dead_letter_messages", **MAILER): "1x20"},
        {series("smartpipe_dead_letter_messages", **MAILER): "0x20"},
    ),
    Case(
        "SmartpipeDeadLetterStorm",
        "5m",
        MAILER,
        {series("smartpipe_messages_total", **MAILER, outcome="dead_lettered"): "0x3 20x20"},
        {series("smartpipe_messages_total", **MAILER, outcome="dead_lettered"): "0+1x20"},
    ),
    Case(
        "SmartpipeRetryRatio",
        "20m",
        MAILER,
        {
            series("smartpipe_messages_total", **MAILER, outcome="retried"): "0+30x30",
            series("smartpipe_messages_total", **MAILER, outcome="handled"): "0+70x30",
        },
        {
            series("smartpipe_messages_total", **MAILER, outcome="retried"): "0+10x30",
            series("smartpipe_messages_total", **MAILER, outcome="handled"): "0+90x30",
        },
    ),
    Case(
        "SmartpipeLeasesLost",
        "15m",
        MAILER,
        {series("smartpipe_leases_lost_total", **MAILER): "0+1x20"},
        {series("smartpipe_leases_lost_total", **MAILER): "0x3 1x20"},
    ),
    Case(
        "SmartpipeHandlersOverdue",
        "8m",
        {"service": "mailer"},
        {series("smartpipe_handlers_overdue", service="mailer"): "1x20"},
        {series("smartpipe_handlers_overdue", service="mailer"): "1x3 0x20"},
    ),
    Case(
        "SmartpipeSlowHandler",
        "25m",
        {**MAILER, "handler": "shop.welcome"},
        buckets(
            "smartpipe_handler_seconds", "0+90x30", "0+100x30", **MAILER, handler="shop.welcome", outcome="handled"
        ),
        buckets(
            "smartpipe_handler_seconds", "0+99x30", "0+100x30", **MAILER, handler="shop.welcome", outcome="handled"
        ),
    ),
    Case(
        "SmartpipePublishFailures",
        "5m",
        {"service": "mailer", "destination": "accounts"},
        {series("smartpipe_published_total", service="mailer", destination="accounts", result="NotFound"): "0x3 1x20"},
        {series("smartpipe_published_total", service="mailer", destination="accounts", result="published"): "0+9x20"},
    ),
    Case(
        "SmartpipeOutboxLag",
        "10m",
        {"job": "relay"},
        {
            series("smartpipe_outbox_lag_seconds", job="relay", instance="r:80"): "0x20",
            series("smartpipe_outbox_backlog_age_seconds", job="relay", instance="r:80"): "400x20",
        },
        {
            series("smartpipe_outbox_lag_seconds", job="relay", instance="r:80"): "200x20",
            series("smartpipe_outbox_backlog_age_seconds", job="relay", instance="r:80"): "5x20",
        },
    ),
    Case(
        "SmartpipeOutboxParked",
        "8m",
        {"job": "relay"},
        {series("smartpipe_outbox_parked", job="relay", instance="r:80"): "1x20"},
        {series("smartpipe_outbox_parked", job="relay", instance="r:80"): "0x20"},
    ),
]


def write_rules(directory: Path, *, annotated: bool = False, options: AlertOptions = OPTIONS) -> Path:
    """Write the rules of the service ``mailer``; promtool would compare the annotations, too."""
    path = directory / "rules.yml"
    text = write_rule_file([exported.mailer()], application="shop", options=options)
    found = yaml.safe_load(text)
    if not annotated:
        for rule in found["groups"][0]["rules"]:
            del rule["annotations"]
    path.write_text(text if annotated else yaml.safe_dump(found))
    return path


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=30, check=False)


def unit_test(
    directory: Path,
    values: dict[str, str],
    alert: str,
    at: str,
    expected: list[dict[str, Any]],
    options: AlertOptions = OPTIONS,
) -> str:
    """Return the output of promtool's unit test of one alert; empty if it succeeds."""
    write_rules(directory, options=options)
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": value} for name, value in values.items()],
                "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
            }
        ],
    }
    path = directory / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = promtool("test", "rules", str(path))
    return "" if done.returncode == 0 else done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize(
    "options",
    [OPTIONS, AlertOptions(0.5, 1e6, "https://wiki.example/a b/", {"env": 'pr"od\\ {{x}}', "no": "1"})],
    ids=["defaults", "unusual"],
)
def test_promtool_finds_no_error_in_the_rules_of_every_kind_of_service(options: AlertOptions, tmp_path: Path) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(write_rule_file(exported.everything(), application='the "shop"', options=options))

    done = promtool("check", "rules", str(path))

    assert (done.returncode, done.stdout.count("SUCCESS: 17 rules found")) == (0, 1), done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_a_rule_fires_when_it_should_and_only_then(case: Case, tmp_path: Path) -> None:
    severity = {one.name: one.severity for one in build_rules([exported.mailer()], OPTIONS)}[case.alert]
    alert = {"exp_labels": {"severity": severity, **case.labels}}

    assert unit_test(tmp_path, case.firing, case.alert, case.at, [alert]) == ""
    assert unit_test(tmp_path, case.quiet, case.alert, case.at, []) == ""


@needs_promtool
def test_counters_of_several_processes_and_replicas_are_one_alert(tmp_path: Path) -> None:
    values = {
        series(
            "smartpipe_messages_total", **MAILER, outcome="dead_lettered", process=process, instance=instance
        ): "0+2x9"
        for process in ("0", "1")
        for instance in ("a", "b")
    }
    alert = {"exp_labels": {"severity": "critical", **MAILER}}

    assert unit_test(tmp_path, values, "SmartpipeDeadLetterStorm", "6m", [alert]) == ""


@needs_promtool
def test_overdue_handlers_are_found_in_a_process_that_runs_several_services(tmp_path: Path) -> None:
    name = "billing,mailer"
    alert = {"exp_labels": {"severity": "warning", "service": name}}

    values = {series("smartpipe_handlers_overdue", service=name): "1x20"}
    assert unit_test(tmp_path, values, "SmartpipeHandlersOverdue", "8m", [alert]) == ""
    values = {series("smartpipe_handlers_overdue", service="mailer2"): "1x20"}
    assert unit_test(tmp_path, values, "SmartpipeHandlersOverdue", "8m", []) == ""


@needs_promtool
def test_the_longest_slow_calls_fire(tmp_path: Path) -> None:
    """A quantile above the highest bound of a histogram is this bound, so no limit may reach it."""
    options = AlertOptions(promise_seconds=86_399, slow_handler_seconds=299)
    handler = {**MAILER, "handler": "shop.welcome"}
    alert = {"exp_labels": {"severity": "warning", **handler}}
    late = {"exp_labels": {"severity": "warning", **MAILER}}

    calls = beyond("smartpipe_handler_seconds", HANDLER_BOUNDS, **handler)
    assert unit_test(tmp_path, calls, "SmartpipeSlowHandler", "25m", [alert], options) == ""
    times = beyond("smartpipe_critical_time_seconds", AGE_BOUNDS, **MAILER)
    assert unit_test(tmp_path, times, "SmartpipeCriticalTime", "25m", [late], options) == ""


def test_a_rule_that_could_never_fire_is_left_out_and_the_file_says_why() -> None:
    text = write_rule_file([exported.mailer()], application="shop", options=AlertOptions(promise_seconds=86_400))

    reason = "because smartpipe_critical_time_seconds does not distinguish times above 86400 s."
    assert f"\n# SmartpipeCriticalTime is left out, {reason}\n" in text
    names = [rule["alert"] for rule in yaml.safe_load(text)["groups"][0]["rules"]]
    assert [case.alert for case in CASES if case.alert not in names] == ["SmartpipeCriticalTime"]


@needs_promtool
def test_a_relay_that_does_not_answer_is_noticed_because_no_queue_of_it_can_be_without_a_worker(tmp_path: Path) -> None:
    relay = {"job": "relay", "instance": "r:80"}
    alert = {"exp_labels": {"severity": "warning", **relay}}
    values = {series("smartpipe_outbox_published_total", **relay): "5x3 stale", series("up", **relay): "1x3 0x20"}

    assert unit_test(tmp_path, values, "SmartpipeInstanceDown", "12m", [alert]) == ""


@needs_promtool
def test_a_relay_that_has_never_reached_its_database_is_noticed(tmp_path: Path) -> None:
    alert = {"exp_labels": {"severity": "critical", "job": "relay"}}
    values = {series("smartpipe_outbox_backlog_age_seconds", job="relay", instance="r:80"): "0+60x20"}

    assert unit_test(tmp_path, values, "SmartpipeOutboxLag", "12m", [alert]) == ""
    assert unit_test(tmp_path, values, "SmartpipeOutboxLag", "9m", []) == ""


@needs_promtool
def test_processes_that_crash_before_they_report_are_noticed(tmp_path: Path) -> None:
    alert = {"exp_labels": {"severity": "warning", **TARGET, "process": "1"}}
    restarts = series("smartpipe_process_restarts_total", **TARGET, process="1")

    assert (
        unit_test(tmp_path, {restarts: "0+1x20", POLLED: "1 stale"}, "SmartpipeProcessRestarts", "10m", [alert]) == ""
    )


@needs_promtool
def test_the_first_failures_of_a_publisher_are_noticed_although_no_sample_was_before(tmp_path: Path) -> None:
    alert = {"exp_labels": {"severity": "critical", "service": "mailer", "destination": "accounts"}}
    values = {series("smartpipe_published_total", **CASE_OF_FAILURES): "_x5 3x30"}

    assert unit_test(tmp_path, values, "SmartpipePublishFailures", "7m", [alert]) == ""
    assert unit_test(tmp_path, values, "SmartpipePublishFailures", "18m", []) == ""


@needs_promtool
def test_a_backlog_is_divided_by_the_rate_of_all_hosts_together(tmp_path: Path) -> None:
    alert = {"exp_labels": {"severity": "warning", **MAILER}}

    one_is_idle, all_are_idle = backlog("2000x20", "0+480x20", "7x20"), backlog("1x20", "7x20", "7x20")
    nothing_waits = backlog("0x20", "7x20", "7x20")

    assert unit_test(tmp_path, one_is_idle, "SmartpipeBacklog", "18m", []) == ""
    assert unit_test(tmp_path, all_are_idle, "SmartpipeBacklog", "18m", [alert]) == ""
    assert unit_test(tmp_path, nothing_waits, "SmartpipeBacklog", "18m", []) == ""


@needs_promtool
def test_a_description_has_the_value_and_the_runbook_is_named(tmp_path: Path) -> None:
    write_rules(tmp_path, annotated=True, options=AlertOptions(promise_seconds=60, runbooks="https://wiki/runbooks/"))
    expected = {
        "exp_labels": {"severity": "warning", **MAILER},
        "exp_annotations": {
            "summary": "A queue has more messages than its workers can handle in time.",
            "description": "At the current rate, the workers of queue mailer (service mailer) need 1m 40s for the "
            "waiting messages. The promise is 60 s.",
            "runbook_url": "https://wiki/runbooks/backlog.md",
        },
    }
    waiting = backlog("800x20", "0+240x20", "0+240x20")  # both together handle 8 a second
    test = {
        "rule_files": ["rules.yml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in waiting.items()],
                "alert_rule_test": [{"eval_time": "15m", "alertname": "SmartpipeBacklog", "exp_alerts": [expected]}],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))

    done = promtool("test", "rules", str(tmp_path / "test.yml"))

    assert done.returncode == 0, done.stdout


def test_every_rule_has_a_case() -> None:
    assert [case.alert for case in CASES] == [one.name for one in build_rules([exported.mailer()], OPTIONS)]


async def test_every_rule_parses_and_names_only_metrics_and_labels_that_exist() -> None:
    known = samples_of(await read_existing_metrics())

    for rule in build_rules(exported.everything(), AlertOptions(labels={"env": "prod"})):
        assert find_unknown_names(rule.expression, known) == [], rule.name


@pytest.mark.parametrize(
    ("expression", "unknown"),
    [
        ("rate(smartpipe_nothing_total[5m]) > 1", ["smartpipe_nothing_total"]),
        ('smartpipe_poll_age_seconds{shard="1"}', ["smartpipe_poll_age_seconds: label shard"]),
        (
            "sum by (handler) (smartpipe_poll_age_seconds)",
            ["by handler: no label of ['smartpipe_poll_age_seconds']"],
        ),
        ("smartpipe_handler_seconds", ["smartpipe_handler_seconds"]),
    ],
)
async def test_a_wrong_name_in_an_expression_is_found(expression: str, unknown: list[str]) -> None:
    assert find_unknown_names(expression, samples_of(await read_existing_metrics())) == unknown


def test_every_alert_has_a_runbook_and_the_index_names_each_page() -> None:
    directory = ROOT / "docs" / "runbooks"
    index = (directory / "README.md").read_text()

    for rule in build_rules([exported.mailer()], OPTIONS):
        page = (directory / f"{rule.page}.md").read_text()
        assert rule.name in page
        assert f"`{rule.name}`" in index
    for path in directory.glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index


def test_the_file_is_the_same_for_every_order_of_the_targets() -> None:
    services = exported.everything()

    texts = {write_rule_file(found, application="shop", options=OPTIONS) for found in (services, services[::-1])}

    assert len(texts) == 1


def test_services_without_handlers_have_no_alerts() -> None:
    with pytest.raises(ConfigError, match=r"no service has handlers \(portal\)"):
        build_rules([exported.portal()], OPTIONS)


def test_a_label_is_in_every_selector_and_in_every_alert() -> None:
    text = write_rule_file([exported.mailer()], application="shop", options=AlertOptions(labels={"env": "prod"}))

    for rule in yaml.safe_load(text)["groups"][0]["rules"]:
        assert rule["labels"]["env"] == "prod"
        assert rule["expr"].count("smartpipe_") == rule["expr"].count('env="prod"'), rule["alert"]
