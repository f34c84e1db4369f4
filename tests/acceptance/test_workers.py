"""Real worker processes, real signals."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.support.processes import http_status
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    import pytest

    from tests.acceptance.conftest import Jobs
    from tests.support.queues import Queues


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
