"""``smartpipe publish`` in processes, with a real broker and a worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.conftest import TARGET
from tests.support.processes import ROOT, Process, smartpipe

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe import EmbeddedBroker
    from tests.acceptance.conftest import Command, Jobs

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def test_a_published_event_reaches_its_handler(jobs: Jobs, tmp_path: Path) -> None:
    file = tmp_path / "jobs.ndjson"
    file.write_text('{"name": "second"}\n{"name": "third", "seconds": 0.1}\n')
    jobs.start_worker()

    first = smartpipe("publish", "job.posted", TARGET, "--data", '{"name": "first"}')
    others = smartpipe("publish", "job.posted", TARGET, "--data", f"@{file}", "--json")

    assert (first.returncode, first.stderr) == (0, "")
    assert ID.fullmatch(first.stdout.strip())
    assert (others.returncode, others.stderr) == (0, "")
    assert [json.loads(line)["destination"] for line in others.stdout.splitlines()] == ["jobs", "jobs"]
    for name in ("first", "second", "third"):
        jobs.wait_for(f"begun {name}")


def test_the_event_may_come_from_standard_input_and_is_repeated(jobs: Jobs) -> None:
    command = [sys.executable, "-m", "smartpipe", "publish", "job.posted", TARGET, "--data", "-", "--count", "25"]

    done = subprocess.run(
        command, cwd=ROOT, input='{"name":\n"piped"}', capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 0
    assert len(set(done.stdout.split())) == 25
    assert done.stderr.startswith("published 25 of 25 events of job.posted 1.0 to jobs in ")
    jobs.start_worker()
    jobs.wait_for("begun piped", 25)


def test_ctrl_c_ends_it_with_a_summary(jobs: Jobs) -> None:
    process = Process("publish", "job.posted", TARGET, "--data", '{"name": "x"}', "--count", "100000", "--rate", "20")
    process.wait_until(lambda: len(process.lines) >= 5)

    process.signal(signal.SIGINT)

    assert process.wait() == 130
    *ids, summary = process.lines
    assert all(map(ID.fullmatch, ids))
    assert re.match(rf"published {len(ids)} of 100,000 events of job.posted 1\.0 to jobs in ", summary)


def test_a_reader_of_the_ids_may_leave(jobs: Jobs) -> None:
    command = [sys.executable, "-m", "smartpipe", "publish", "job.posted", TARGET, "--data", '{"name": "x"}']
    with subprocess.Popen(
        [*command, "--count", "100000"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.stderr.read() == ""
        assert process.wait(60) == 141


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["job.posted", "--data", "{"], "--data is not JSON: Expecting property name"),
    (["job.postd", "--data", "{}"], "no event of the TARGETs has the type 'job.postd': did you mean job.posted?"),
    (["job.posted"], "--data: field 'name' is missing: add it"),
    (["job.posted", "--data", '{"name": 5}'], "--data: field 'name': input should be a valid string; the value is 5"),
    (["job.posted", "--version", "2"], "job.posted has no version 2: its version is 1.0"),
    (["job.posted", "nowhere:service"], "no module 'nowhere'"),
])  # fmt: skip
def test_wrong_input_ends_with_2_and_one_line(
    fast_broker: EmbeddedBroker, inside: Command, arguments: list[str], sentence: str
) -> None:
    type_, *others = arguments
    result = inside("publish", type_, *([] if "nowhere:service" in others else [TARGET]), *others)

    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_topic_that_does_not_exist_ends_with_1_and_the_remedy(fast_broker: EmbeddedBroker, inside: Command) -> None:
    prefix = f"{os.environ['SMARTPIPE_PREFIX']}other-"

    result = inside("publish", "job.posted", TARGET, "--data", '{"name": "x"}', SMARTPIPE_PREFIX=prefix)

    assert result.returncode == 1
    assert result.stdout == ""
    assert "1 event was not published: NotFound: topic " in result.stderr
    assert "run `smartpipe topology apply`" in result.stderr
    as_json = inside("publish", "job.posted", TARGET, "--data", '{"name": "x"}', "--json", SMARTPIPE_PREFIX=prefix)
    assert json.loads(as_json.stderr)["exit_code"] == 1
