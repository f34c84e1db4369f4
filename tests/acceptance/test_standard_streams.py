"""Commands whose standard streams are closed or full, or whose reader is gone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.conftest import TARGET
from tests.support.loopback import free_port
from tests.support.processes import ROOT, http_status, smartpipe
from tests.support.waiting import DEADLINE_SECONDS, until_blocking

if TYPE_CHECKING:
    from tests.acceptance.conftest import Command

pytestmark = pytest.mark.usefixtures("fast_broker")

CHANGES = 1


def run_in_shell(arguments: str, redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a command of smartpipe with *redirection*, such as ``>&-``, and return its exit code with its output."""
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m smartpipe {arguments} {redirection}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_plan_with_closed_streams_reports_changes_by_its_exit_code(closed: str) -> None:
    result = run_in_shell(f"topology plan {TARGET}", closed)

    assert (result.returncode, result.stderr) == (CHANGES, "")


@pytest.mark.parametrize("arguments", [f"topology plan {TARGET}", f"topology export --format dot {TARGET}", "--help"])
def test_an_output_that_cannot_be_written_is_an_error_and_not_a_plan_with_changes(arguments: str) -> None:
    result = run_in_shell(arguments, ">/dev/full")

    assert result.returncode == 2
    assert result.stderr == "smartpipe: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("arguments", [f"topology plan {TARGET}", f"topology show {TARGET}", "--help", "dlq -h"])
def test_a_command_whose_reader_is_gone_ends_as_by_sigpipe(arguments: str) -> None:
    result = run_in_shell(arguments, "| (exec <&-; sleep 0.1)")

    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full"])
def test_an_error_keeps_its_exit_code_if_it_cannot_be_printed(closed: str) -> None:
    assert run_in_shell("topology plan nowhere:service", closed).returncode == 2


def test_a_question_on_a_closed_input_is_a_usage_error() -> None:
    result = run_in_shell(f"topology apply {TARGET}", "<&-")

    assert result.returncode == 2
    assert "this command asks for confirmation, which needs a terminal" in result.stderr


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_supervised_workers_start_and_drain_with_closed_streams(closed: str) -> None:
    assert smartpipe("topology", "apply", "--yes", TARGET).returncode == 0
    port = free_port()
    command = (
        f"exec {sys.executable} -m smartpipe worker {TARGET} --processes 2 --host 127.0.0.1 --port {port} "
        f"--wait-seconds 1 {closed}"
    )
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT)

    def is_ready() -> bool:
        assert process.poll() is None  # a supervisor that fails because of its streams has ended
        try:
            return http_status(f"http://127.0.0.1:{port}/readyz")[0] == HTTPStatus.OK
        except OSError:  # it does not listen yet
            return False

    try:
        until_blocking(is_ready)  # both children receive
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["topology", "plan", "--json", "nowhere:service"], "no module 'nowhere'"),
        (["dlq", "list", "nowhere:service", "--json"], "no module 'nowhere'"),
        (["schema", "export", "json", "--json"], "json has no events"),
        (["store", "migrate", "--json"], "no database is set"),
        (["topology", "plan", "--json", "--no-such-option"], "No such option: --no-such-option"),
        (["dlq", "purge", TARGET, "--json"], "Missing option '--queue'"),
    ],
)
def test_with_json_the_error_that_ends_a_command_is_one_json_object(
    inside: Command, arguments: list[str], sentence: str
) -> None:
    result = inside(*arguments)

    fields = json.loads(result.stderr)
    assert (result.returncode, fields["exit_code"]) == (2, 2)
    assert any(sentence in error for error in fields["errors"])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_with_a_json_log_the_error_that_ends_a_worker_is_a_record_of_the_log(processes: str) -> None:
    environment = {"SMARTPIPE_LOG_FORMAT": "JSON", "SMARTPIPE_PROCESSES": processes}
    wrong = smartpipe("worker", "nowhere:service", **environment)
    missing = smartpipe("worker", TARGET, "--port", "0", **environment)

    for result, code, text in ((wrong, 2, "no module 'nowhere'"), (missing, 1, "missing: queue ")):
        records = [json.loads(line) for line in (*result.stdout.splitlines(), *result.stderr.splitlines())]
        fatal = [record for record in records if record["level"] == "critical"]
        assert result.returncode == code
        assert any(text in record["message"] for record in fatal)
        assert all(record["time"] for record in records)


def test_an_interrupted_command_exits_with_130() -> None:
    interrupted = subprocess.run(
        [sys.executable, "-c", INTERRUPT], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert (interrupted.returncode, interrupted.stderr) == (130, "")


INTERRUPT = """
import sys
from smartpipe.cli.exit import run_to_exit_code

def interrupt():
    raise KeyboardInterrupt

sys.exit(run_to_exit_code(interrupt))
"""
