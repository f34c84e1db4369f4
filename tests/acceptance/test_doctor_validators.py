"""The traps of docs/doctor.md: what doctor finds in each file, and what a validator of its format finds."""

from __future__ import annotations

import re
import subprocess
from datetime import date
from pathlib import Path

import pytest

from smartpipe.doctor.examine import examine
from tests.support.programs import find_program

pytest.importorskip("yaml", reason="needs the extra doctor")

MANIFESTS = Path(__file__).parents[1] / "support" / "manifests"
PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
TRAPS = {
    "all-at-once.compose.yaml": ("SP207", ""),
    "batch-without-window.json": ("SP206", ""),
    "cpu-autoscaler.yaml": ("SP205", ""),
    "grace-period.compose.yaml": ("SP201", ""),
    "grace-period.yaml": ("SP201", ""),
    "keda-activation.yaml": ("SP204", ""),
    "keda-region.yaml": ("SP204", ""),
    "keda-without-in-flight.yaml": ("SP204", ""),
    "liveness-on-readiness.yaml": ("SP203", ""),
    "no-dead-letter-queue.json": ("SP206", ""),
    "no-disruption-budget.yaml": ("SP207", ""),
    "one-zone.yaml": ("SP207", ""),
    "reserved-concurrency.json": ("SP206", ""),
    "root.dockerfile": ("SP202", ""),
    "sam-visibility.json": ("SP206", ""),
    "shell-form.dockerfile": ("SP202", "DL3025"),
    "stop-timeout-300.json": ("SP201", ""),
    "stop-timeout-short.json": ("SP201", ""),
    "stop-timeout.tf.json": ("SP201", ""),
    "visibility-below-six-timeouts.json": ("SP206", ""),
    "visibility-below-timeout.json": ("SP206", "E3505"),
    "visibility.tf.json": ("SP206", ""),
    "whole-batches.json": ("SP206", ""),
}
"""By file: the code of doctor, and that of the validator, if it finds anything."""
GOOD = (
    "good.yaml",
    "good.compose.yaml",
    "good.dockerfile",
    "good-task.json",
    "good-mapping.json",
    "good-sam.json",
    "good.tf.json",
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRAIN_SECONDS", "CONCURRENCY", "PROCESSES"):
        monkeypatch.delenv(f"SMARTPIPE_{name}", raising=False)


@pytest.mark.parametrize("name", TRAPS)
def test_doctor_finds_each_trap(name: str) -> None:
    report = examine([], [MANIFESTS / name], (), date(2026, 11, 27))

    assert [one.code for one in report.findings] == [TRAPS[name][0]]


@pytest.mark.parametrize("name", GOOD)
def test_doctor_finds_nothing_in_their_good_counterparts(name: str) -> None:
    assert examine([], [MANIFESTS / name], (), date(2026, 11, 27)).findings == []


@pytest.mark.parametrize("name", TRAPS)
def test_a_validator_of_the_format_finds_only_the_traps_that_the_page_says(name: str) -> None:
    assert find_by_validator(MANIFESTS / name) == TRAPS[name][1]


def find_by_validator(path: Path) -> str:
    """Return the code that the validator of the file's format prints; nothing if it accepts the file."""
    if path.name.endswith(".tf.json"):
        pytest.skip("terraform needs a provider, which it downloads")
    if path.suffix == ".json":
        api = pytest.importorskip("cfnlint.api", reason="needs cfn-lint")
        errors = api.lint(path.read_text(), config=api.ManualArgs(regions=["eu-west-1"]))
        return ", ".join(error.rule.id for error in errors)
    if path.suffix == ".dockerfile":
        command = [find_program("hadolint"), "--no-color", str(path)]
    elif path.name.endswith(".compose.yaml"):
        command = [find_program("docker-compose"), "-f", str(path), "config", "--quiet"]
    else:
        command = [find_program("kubernetes-validate"), "--strict", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    codes = re.findall(r"\bDL\d{4}\b", done.stdout)
    assert done.returncode == 0 or codes, done.stdout + done.stderr
    return ", ".join(codes)


def test_the_page_has_a_row_for_each_trap() -> None:
    rows = re.findall(
        r"^\| \[.+\]\(\.\./tests/support/manifests/(\S+)\) \| .* \|(?: | nothing | (\w+) )\| (\w+) \|$",
        PAGE.read_text(),
        re.MULTILINE,
    )

    assert {name: (code, found) for name, found, code in rows} == TRAPS
    assert {path.name for path in MANIFESTS.iterdir()} == {*TRAPS, *GOOD}
