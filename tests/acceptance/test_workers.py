"""Real worker processes, real signals."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from shutil import which
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.acceptance.conftest import TARGET
from tests.support.processes import ROOT, Process, http_status, smartpipe
from tests.support.terminal import Terminal
from tests.support.waiting import DEADLINE_SECONDS, until_blocking

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.conftest import Jobs
    from tests.support.queues import Queues

IN_NAMESPACE = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child")
"""The next command is PID 1, as in a container."""


def test_sigterm_in_the_middle_of_handlers_loses_nothing_and_exits_0_within_the_budget(
    jobs: Jobs, queues: Queues
) -> None:
    names = [f"job{number}" for number in range(30)]
    worker = jobs.start_worker("--concurrency", "4", "--drain-seconds", "20")
    jobs.post(*names, seconds=0.3)
    jobs.wait_for("done", 5)

    worker.signal(signal.SIGTERM)
    started = time.monotonic()
    code = worker.wait()

    assert code == 0
    assert time.monotonic() - started < 20
    assert jobs.count("begun") == jobs.count("done") < 30
    assert queues.depth("jobs") == (30 - jobs.count("done"), 0)

    jobs.start_worker()
    jobs.wait_for("done", 30)
    assert sorted(line.split()[1] for line in jobs.happened if line.startswith("done")) == sorted(names)


def test_a_kill_in_the_middle_of_a_handler_redelivers(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    worker = jobs.start_worker()
    jobs.post("victim", seconds=5)
    jobs.wait_for("begun victim 1")

    worker.signal(signal.SIGKILL)
    worker.wait()
    jobs.start_worker()

    jobs.wait_for("done victim 2")
    assert jobs.happened == ["begun victim 1", "begun victim 2", "done victim 2"]


def test_a_message_that_kills_its_worker_is_finally_dead_lettered_and_no_other_is_lost(
    jobs: Jobs, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One attempt may fail; a second delivery is more than that explains, and the eighth is SQS's last."""
    monkeypatch.setenv("ACCEPTANCE_LEASE", "1")
    monkeypatch.setenv("ACCEPTANCE_ATTEMPTS", "1")
    monkeypatch.setenv("ACCEPTANCE_RECEIVES", "8")
    jobs.post("killer", "beside it", seconds=0.5)
    for kills in range(1, 8):
        worker = jobs.start_worker("--wait-seconds", "1")
        jobs.post(f"good{kills}", seconds=0.5)
        until_blocking(lambda: not worker.running)  # noqa: B023 - asked before the next one starts
        assert jobs.count("begun killer") == kills
    worker = jobs.start_worker("--wait-seconds", "1")
    worker.wait_until(lambda: worker.logged("Dead-lettered (worker-lost)"))
    jobs.wait_for("done", 8)

    reasons = queues.dead_letter_reasons("jobs")
    assert [(reason["kind"], reason["receive_count"]) for reason in reasons] == [("worker-lost", 8)]
    assert jobs.count("begun killer") == 7
    for delivery in range(2, 8):
        before = jobs.happened[: jobs.happened.index(f"begun killer {delivery}")]
        begun, done = (
            {line.partition(" ")[2] for line in before if line.startswith(f"{word} good")} for word in ("begun", "done")
        )
        lost_at_first = {name for name in begun - done if name.endswith(" 1") and name.startswith("good1")}
        assert begun - done <= lost_at_first


def test_fault_11_poison_beside_good_messages_is_dead_lettered_with_its_reason(jobs: Jobs, queues: Queues) -> None:
    worker = jobs.start_worker()
    jobs.post("good1", "poison", "good2", "good3")
    queues.send("jobs", "I am no event")

    jobs.wait_for("done", 3)
    until_blocking(lambda: sum(r["message"].startswith("Dead-lettered") for r in worker.records) == 2)

    reasons = {reason["kind"]: reason for reason in queues.dead_letter_reasons("jobs")}
    assert set(reasons) == {"retries-exhausted", "not-json"}
    assert reasons["retries-exhausted"]["message"] == "poison cannot be done"
    assert reasons["retries-exhausted"]["handler"] == "tests.acceptance.services.work"
    assert "services.py" in reasons["retries-exhausted"]["traceback"]
    assert [line for line in jobs.happened if "poison" in line] == [f"begun poison {count}" for count in (1, 2, 3)]
    until_blocking(lambda: queues.depth("jobs") == (0, 0))


def test_fault_01_a_handler_longer_than_the_visibility_timeout_runs_once(
    jobs: Jobs, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    jobs.start_worker()
    jobs.start_worker()
    jobs.post("long", seconds=6)

    jobs.wait_for("done long")

    assert jobs.happened == ["begun long 1", "done long 1"]
    until_blocking(lambda: queues.depth("jobs") == (0, 0))


def test_fault_02_messages_that_had_not_begun_at_sigterm_are_visible_again_immediately(
    jobs: Jobs, queues: Queues
) -> None:
    worker = jobs.start_worker("--concurrency", "10", "--wait-seconds", "5")
    jobs.post(*[f"running{number}" for number in range(4)], seconds=4)
    jobs.wait_for("begun", 4)

    worker.signal(signal.SIGTERM)
    worker.wait_until(lambda: worker.logged("draining"))
    jobs.post(*[f"late{number}" for number in range(6)])
    until_blocking(lambda: queues.depth("jobs") == (6, 4))

    assert worker.wait() == 0
    assert jobs.count("done running") == 4
    assert jobs.count("begun late") == 0
    assert queues.depth("jobs") == (6, 0)


def test_fault_03_an_idle_worker_leaves_nothing_in_flight_when_stopped(jobs: Jobs, queues: Queues) -> None:
    worker = jobs.start_worker("--wait-seconds", "4")

    worker.signal(signal.SIGTERM)
    worker.wait_until(lambda: worker.logged("draining"))
    jobs.post("late")

    assert worker.wait() == 0
    assert queues.depth("jobs") == (1, 0)


@pytest.mark.skipif(
    which("unshare") is None
    or subprocess.run([*IN_NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="the system permits no process to be PID 1 of a namespace",
)
def test_as_pid_1_a_worker_ends_by_a_signal_that_comes_while_it_imports_its_service(tmp_path: Path) -> None:
    (tmp_path / "slow_shop.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    command = [*IN_NAMESPACE, sys.executable, "-m", "smartpipe", "worker", "slow_shop:service", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as outer:
        try:
            assert outer.stdout is not None
            assert outer.stdout.readline() == "importing\n"
            [worker] = psutil.Process(outer.pid).children()
            worker.send_signal(signal.SIGTERM)
            assert outer.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM
        finally:
            outer.kill()


def test_fault_25_at_the_deadline_messages_are_returned_and_the_exit_code_is_1(jobs: Jobs, queues: Queues) -> None:
    worker = jobs.start_worker("--drain-seconds", "3")
    jobs.post("long1", "long2", seconds=60)
    jobs.wait_for("begun", 2)

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 1
    until_blocking(lambda: queues.depth("jobs") == (2, 0), 10)
    stopped = worker.logged("stopped")
    assert stopped is not None
    assert stopped["cancelled"] == 2


def test_fault_25_a_second_signal_stops_hard(jobs: Jobs, queues: Queues) -> None:
    worker = jobs.start_worker("--drain-seconds", "300")
    jobs.post("long", seconds=60)
    jobs.wait_for("begun")

    worker.signal(signal.SIGTERM)
    worker.wait_until(lambda: worker.logged("draining"))
    worker.signal(signal.SIGINT)

    assert worker.wait() == 1
    until_blocking(lambda: queues.depth("jobs") == (1, 0), 10)  # at the end of the poll that was open: 1 s
    assert worker.logged("stopping hard: SIGINT") is not None


def test_every_phase_of_a_workers_life_is_one_line(jobs: Jobs) -> None:
    worker = jobs.start_worker()

    worker.signal(signal.SIGINT)

    assert worker.wait() == 0
    words = [record["message"].split()[0].rstrip(":") for record in worker.records]
    assert words == ["starting", "serving", "verified", "ready", "draining", "handlers", "stopped"]
    assert all({"time", "level", "logger", "message"} <= set(record) for record in worker.records)


def test_livez_and_readyz_report_on_each_queue(jobs: Jobs) -> None:
    worker = jobs.start_worker("--wait-seconds", "5", "--drain-seconds", "10")
    serving = worker.logged("serving")
    assert serving is not None

    live, ready = http_status(f"{serving['url']}/livez"), http_status(f"{serving['url']}/readyz")

    assert (live[0], live[1]["alive"]) == (200, True)
    assert (ready[0], ready[1]["ready"]) == (200, True)
    assert ready[1]["queues"]["jobs"]["polls_failing"] is False

    jobs.post("long", seconds=2)
    jobs.wait_for("begun")
    worker.signal(signal.SIGTERM)
    worker.wait_until(lambda: worker.logged("draining"))
    draining = http_status(f"{serving['url']}/readyz")
    assert (draining[0], draining[1]["ready"]) == (503, False)
    assert worker.wait() == 0


@pytest.mark.parametrize("processes", ["1", "2"])
def test_on_a_terminal_ctrl_c_ends_an_idle_worker_without_the_wait_for_a_long_poll(
    jobs: Jobs, processes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMARTPIPE_WAIT_SECONDS")
    terminal = Terminal(
        ROOT, "worker", TARGET, "--host", "127.0.0.1", "--port", "0", "--processes", processes, "--log-level", "info"
    )
    try:
        terminal.wait_for("ready: all 2 processes" if processes == "2" else "ready: jobs polls")
        jobs.post("one")
        terminal.wait_for("handled job.posted by tests.acceptance.services.work in")

        terminal.type("\x03")
        code = terminal.wait()
    finally:
        terminal.end()

    assert code == 0, terminal.lines
    promises = [
        int(found[1]) for line in terminal.lines if (found := re.search(r"open receive calls end within (\d+) s", line))
    ]
    assert len(promises) == int(processes)
    assert max(promises) <= 1


@pytest.mark.parametrize("processes", ["1", "2"])
def test_without_a_terminal_the_log_has_no_line_for_a_handled_event(jobs: Jobs, processes: str) -> None:
    flags = ("--processes", processes, "--log-format", "text", "--log-level", "info")
    worker = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0", *flags)
    try:
        jobs.post("one")
        jobs.wait_for("done one")
        worker.signal(signal.SIGTERM)
        code = worker.wait()
    finally:
        worker.end()

    assert code == 0
    assert any("ready" in line for line in worker.lines)
    assert [line for line in worker.lines if "handled job.posted" in line] == []


def test_without_a_terminal_polls_stay_long_and_a_set_value_stays_on_a_terminal(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMARTPIPE_WAIT_SECONDS")
    without = subprocess.Popen(
        [sys.executable, "-m", "smartpipe", "worker", TARGET, "--host", "127.0.0.1", "--port", "0"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    terminal = Terminal(ROOT, "worker", TARGET, "--host", "127.0.0.1", "--port", "0", "--wait-seconds", "15")
    try:
        assert without.stdout is not None
        for line in without.stdout:
            if '"ready: ' in line:
                break
        without.send_signal(signal.SIGTERM)
        drain = next(line for line in without.stdout if "open receive calls end within" in line)
        without.send_signal(signal.SIGTERM)
        terminal.wait_for("ready: jobs polls")
        terminal.type("\x03")
        terminal.wait_for("open receive calls end within")
        terminal.type("\x03")
        code = terminal.wait()
        rest, _ = without.communicate(timeout=30)
    finally:
        without.kill()
        terminal.end()

    assert re.search(r"end within (1[5-9]|20) s", drain)
    assert any(re.search(r"end within 1[0-5] s", line) for line in terminal.lines)
    assert any("stopping hard: SIGINT" in line for line in terminal.lines)
    assert (code, "Traceback" in rest) == (0, False)


def test_several_services_run_in_one_process_and_drain_together(jobs: Jobs) -> None:
    other = "tests.acceptance.second_service:service"
    assert smartpipe("topology", "apply", "--yes", TARGET, other).returncode == 0
    worker = Process("worker", TARGET, other, "--host", "127.0.0.1", "--port", "0")
    try:
        worker.wait_until(lambda: sum(record["message"].startswith("ready") for record in worker.records) == 2)
        url = (worker.logged("serving") or {})["url"]
        jobs.post("shared", seconds=0.5)
        jobs.wait_for("begun shared")
        jobs.wait_for("second shared")
        status, body = http_status(f"{url}/readyz")
        worker.signal(signal.SIGTERM)
        code = worker.wait()
    finally:
        worker.end()

    assert (status, sorted(body["services"]), sorted(body["queues"])) == (200, ["jobs", "second"], ["jobs", "second"])
    assert code == 0
    assert jobs.count("done shared") == 1
    stopped = [record for record in worker.records if record["message"].startswith("stopped:")]
    assert sorted((record["service"], record["handled"]) for record in stopped) == [("jobs", 1), ("second", 1)]


def test_a_worker_without_target_refuses_several_configured_services(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.smartpipe]\nservices = ["{TARGET}", "tests.acceptance.second_service:service"]\n'
    )

    result = smartpipe("worker", directory=str(tmp_path), PYTHONPATH=str(ROOT), AWS_REGION="us-east-1")

    assert result.returncode == 2
    assert "pyproject.toml lists jobs, second: name the one to run as TARGET" in result.stderr
