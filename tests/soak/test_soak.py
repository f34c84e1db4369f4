"""The judgement of the soak: each broken promise makes the command fail. ``make soak`` runs it for an hour."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.soak import __main__ as command
from tests.soak.flood import Flood
from tests.soak.record import Record
from tests.soak.samples import Sample, measure_growth
from tests.support.processes import ROOT
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from pathlib import Path

MEGABYTE = 1_000_000


def make_samples(megabytes: list[float], descriptors: int = 20) -> list[Sample]:
    return [Sample(10.0 * number, round(size * MEGABYTE), descriptors) for number, size in enumerate(megabytes)]


def make_record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "machine": {"Python": "3"},
        "accepted": 10,
        "expected": 10,
        "effects": 12,
        "repeated": 2,
        "poison": 3,
        "spared": ["worker-001"],
        "names": {"worker-001": "ledger", "worker-002": "ledger"},
        "samples": {"worker-001": make_samples([90.0] * 40), "worker-002": make_samples([50.0])},
        "progress": [(0.0, 0, 0, 0), (60.0, 10, 12, 0)],
        "disturbances": [("throttling", 1.0, 2.0)],
        "kills": [5.0],
    }
    return Record(minutes=1, seed=1, rate=1, **{**fields, **changes})


def test_a_run_without_a_broken_promise_has_no_violation() -> None:
    assert make_record().violations == []


@pytest.mark.parametrize(
    "changes",
    [
        {"lost": 1},
        {"doubled": 1},
        {"out_of_order": 1},
        {"stranded": 1},
        {"poison_lost": 1},
        {"good_dead_lettered": 1},
        {"internal_errors": 1},
        {"bad_drains": ["worker-002, exit code 3"]},
        {"failed_ends": ["worker-001, exit code 1: []"]},
        {"effects": 0},
        {"poison": 0},
        {"samples": {"worker-001": make_samples([90.0 + number for number in range(40)])}},
        {"samples": {"worker-001": make_samples([90.0] * 20, 20) + make_samples([90.0] * 20, 80)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_broken_promise_is_a_violation(changes: dict[str, Any]) -> None:
    assert len(make_record(**changes).violations) == 1


def test_a_killed_worker_that_a_fault_met_at_its_start_is_no_violation() -> None:
    assert make_record(failed_ends=["worker-002, exit code 1: []"]).violations == []


def test_growth_is_measured_after_the_warm_up_and_does_not_depend_on_single_samples() -> None:
    warm_up = measure_growth(make_samples([10.0 * number for number in range(10)] + [100.0] * 30))
    peak = measure_growth(make_samples([100.0] * 38 + [500.0, 100.0]))
    leak = measure_growth(make_samples([100.0 + number for number in range(40)]))

    assert warm_up is not None
    assert warm_up.is_flat
    assert peak is not None
    assert peak.is_flat
    assert leak is not None
    assert not leak.is_flat
    assert leak.memory_bytes == 20 * MEGABYTE  # of 40 s, less the warm-up and a third
    assert measure_growth(make_samples([1.0] * 5)) is None


def test_poison_that_is_not_dead_lettered_or_memory_that_changes_is_a_violation() -> None:
    machine = {"Python": "3"}
    flat = make_samples([90.0] * 40)

    assert Flood(poison=9, machine=machine, dead_lettered=9, samples=flat).violations == []
    assert len(Flood(poison=9, machine=machine, dead_lettered=8, samples=flat).violations) == 1
    assert len(Flood(poison=9, machine=machine, dead_lettered=9, wrong_reasons=1, samples=flat).violations) == 1
    growing = make_samples([90.0 + number for number in range(40)])
    assert len(Flood(poison=9, machine=machine, dead_lettered=9, samples=growing).violations) == 1


@pytest.mark.parametrize(("lost", "code"), [(0, 0), (1, 1)])
def test_the_command_fails_if_an_effect_is_lost_and_keeps_the_record_and_the_picture(
    lost: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(record: Record, _: Any) -> None:
        for name, value in vars(make_record(lost=lost)).items():
            setattr(record, name, value)

    monkeypatch.setattr(command, "run_soak", run)
    monkeypatch.setattr(command, "RECORD", tmp_path / "record.json")
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command.main(["--minutes", "1"]) == code
    finally:
        signal.signal(signal.SIGTERM, before)

    assert ("BROKEN: 1 effects lost" in capsys.readouterr().out) == bool(lost)
    assert Record.read(tmp_path / "record.json") == make_record(lost=lost)
    assert (tmp_path / "record.svg").read_text().startswith("<?xml")


def test_the_processes_of_a_soak_end_even_if_it_is_killed() -> None:
    script = (
        "import subprocess, sys, time\n"
        "from tests.support.processes import Keeper\n"
        "with Keeper() as keeper:\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    keeper.watch(child.pid)\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()

    until_blocking(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
