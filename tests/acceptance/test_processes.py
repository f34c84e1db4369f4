"""Many processes under one supervisor: real processes, real signals, one port."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from tests.acceptance.conftest import TARGET
from tests.support.processes import Process, http_status, is_running, smartpipe
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Jobs
    from tests.support.queues import Queues


class Group:
    """A supervisor and its children, as its port reports them."""

    def __init__(self, process: Process) -> None:
        self.process = process
        process.wait_until(lambda: process.logged("ready: all"))
        self.url = (process.logged("serving") or {})["url"]

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        return http_status(self.url + path)

    @property
    def pids(self) -> list[int]:
        return [child["pid"] for child in self.ask("/livez")[1]["processes"].values()]

    def metrics(self) -> str:
        with urlopen(self.url + "/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    def handled(self) -> dict[str, int]:
        """Return the number of messages that each process has handled."""
        pattern = r'^smartpipe_messages_total{process="(\d+)",.*outcome="handled"} (\d+)$'
        found = re.findall(pattern, self.metrics(), re.MULTILINE)
        return {process: int(count) for process, count in found}


@pytest.fixture
def kill_later() -> Iterator[list[int]]:
    """Collect processes that a test may leave suspended or without their supervisor."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def start_group(jobs: Jobs, count: int, *flags: str, **environment: str) -> Group:
    return Group(jobs.start_worker("--processes", str(count), *flags, **environment))


def test_processes_share_the_work_and_one_port_answers_for_all(jobs: Jobs) -> None:
    group = start_group(jobs, 2, "--concurrency", "1")
    jobs.post(*[f"job{number}" for number in range(20)], seconds=0.2)
    jobs.wait_for("done", 20)

    until_blocking(lambda: sum(group.handled().values()) == 20)
    live, ready = group.ask("/livez"), group.ask("/readyz")

    assert all(group.handled().values())
    assert (live[0], live[1]["alive"]) == (200, True)
    assert (ready[0], ready[1]["ready"]) == (200, True)
    assert list(ready[1]["processes"]) == ["1", "2"]
    first = ready[1]["processes"]["1"]
    assert (first["restarts"], first["state"], first["queues"]["jobs"]["polls_failing"]) == (0, "answering", False)
    assert len(set(group.pids)) == 2
    resent = re.findall(
        r'^smartpipe_requests_resent_total{process="(\d+)",service="jobs"} 0$', group.metrics(), re.MULTILINE
    )
    assert resent == ["1", "2"]
    assert {record.get("process") for record in group.process.records} == {None, 1, 2}


def test_one_process_counts_the_messages_of_the_queues_for_all(jobs: Jobs) -> None:
    group = start_group(jobs, 2, "--concurrency", "1", SMARTPIPE_QUEUE_METRICS_SECONDS="0.2")
    jobs.post(*[f"job{number}" for number in range(6)], seconds=0.5)

    def find(pattern: str) -> list[str]:
        return re.findall(f"^{pattern}$", group.metrics(), re.MULTILINE)

    queue = 'service="jobs",queue="jobs"'
    until_blocking(lambda: find(rf'smartpipe_backlog_seconds{{process="1",{queue}}} [0-9.]*[1-9][0-9.]*'))
    jobs.wait_for("done", 6)
    until_blocking(lambda: find(rf'smartpipe_backlog_seconds{{process="1",{queue}}} 0.0'))

    for state in ("visible", "in_flight", "delayed"):
        found = rf'smartpipe_queue_messages{{process="(.*)",{queue},state="{state}"}} 0'
        until_blocking(lambda pattern=found: find(pattern) == ["1"])  # type: ignore[misc]
    assert find(rf'smartpipe_dead_letter_messages{{process="(.*)",{queue}}} 0') == ["1"]


def test_a_killed_process_is_replaced_and_no_message_is_lost(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    group = start_group(jobs, 2, "--concurrency", "2")
    names = [f"job{number}" for number in range(12)]
    jobs.post(*names, seconds=0.5)
    jobs.wait_for("begun", 2)
    victim, survivor = group.pids

    os.kill(victim, signal.SIGKILL)
    group.process.wait_until(
        lambda: group.process.logged("process 1 ended unexpectedly: SIGKILL; will restart it in 1")
    )

    assert group.ask("/livez")[0] == 200
    until_blocking(lambda: group.ask("/readyz")[0] == 200)
    assert group.ask("/readyz")[1]["processes"]["1"]["restarts"] == 1
    assert victim not in group.pids
    assert survivor in group.pids
    until_blocking(lambda: {line.split()[1] for line in jobs.happened if line.startswith("done")} == set(names))


def test_sigterm_drains_all_processes_and_exits_0(jobs: Jobs, queues: Queues) -> None:
    group = start_group(jobs, 2, "--concurrency", "2")
    jobs.post(*[f"job{number}" for number in range(20)], seconds=0.5)
    jobs.wait_for("done", 4)

    group.process.signal(signal.SIGTERM)

    assert group.process.wait() == 0
    assert jobs.count("begun") == jobs.count("done") < 20
    assert queues.depth("jobs") == (20 - jobs.count("done"), 0)
    stopped = [r["process"] for r in group.process.records if r["message"].startswith("stopped:") and "process" in r]
    assert sorted(stopped) == [1, 2]


def test_a_signal_to_the_whole_group_still_drains(jobs: Jobs) -> None:
    group = start_group(jobs, 2)
    jobs.post("long1", "long2", seconds=3)
    jobs.wait_for("begun", 2)

    for pid in [*group.pids, group.process.pid]:  # as systemd does; each child gets the signal twice
        os.kill(pid, signal.SIGTERM)

    assert group.process.wait() == 0
    assert jobs.count("done long") == 2
    assert group.process.logged("stopping hard") is None


def test_subprocesses_of_handlers_get_an_empty_standard_input(jobs: Jobs) -> None:
    group = start_group(jobs, 2)

    assert {os.readlink(f"/proc/{pid}/fd/0") for pid in group.pids} == {os.devnull}  # noqa: PTH115


def test_a_second_signal_stops_all_processes_hard(jobs: Jobs, queues: Queues) -> None:
    group = start_group(jobs, 2, "--drain-seconds", "300")
    jobs.post("long", seconds=60)
    jobs.wait_for("begun")

    group.process.signal(signal.SIGINT)
    group.process.wait_until(lambda: group.process.logged("draining: SIGTERM"))
    group.process.signal(signal.SIGINT)

    assert group.process.wait() == 1
    until_blocking(lambda: queues.depth("jobs") == (1, 0))


def test_a_third_signal_kills(jobs: Jobs, kill_later: list[int]) -> None:
    group = start_group(jobs, 2, "--drain-seconds", "300")
    kill_later += group.pids
    for pid in kill_later:
        os.kill(pid, signal.SIGSTOP)

    for message in ("draining all", "stopping all processes hard: SIGTERM", "killing all processes: SIGTERM"):
        group.process.signal(signal.SIGTERM)
        until_blocking(partial(group.process.logged, message))

    assert group.process.wait() == 1
    assert not any(map(is_running, kill_later))


def test_a_process_that_does_not_drain_in_time_is_killed(jobs: Jobs, kill_later: list[int]) -> None:
    group = start_group(jobs, 2, "--drain-seconds", "2")
    stuck, _ = kill_later[:] = group.pids
    os.kill(stuck, signal.SIGSTOP)

    group.process.signal(signal.SIGTERM)

    assert group.process.wait() == 1
    assert group.process.logged("killing 1: not drained within 7 s") is not None
    assert not is_running(stuck)


def test_a_process_that_does_not_respond_is_not_alive(jobs: Jobs, kill_later: list[int]) -> None:
    group = start_group(jobs, 2)
    kill_later += group.pids

    os.kill(kill_later[0], signal.SIGSTOP)
    status, answer = group.ask("/livez")
    os.kill(kill_later[0], signal.SIGCONT)

    assert (status, answer["alive"]) == (503, False)
    assert (answer["processes"]["1"]["state"], answer["processes"]["1"]["alive"]) == ("silent", False)
    assert answer["processes"]["2"]["alive"] is True
    until_blocking(lambda: group.ask("/livez")[0] == 200)


def test_processes_drain_when_their_supervisor_is_killed(jobs: Jobs, kill_later: list[int]) -> None:
    group = start_group(jobs, 2)
    kill_later += group.pids
    jobs.post("long", seconds=2)
    jobs.wait_for("begun")

    group.process.signal(signal.SIGKILL)
    group.process.wait()

    until_blocking(lambda: not any(map(is_running, kill_later)))
    assert jobs.count("done long") == 1
    assert group.process.logged("draining: the supervisor has ended") is not None


@pytest.mark.usefixtures("fast_broker")
def test_missing_resources_are_reported_once_and_end_all_processes() -> None:
    result = smartpipe("worker", TARGET, "--processes", "3", "--port", "0")

    assert result.returncode == 1
    assert result.stderr.count("missing: queue") == 2
    assert "before any process was ready; a restart would not help" in result.stdout


@pytest.mark.usefixtures("fast_broker")
@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["nowhere:service", "--processes", "2"], {}, "no module 'nowhere'"),
        ([TARGET, "--processes", "0"], {}, "--processes=0: input should be greater than or equal to 1"),
        ([TARGET], {"SMARTPIPE_PROCESSES": "two"}, "SMARTPIPE_PROCESSES=two: input should be a valid integer"),
    ],
)
def test_a_configuration_error_is_reported_before_any_process_is_started(
    arguments: list[str], environment: dict[str, str], sentence: str
) -> None:
    result = smartpipe("worker", *arguments, **environment)

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("smartpipe: ")
    assert sentence in line
    assert "starting" not in result.stdout


@pytest.mark.usefixtures("fast_broker")
@pytest.mark.parametrize(("url", "warnings"), [("memory://", 1), ("redis://127.0.0.1:1/0", 0)], ids=["memory", "redis"])
def test_a_memory_store_with_several_processes_causes_one_warning(url: str, warnings: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # which ends the start after its warnings
        address = ("--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))

        result = smartpipe("worker", TARGET, "--processes", "2", *address, SMARTPIPE_IDEMPOTENCY_URL=url)

    assert result.stdout.count("gives each of the 2 processes a separate store") == warnings


def test_a_port_in_use_is_reported_in_one_line_and_no_process_is_started(jobs: Jobs) -> None:
    group = start_group(jobs, 2)
    port = group.url.rpartition(":")[2]

    result = smartpipe("worker", TARGET, "--processes", "2", "--host", "127.0.0.1", "--port", port)

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith(f"smartpipe: cannot bind the health port 127.0.0.1:{port}")
    assert '"process": 1' not in result.stdout


def test_the_lines_of_handlers_in_each_process_have_their_extras_and_name_the_delivery(jobs: Jobs) -> None:
    worker = jobs.start_worker("--processes", "2")

    jobs.post("a", "b", "c", "d")
    jobs.wait_for("done", 4)
    worker.wait_until(lambda: sum('"working"' in line for line in worker.lines) == 4)

    lines = [json.loads(line) for line in worker.lines if '"working"' in line]
    assert {line["job"] for line in lines} == {"a", "b", "c", "d"}
    assert len({line["event_id"] for line in lines}) == len({line["message_id"] for line in lines}) == 4
    for line in lines:
        assert (line["logger"], line["handler"]) == ("jobs", "tests.acceptance.services.work")
        assert len(line["trace_id"]) == 32
        assert line["process"] in (1, 2)
