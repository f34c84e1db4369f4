"""The table of benchmarks/compare: medians, spread and ratios, and what it says of a client that could not run."""

from __future__ import annotations

import pytest
from benchmarks.compare.report import MEMORY, RATIO, Target, verdict
from benchmarks.compare.runs import fault
from benchmarks.compare.table import Figures, lines, markdown


def figures(*micros: float) -> list[Figures]:
    return [Figures(1_000, cpu / 1_000, 1.0, {}) for cpu in micros]


def test_a_client_counts_by_its_median_and_shows_its_spread() -> None:
    (line,) = lines({"bare": figures(90, 300, 100)}, bare="bare")

    assert (round(line.middle), round(line.least), round(line.most), line.runs) == (100, 90, 300, 3)


def test_ratios_are_to_the_bare_loop_and_the_quickest_comes_first() -> None:
    found = lines({"slow": figures(500), "bare": figures(100), "quick": figures(25)}, bare="bare")

    assert [(line.name, line.ratio and round(line.ratio, 2)) for line in found] == [
        ("quick", 0.25),
        ("bare", 1.0),
        ("slow", 5.0),
    ]


def test_a_run_that_did_not_do_all_of_the_work_counts_for_nothing() -> None:
    runs = {"bare": [*figures(100), Figures.refused("handled 9 of 10")]}

    (line,) = lines(runs, bare="bare")

    assert (round(line.middle), line.runs) == (100, 1)


def test_a_client_that_cannot_run_stays_in_the_table_and_says_why() -> None:
    found = lines({"broken": [Figures.refused("ended with 1: a | b\nc")], "bare": figures(100)}, bare="bare")

    table = markdown(found, {"broken": "does this", "bare": "does that"}).splitlines()

    assert table[-2:] == [
        "| bare | 100 | 100 to 100 | 1.00 | does that |",
        "| broken | not run: ended with 1: a / b c | | | does this |",
    ]


def test_without_the_bare_loop_there_is_no_ratio() -> None:
    (line,) = lines({"quick": figures(25)}, bare="bare")

    assert line.ratio is None


@pytest.mark.parametrize(
    ("target", "value", "said"),
    [
        (RATIO, 0.22, "aim reached"),
        (RATIO, 0.35, "reached"),
        (RATIO, 0.351, "**missed**"),
        (MEMORY, 41, "**missed**"),
    ],
)
def test_a_target_is_missed_above_its_limit(target: Target, value: float, said: str) -> None:
    assert verdict(target, value) == said


@pytest.mark.parametrize(
    ("what", "handled", "left", "memory", "said"),
    [
        ("consume", 10, 0, False, ""),
        ("consume", 9, 0, False, "handled 9 of 10"),
        ("consume", 10, 1, False, "left 1 messages undeleted"),
        ("consume", 10, 3, True, ""),  # its queue is in the client's process, and the one asked is nobody's
        ("publish", 0, 10, False, ""),
        ("publish-single", 0, 9, False, "published 9 of 10"),
        ("idle", 0, 0, False, ""),
    ],
)
def test_a_run_is_judged_by_what_was_handled_and_what_is_left(
    what: str, handled: int, left: int, memory: bool, said: str
) -> None:
    assert fault(what, 10, handled=handled, left=left, memory=memory) == said
