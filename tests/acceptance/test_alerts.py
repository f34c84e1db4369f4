"""A real Prometheus scrapes a real worker, and the generated rules fire when they should."""

from __future__ import annotations

import json
import re
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.conftest import TARGET
from tests.support.dashboards import expressions_of
from tests.support.prometheus import PROMETHEUS, Prometheus
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.acceptance.conftest import Command, Jobs
    from tests.support.processes import Process

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed (Debian: prometheus)")

MESSAGES = 'smartpipe_messages_total{outcome="%s"}'
LATER = {"SmartpipeDeadLetterMessages"}
"""An alert on a queue that is read every 30 s, so it may follow another one."""


def shorten(rules: str) -> str:
    """Return the rules with short waits and windows, so that they fire within seconds."""
    rules = re.sub(r"for: \d+m$", "for: 3s", rules, flags=re.MULTILINE)
    return re.sub(r"\[\d+m\]", "[15s]", rules)


@contextmanager
def watched(jobs: Jobs, inside: Command, directory: Path, **environment: str) -> Iterator[tuple[Process, Prometheus]]:
    """Start a worker, and a Prometheus with its rules; yield both when the first samples are there."""
    rules = inside("telemetry", "alerts", TARGET, "--format", "prometheus", "--slow-handler", "0.5")
    assert rules.returncode == 0, rules.stderr
    # The rules divide the visible messages by a rate of the last seconds, so the number must not be older.
    worker = jobs.start_worker(SMARTPIPE_QUEUE_METRICS_SECONDS="1", **environment)
    serving = worker.logged("serving")
    assert serving is not None
    with Prometheus(directory, shorten(rules.stdout), serving["url"].removeprefix("http://")) as prometheus:
        wait_for_samples(prometheus, processes=1)
        yield worker, prometheus


def wait_for_samples(prometheus: Prometheus, *, processes: int) -> None:
    """Wait until each process has been scraped: the increase of a counter needs a sample from before.

    Until then, the rules that look for missing samples may fire.
    """
    until_blocking(lambda: prometheus.value(f"count({MESSAGES % 'dead_lettered'})") == processes)
    until_blocking(lambda: prometheus.firing() == {})


def wait_for_alert(prometheus: Prometheus, name: str) -> dict[str, str]:
    """Return the annotations of the alert *name* when it fires; no other one may fire before."""

    def fires() -> bool:
        firing = prometheus.firing().keys()
        assert firing <= {name} | LATER
        return name in firing

    until_blocking(fires)
    annotations: dict[str, str] = prometheus.firing()[name]["annotations"]
    return annotations


def test_nothing_fires_on_a_healthy_worker(jobs: Jobs, inside: Command, tmp_path: Path) -> None:
    with watched(jobs, inside, tmp_path) as (_, prometheus):
        jobs.post(*(f"job{number}" for number in range(20)), seconds=0.01)
        until_blocking(lambda: prometheus.value(MESSAGES % "handled") == 20)
        evaluated = time.time() + 5  # longer than the wait of any rule here
        until_blocking(lambda: (prometheus.value("timestamp(up)") or 0) > evaluated)

        rules = prometheus.rules()
        assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
        assert len(rules) == 17
        assert prometheus.firing() == {}


def test_prometheus_answers_every_query_of_the_dashboards(jobs: Jobs, inside: Command, tmp_path: Path) -> None:
    directory = tmp_path / "dashboards"
    assert inside("telemetry", "dashboards", TARGET, "--directory", str(directory)).returncode == 0
    files = {path.stem: json.loads(path.read_text()) for path in directory.iterdir()}
    with watched(jobs, inside, tmp_path) as (_, prometheus):
        jobs.post(*(f"job{number}" for number in range(20)), seconds=0.01)
        until_blocking(lambda: prometheus.value(MESSAGES % "handled") == 20)

        answers = {
            name: {
                place: bool(prometheus.query(expression))
                for place, expression in expressions_of(dashboard, service="jobs", queue=".+")
            }
            for name, dashboard in files.items()
        }

    for panel in ("Handled", "Failed deliveries", "Critical time", "Time since the last poll", "service"):
        assert answers["smartpipe-fleet"][panel], panel
    for panel in ("Deliveries by outcome", "Critical time", "Queue time", "Duration", "Attempts", "Slots", "queue"):
        assert answers["smartpipe-service"][panel], panel


def test_a_stopped_worker_fires(jobs: Jobs, inside: Command, tmp_path: Path) -> None:
    with watched(jobs, inside, tmp_path) as (worker, prometheus):
        worker.signal(signal.SIGTERM)
        worker.wait()

        until_blocking(lambda: len(prometheus.firing()) == 2)
        firing = prometheus.firing()
        assert firing.keys() == {"SmartpipeWorkerDown", "SmartpipeInstanceDown"}
        assert (
            firing["SmartpipeWorkerDown"]["labels"]["queue"],
            firing["SmartpipeWorkerDown"]["labels"]["service"],
        ) == (
            "jobs",
            "jobs",
        )


def test_a_poison_storm_fires(jobs: Jobs, inside: Command, tmp_path: Path) -> None:
    with watched(jobs, inside, tmp_path, ACCEPTANCE_ATTEMPTS="1") as (_, prometheus):
        jobs.post(*(f"poison{number}" for number in range(30)))

        annotations = wait_for_alert(prometheus, "SmartpipeDeadLetterStorm")

        assert re.search(r"queue jobs \(service jobs\) dead-lettered \d\d messages", annotations["description"])
        assert annotations["runbook_url"] == "docs/runbooks/dead-letter-storm.md"


def test_a_slow_handler_fires(jobs: Jobs, inside: Command, tmp_path: Path) -> None:
    with watched(jobs, inside, tmp_path) as (_, prometheus):
        jobs.post(*(f"job{number}" for number in range(60)), seconds=1.2)

        annotations = wait_for_alert(prometheus, "SmartpipeSlowHandler")

        assert "tests.acceptance.services.work (service jobs)" in annotations["description"]


def test_failing_handlers_fire_before_their_messages_are_dead_lettered(
    jobs: Jobs, inside: Command, tmp_path: Path
) -> None:
    """The messages have so many attempts that none is dead-lettered during the test."""
    with watched(jobs, inside, tmp_path, ACCEPTANCE_ATTEMPTS="900", ACCEPTANCE_RECEIVES="1000") as (_, prometheus):
        jobs.post("poison")

        annotations = wait_for_alert(prometheus, "SmartpipeRetryRatio")

        assert annotations["description"].startswith("100% of the deliveries from queue jobs")


def test_the_alerts_of_several_processes_are_those_of_their_queue(jobs: Jobs, inside: Command, tmp_path: Path) -> None:
    rules = inside("telemetry", "alerts", TARGET, "--format", "prometheus").stdout
    supervisor = jobs.start_worker("--processes", "2", ACCEPTANCE_ATTEMPTS="1")
    supervisor.wait_until(lambda: supervisor.logged("ready: all 2 processes"))
    url = next(record["url"] for record in supervisor.records if record["message"].startswith("serving"))
    with Prometheus(tmp_path, shorten(rules), url.removeprefix("http://")) as prometheus:
        wait_for_samples(prometheus, processes=2)
        jobs.post(*(f"poison{number}" for number in range(30)))

        wait_for_alert(prometheus, "SmartpipeDeadLetterStorm")

        labels = prometheus.firing()["SmartpipeDeadLetterStorm"]["labels"]
        assert labels == {
            "alertname": "SmartpipeDeadLetterStorm", "severity": "critical", "service": "jobs", "queue": "jobs"
        }  # fmt: skip
