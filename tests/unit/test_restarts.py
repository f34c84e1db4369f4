from __future__ import annotations

import pytest

from smartpipe.worker.supervisor.restarts import (
    AwaitChange,
    Exit,
    GiveUp,
    Restart,
    after_exit,
    describe_exit,
    exit_code,
    failures_in_a_row,
)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30), (10_000, 30)]
)
def test_waits_between_restarts_double_from_1_second_to_30(failures: int, seconds: float) -> None:
    crashed = Exit(-9, 5.0, was_ready=True)

    assert after_exit(crashed, failures, any_was_ready=True, reloading=False) == Restart(seconds)


@pytest.mark.parametrize(("before", "ran_seconds", "after"), [(0, 5, 1), (3, 59.9, 4), (3, 60, 1), (0, 600, 1)])
def test_who_ran_for_a_minute_begins_with_short_waits_again(before: int, ran_seconds: float, after: int) -> None:
    assert failures_in_a_row(before, Exit(1, ran_seconds, was_ready=True)) == after


@pytest.mark.parametrize(
    ("code", "was_ready", "any_was_ready", "reloading", "expected"),
    [
        (1, False, False, False, GiveUp(1)),
        (2, False, False, False, GiveUp(2)),
        (2, False, True, False, Restart(1)),  # another runs with the same configuration
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
def test_what_follows_when_a_process_ends_by_itself(
    code: int, was_ready: bool, any_was_ready: bool, reloading: bool, expected: Restart | GiveUp | AwaitChange
) -> None:
    ended = Exit(code, 0.5, was_ready)

    assert after_exit(ended, 1, any_was_ready=any_was_ready, reloading=reloading) == expected


@pytest.mark.parametrize(
    ("exits", "expected"),
    [
        ([], 0),
        ([Exit(0, 9, was_ready=True), Exit(0, 9, was_ready=True)], 0),
        ([Exit(0, 9, was_ready=True), Exit(1, 9, was_ready=True)], 1),
        ([Exit(-9, 9, was_ready=True)], 1),
        ([Exit(-15, 0.1, was_ready=False)], 0),  # it did not listen yet, and had taken nothing
        ([Exit(-15, 9, was_ready=True)], 1),
        ([Exit(2, 0.1, was_ready=False)], 1),
    ],
)
def test_the_exit_code_is_0_when_all_drained_well(exits: list[Exit], expected: int) -> None:
    assert exit_code(exits) == expected


@pytest.mark.parametrize(
    ("code", "expected"), [(0, "exit code 0"), (137, "exit code 137"), (-9, "SIGKILL"), (-63, "signal 63")]
)
def test_an_exit_is_told_by_code_or_signal(code: int, expected: str) -> None:
    assert describe_exit(code) == expected
