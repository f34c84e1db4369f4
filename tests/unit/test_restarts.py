from __future__ import annotations

import signal

import pytest

from smartpipe.worker.supervisor.restarts import (
    AwaitChange,
    GiveUp,
    ProcessExit,
    Restart,
    combine_exits,
    count_failures,
    decide_after_exit,
    describe_exit,
)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30), (10_000, 30)]
)
def test_waits_between_restarts_double_from_1_second_to_30(failures: int, seconds: float) -> None:
    crashed = ProcessExit(-9, 5.0, was_ready=True)

    assert decide_after_exit(crashed, failures, any_was_ready=True, reloading=False) == Restart(seconds)


@pytest.mark.parametrize(("before", "ran_seconds", "after"), [(0, 5, 1), (3, 59.9, 4), (3, 60, 1), (0, 600, 1)])
def test_a_run_of_a_minute_resets_the_wait(before: int, ran_seconds: float, after: int) -> None:
    assert count_failures(before, ProcessExit(1, ran_seconds, was_ready=True)) == after


@pytest.mark.parametrize(
    ("code", "was_ready", "any_was_ready", "reloading", "expected"),
    [
        (1, False, False, False, GiveUp(1)),
        (2, False, False, False, GiveUp(2)),
        (2, False, True, False, Restart(1)),  # another process runs with the same configuration
        (1, True, True, False, Restart(1)),
        (0, False, False, False, Restart(1)),
        (3, False, False, False, Restart(1)),
        (-9, False, False, False, Restart(1)),
        (1, False, False, True, AwaitChange()),
        (2, False, True, True, AwaitChange()),
        (1, True, True, True, Restart(1)),
        (-11, False, False, True, Restart(1)),
    ],
)
def test_the_decision_after_an_unexpected_exit(
    code: int, was_ready: bool, any_was_ready: bool, reloading: bool, expected: Restart | GiveUp | AwaitChange
) -> None:
    ended = ProcessExit(code, 0.5, was_ready)

    assert decide_after_exit(ended, 1, any_was_ready=any_was_ready, reloading=reloading) == expected


@pytest.mark.parametrize(
    ("exits", "expected"),
    [
        ([], 0),
        ([ProcessExit(0, 9, was_ready=True), ProcessExit(0, 9, was_ready=True)], 0),
        ([ProcessExit(0, 9, was_ready=True), ProcessExit(1, 9, was_ready=True)], 1),
        ([ProcessExit(-9, 9, was_ready=True)], 1),
        ([ProcessExit(-15, 0.1, was_ready=False)], 0),  # it was not ready yet, and had received no message
        ([ProcessExit(-15, 9, was_ready=True)], 1),
        ([ProcessExit(2, 0.1, was_ready=False)], 1),
    ],
)
def test_the_exit_code_is_0_if_all_processes_drained_cleanly(exits: list[ProcessExit], expected: int) -> None:
    assert combine_exits(exits) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [(0, "exit code 0"), (137, "exit code 137"), (-1, "SIGHUP"), (-9, "SIGKILL"), (-63, "signal 63")],
)
def test_an_exit_is_described_by_code_or_signal(code: int, expected: str) -> None:
    assert describe_exit(code) == expected


@pytest.mark.parametrize(
    ("code", "clean"), [(-signal.SIGTERM, True), (143, True), (142, False), (144, False), (-9, False)]
)
def test_a_process_that_sigterm_ended_before_it_was_ready_is_clean(code: int, clean: bool) -> None:
    fine = ProcessExit(0, 100, was_ready=True)

    assert combine_exits([fine, ProcessExit(code, 1, was_ready=False)]) == int(not clean)
    assert combine_exits([fine, ProcessExit(code, 1, was_ready=True)]) == 1
    assert combine_exits([fine, fine]) == combine_exits([]) == 0
