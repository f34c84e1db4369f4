"""``smartpipe bench`` with its own processes, on a real broker and in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any, TypeAlias

import boto3
import pytest

from smartpipe.bench.load import Load
from smartpipe.bench.messages import Assignment, Said, read
from smartpipe.cli import bench as command
from smartpipe.cli import main
from tests.support.processes import Process, children_of, is_running, smartpipe
from tests.support.waiting import DEADLINE_SECONDS, until_blocking

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe import EmbeddedBroker

Bench: TypeAlias = Callable[..., CompletedProcess[str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """The command line in this process, for what needs no processes of its own: it spares a start."""

    def run(*arguments: str) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["smartpipe", "bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return CompletedProcess(arguments, int(ended.value.code or 0), *capsys.readouterr())

    return run


def left_over() -> list[Any]:
    """What benchmarks have left on the environment's broker."""
    topics = boto3.client("sns").list_topics()["Topics"]
    queues = boto3.client("sqs").list_queues(QueueNamePrefix="bench-").get("QueueUrls", [])
    return [*queues, *(topic for topic in topics if ":bench-" in topic["TopicArn"])]


def test_a_fan_out_is_measured_in_processes_and_leaves_nothing_behind(
    fast_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    picture = tmp_path / "run.svg"
    sizes = ("--events", "60", "--warmup", "10", "--queues", "2", "--rate", "100", "--patience", "45")

    result = smartpipe("bench", "--endpoint", fast_broker.endpoint_url, *sizes, "--plot", str(picture), "--json")

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
    assert picture.read_text().count("<path") > 20
    assert left_over() == []


def test_ctrl_c_ends_the_processes_and_deletes_the_queues(fast_broker: EmbeddedBroker) -> None:
    running = Process("bench", "--endpoint", fast_broker.endpoint_url, "--events", "1000000", "--queues", "1")
    try:
        running.wait_until(lambda: len(children_of(running.pid)) == 2)
        children = children_of(running.pid)

        running.signal(signal.SIGINT)

        assert running.wait() == 1
        assert running.lines == ["smartpipe: interrupted: nothing was measured"]
        until_blocking(lambda: not any(map(is_running, children)))
        assert left_over() == []
    finally:
        running.end()


def test_a_process_that_dies_is_named(fast_broker: EmbeddedBroker) -> None:
    running = Process("bench", "--endpoint", fast_broker.endpoint_url, "--events", "1000000", "--queues", "1")
    try:
        running.wait_until(lambda: len(children_of(running.pid)) == 2)
        worker = min(children_of(running.pid))

        os.kill(worker, signal.SIGKILL)

        assert running.wait() == 1
        said = f"smartpipe: worker 1 of queue 1 (process {worker}) was ended by signal 9: it said nothing"
        assert running.lines == [said]
        assert left_over() == []
    finally:
        running.end()


def test_a_process_ends_with_the_run_however_that_ends(fast_broker: EmbeddedBroker) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "smartpipe.bench.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdin, child.stdout:
        child.stdin.write(Assignment(load=Load(), producer=0).model_dump_json().encode() + b"\n")
        child.stdin.flush()
        assert read(child.stdout.readline()) == Said(kind="ready")

        child.stdin.close()

        assert child.wait(DEADLINE_SECONDS) == 1


def test_in_memory_everything_is_published_first_and_both_sides_are_told_apart(bench: Bench) -> None:
    result = bench("--backend", "memory", "--events", "200", "--warmup", "0", "--queues", "2")

    assert result.returncode == 0, result.stderr
    assert "of 400, none came twice" in result.stdout
    assert "everything was published before anything was handled" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--events", "0"], "--events=0 is outside of 1 to 100,000,000"),
        (["--size", "20"], "--size 20 is less than the envelope alone"),
        (["--backend", "kafka"], "--backend 'kafka' is none of memory, local, moto"),
        (["--backend", "local", "--endpoint", "aws"], "give one of them"),
        (["--endpoint", "localhost:4566"], "is neither a URL, as in http://localhost:4566, nor aws"),
        (["--backend", "memory", "--processes", "2"], "--backend memory is one process"),
        (["--plot", "run.pdf"], "--plot run.pdf ends with none of .svg, .png"),
        (["--plot", "nowhere/run.svg"], "there is no directory nowhere"),
    ],
)
def test_misuse_is_told_before_anything_is_started(bench: Bench, arguments: list[str], sentence: str) -> None:
    result = bench(*arguments)

    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stdout == ""


def test_a_missing_extra_is_told_with_the_command_that_brings_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)

    result = bench("--plot", "run.svg")

    assert result.returncode == 2
    assert result.stderr == ("smartpipe: bench needs hdrhistogram and matplotlib; run pip install 'smartpipe[bench]'\n")


def test_an_endpoint_that_is_not_there_ends_the_run_at_once(bench: Bench) -> None:
    result = bench("--endpoint", "http://127.0.0.1:1")

    assert result.returncode == 1
    assert "Could not connect to the endpoint URL" in result.stderr


def test_aws_is_asked_about_with_the_price_and_never_without_an_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_ENDPOINT_URL")]:
        monkeypatch.delenv(name)

    result = bench("--endpoint", "aws", "--json")

    assert result.returncode == 2
    assert "try it with --backend local, which costs nothing, then add --yes" in result.stderr
