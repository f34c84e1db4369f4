"""``smartpipe bench`` with its own processes, on a real broker and in memory."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any, TypeAlias

import boto3
import pytest

from smartpipe.bench.children import ChildProcesses
from smartpipe.bench.load import Load
from smartpipe.bench.messages import Assignment, StepDone, parse_message
from smartpipe.cli import bench as command
from smartpipe.cli import main
from tests.support.processes import Process, children_of, is_running, smartpipe
from tests.support.topics import list_topic_arns
from tests.support.waiting import DEADLINE_SECONDS, until_blocking

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe import EmbeddedBroker

Bench: TypeAlias = Callable[..., CompletedProcess[str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Run the command line in this process, which is faster than a new process."""

    def run(*arguments: str) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["smartpipe", "bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return CompletedProcess(arguments, int(ended.value.code or 0), *capsys.readouterr())

    return run


def remaining_resources() -> list[Any]:
    """Return the topics and queues of benchmarks on the environment's broker."""
    queues = boto3.client("sqs").list_queues(QueueNamePrefix="bench-").get("QueueUrls", [])
    return [*queues, *(arn for arn in list_topic_arns() if ":bench-" in arn)]


def test_a_fan_out_is_measured_in_processes_and_its_resources_are_deleted(
    fast_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    plot = tmp_path / "run.svg"
    sizes = ("--events", "60", "--warmup", "10", "--queues", "2", "--rate", "100", "--patience", "45")

    result = smartpipe("bench", "--endpoint", fast_broker.endpoint_url, *sizes, "--plot", str(plot), "--json")

    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["published"]["messages"] == 60
    assert (found["delivered"]["messages"], found["delivered"]["missing"]) == (120, 0)
    assert 0 < found["latency_seconds"]["p50"] <= found["latency_seconds"]["p99.9"] <= found["latency_seconds"]["max"]
    assert found["published"]["cpu_us_per_message"] > 0
    assert found["delivered"]["cpu_us_per_message"] > 0
    assert found["requests"]["publish"]["entries"] == 60
    assert found["requests"]["delete"]["entries"] == 120
    assert found["dollars_per_million_events"]["total"] > 0
    assert plot.read_text().count("<path") > 20
    assert remaining_resources() == []


def test_a_distance_to_the_broker_is_part_of_each_latency_and_of_the_report(
    fast_broker: EmbeddedBroker, bench: Bench
) -> None:
    sizes = ("--events", "10", "--warmup", "1", "--queues", "1", "--rate", "50", "--patience", "45", "--json")

    result = bench("--endpoint", fast_broker.endpoint_url, *sizes, "--latency", "80")

    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["latency_ms"] == 80
    assert found["latency_seconds"]["p50"] >= 0.08  # half a round trip to SNS, and half of one from SQS
    assert found["delivered"]["missing"] == 0


def test_ctrl_c_ends_the_processes_and_deletes_the_queues(fast_broker: EmbeddedBroker) -> None:
    running = Process("bench", "--endpoint", fast_broker.endpoint_url, "--events", "1000000", "--queues", "1")
    try:
        running.wait_until(lambda: len(children_of(running.pid)) == 2)
        children = children_of(running.pid)

        running.signal(signal.SIGINT)

        assert running.wait() == 1
        assert running.lines == ["smartpipe: interrupted: nothing was measured"]
        until_blocking(lambda: not any(map(is_running, children)))
        assert remaining_resources() == []
    finally:
        running.end()


def test_the_error_names_a_process_that_dies(fast_broker: EmbeddedBroker) -> None:
    running = Process("bench", "--endpoint", fast_broker.endpoint_url, "--events", "1000000", "--queues", "1")
    try:
        running.wait_until(lambda: len(children_of(running.pid)) == 2)
        worker = min(children_of(running.pid))

        os.kill(worker, signal.SIGKILL)

        assert running.wait() == 1
        error = f"smartpipe: worker 1 of queue 1 (process {worker}) was ended by signal 9: it printed no error"
        assert running.lines == [error]
        assert remaining_resources() == []
    finally:
        running.end()


def test_a_process_ends_with_the_run_even_if_the_run_is_killed(fast_broker: EmbeddedBroker) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "smartpipe.bench.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdin, child.stdout:
        child.stdin.write(Assignment(load=Load(), producer=0).model_dump_json().encode() + b"\n")
        child.stdin.flush()
        assert parse_message(child.stdout.readline()) == StepDone(kind="ready")

        child.stdin.close()

        assert child.wait(DEADLINE_SECONDS) == 1


async def test_a_process_ends_if_the_next_one_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    open_file, count = tempfile.TemporaryFile, itertools.count(1)

    def open_one() -> Any:
        if next(count) > 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return open_file()

    monkeypatch.setattr(tempfile, "TemporaryFile", open_one)
    processes = ChildProcesses([("producer", Assignment(load=Load(), producer=0))] * 2, os.environ)

    with pytest.raises(OSError, match="Too many open files"):
        await processes.__aenter__()

    [started] = processes.children
    assert started.process.returncode is not None
    assert started.stderr.closed


def test_in_memory_all_events_are_published_before_the_first_is_handled(bench: Bench) -> None:
    result = bench("--backend", "memory", "--events", "200", "--warmup", "0", "--queues", "2")

    assert result.returncode == 0, result.stderr
    assert "of 400, no duplicates" in result.stdout
    assert "all events were published before any was handled" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--events", "0"], "--events=0 is outside the range 1 to 100,000,000"),
        (["--size", "20"], "--size 20 is less than the envelope alone"),
        (["--backend", "kafka"], "--backend 'kafka' is not one of memory, local, moto"),
        (["--backend", "local", "--endpoint", "aws"], "use only one of them"),
        (["--endpoint", "localhost:4566"], "expected a URL, such as http://localhost:4566, or aws"),
        (["--backend", "memory", "--processes", "2"], "--backend memory runs in one process"),
        (["--latency", "-1"], "--latency=-1 is outside the range 0 to 10,000 milliseconds"),
        (["--latency", "nan"], "--latency=nan is outside the range 0 to 10,000 milliseconds"),
        (["--latency", "15", "--backend", "memory"], "--backend memory has none: remove one of them"),
        (["--latency", "15", "--endpoint", "aws"], "AWS has a distance of its own: remove --latency"),
        (["--latency", "15", "--endpoint", "https://localhost:1"], "--latency needs an endpoint with http://"),
        (["--plot", "run.pdf"], "--plot run.pdf does not end with one of .svg, .png"),
        (["--plot", "nowhere/run.svg"], "directory nowhere does not exist"),
    ],
)
def test_misuse_is_reported_before_anything_is_started(bench: Bench, arguments: list[str], error: str) -> None:
    result = bench(*arguments)

    assert result.returncode == 2
    assert error in result.stderr
    assert result.stdout == ""


def test_the_error_of_a_missing_extra_shows_how_to_install_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)

    result = bench("--plot", "run.svg")

    assert result.returncode == 2
    assert result.stderr == ("smartpipe: bench needs hdrhistogram and matplotlib; run pip install 'smartpipe[bench]'\n")


def test_an_unreachable_endpoint_ends_the_run_immediately(bench: Bench) -> None:
    result = bench("--endpoint", "http://127.0.0.1:1")

    assert result.returncode == 1
    assert "Could not connect to the endpoint URL" in result.stderr


def test_a_run_on_aws_needs_a_confirmation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_ENDPOINT_URL")]:
        monkeypatch.delenv(name)

    result = bench("--endpoint", "aws", "--json")

    assert result.returncode == 2
    assert "try --backend local, which is free of charge, then add --yes" in result.stderr
