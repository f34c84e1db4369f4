"""The table of benchmarks/compare: medians, spread, ratios, and clients that could not run."""

from __future__ import annotations

import pytest
from benchmarks.compare.report import MEMORY, RATIO, SHARE, Target, verdict
from benchmarks.compare.runs import find_error
from benchmarks.compare.table import Figures, build_lines, format_rates, format_table


def figures(*microseconds: float) -> list[Figures]:
    return [Figures(1_000, cpu / 1_000, 1.0, {}) for cpu in microseconds]


def test_a_client_is_shown_with_median_and_spread() -> None:
    (line,) = build_lines({"bare": figures(90, 300, 100)}, bare="bare")

    assert (round(line.middle), round(line.least), round(line.most), line.runs) == (100, 90, 300, 3)


def test_ratios_refer_to_the_bare_loop_and_the_fastest_client_comes_first() -> None:
    found = build_lines({"slow": figures(500), "bare": figures(100), "quick": figures(25)}, bare="bare")

    assert [(line.name, line.ratio and round(line.ratio, 2)) for line in found] == [
        ("quick", 0.25),
        ("bare", 1.0),
        ("slow", 5.0),
    ]


def test_a_run_that_did_not_do_all_of_the_work_is_not_counted() -> None:
    runs = {"bare": [*figures(100), Figures.invalid("handled 9 of 10")]}

    (line,) = build_lines(runs, bare="bare")

    assert (round(line.middle), line.runs) == (100, 1)


def test_a_client_that_cannot_run_stays_in_the_table_with_the_reason() -> None:
    found = build_lines({"broken": [Figures.invalid("ended with 1: a | b\nc")], "bare": figures(100)}, bare="bare")

    table = format_table(found, {"broken": "does this", "bare": "does that"}).splitlines()

    assert table[-2:] == [
        "| bare | 100 | 100 to 100 | 1.00 | does that |",
        "| broken | not run: ended with 1: a / b c | | | does this |",
    ]


def test_without_the_bare_loop_there_is_no_ratio() -> None:
    (line,) = build_lines({"quick": figures(25)}, bare="bare")

    assert line.ratio is None


def test_the_rates_over_a_distance_are_shown_beside_those_without_it() -> None:
    def run(*seconds: float) -> list[Figures]:
        return [Figures(1_000, 0.1, second, {}) for second in seconds]

    near = build_lines({"quick": run(1.0), "slow": run(1.0)}, bare="bare")
    far = build_lines({"slow": run(10.0), "quick": run(1.25, 1.0, 2.0), "new": [Figures.invalid("x")]}, bare="bare")

    assert format_rates(far, near, {"quick": "a", "slow": "b", "new": "c"}).splitlines()[2:] == [
        "| quick | 800 | 500 to 1,000 | 0.80 | 100 | a |",
        "| slow | 100 | 100 to 100 | 0.10 | 100 | b |",
        "| new | not run: x | | | | c |",
    ]


@pytest.mark.parametrize(
    ("target", "value", "expected"),
    [
        (RATIO, 0.18, "aim reached"),
        (RATIO, 0.24, "reached"),
        (RATIO, 0.241, "**missed**"),
        (MEMORY, 21, "**missed**"),
        (SHARE, 0.9, "aim reached"),
        (SHARE, 0.6, "reached"),
        (SHARE, 0.59, "**missed**"),
    ],
)
def test_a_target_is_missed_beyond_its_limit(target: Target, value: float, expected: str) -> None:
    assert verdict(target, value) == expected


@pytest.mark.parametrize(
    ("mode", "handled", "left", "memory", "expected"),
    [
        ("consume", 10, 0, False, ""),
        ("consume", 9, 0, False, "handled 9 of 10"),
        ("consume", 10, 1, False, "left 1 messages undeleted"),
        ("consume", 10, 3, True, ""),  # its queue is in the client's process, not on the broker
        ("publish", 0, 10, False, ""),
        ("publish-single", 0, 9, False, "published 9 of 10"),
        ("idle", 0, 0, False, ""),
    ],
)
def test_a_run_is_checked_by_its_handled_and_remaining_messages(
    mode: str, handled: int, left: int, memory: bool, expected: str
) -> None:
    assert find_error(mode, 10, handled=handled, left=left, memory=memory) == expected
