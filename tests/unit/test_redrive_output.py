"""What `smartpipe dlq redrive` and `purge` print, and their exit codes."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from smartpipe import Queue, Service
from smartpipe.cli import redrive
from smartpipe.cli.dlq import DeadLetterQueue
from smartpipe.cli.redrive import Operation, Progress, RedriveOptions, run_purge, run_redrive
from smartpipe.dlq.messages import NO_REASON, Selection
from smartpipe.dlq.redrive import RemovalResult, ScanResult
from smartpipe.message import Failure
from smartpipe.transports.memory.transport import NAMING

if TYPE_CHECKING:
    from collections.abc import Callable

SHOP = DeadLetterQueue(Service("shop"), Queue("orders"), "orders-dlq", "orders")
ORDER, BROKEN = ("order", "rejected"), ("", NO_REASON)


def scanned(**fields: Any) -> ScanResult:
    found = {"selected": Counter({ORDER: 3}), "others": Counter(), "complete": True, "until": 0.0, "seconds": 1.0}
    return ScanResult(**{"processed": 0, "partly_processed": 0, "in_progress": 0, **found, **fields})


def failures(count: int) -> list[tuple[Any, Failure]]:
    return [(SimpleNamespace(name=f"m{number}"), Failure(0, "Throttled", "slow", True)) for number in range(count)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command on a scan and a result; it returns the exit code and both outputs."""

    def run(
        scan: ScanResult,
        result: RemovalResult | None = None,
        *,
        purge: bool = False,
        select: Any = None,
        **options: Any,
    ) -> tuple[int, str, str]:
        def remove(_: Any, __: Any, ___: Any, results: list[RemovalResult]) -> None:
            assert result is not None, "nothing was to be removed"
            results[0].__dict__.update(vars(result))

        monkeypatch.setattr(redrive, "dead_letter_queues", lambda *_: [SHOP])
        monkeypatch.setattr(redrive, "with_transport", lambda work: work(None))
        monkeypatch.setattr(redrive, "_scan", lambda *_: (NAMING, [scan]))
        monkeypatch.setattr(redrive, "_remove", remove)
        code = 0
        try:
            chosen = RedriveOptions(**{"yes": True, **options})
            if purge:
                run_purge(["shop:service"], "orders", select or Selection(), chosen)
            else:
                run_redrive(["shop:service"], None, select or Selection(), chosen)
        except typer.Exit as error:
            code = error.exit_code
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.mark.parametrize("purge", [False, True])
def test_a_redrive_and_a_purge_say_what_they_found_and_did(
    run: Callable[..., tuple[int, str, str]], purge: bool
) -> None:
    code, out, err = run(scanned(), RemovalResult(done=3), purge=purge)

    to, verb, past = ("", "delete", "deleted") if purge else (" → orders", "move", "moved")
    assert out.splitlines()[1:] == [
        f"orders-dlq{to}: 3 messages to {verb}",
        "    3 order, rejected",
        f"orders-dlq: {past} 3",
    ]
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("fields", "options", "lines"),
    [
        (
            {"selected": Counter({BROKEN: 1}), "others": Counter({ORDER: 1}), "complete": False},
            {},
            ["1 or more messages to move", "    1 no event, no reason", "  1 message stays", "    1 order, rejected"],
        ),
        (
            {"selected": Counter({ORDER: 12, BROKEN: 2}), "others": Counter({("user", "x"): 1_000, BROKEN: 1})},
            {},
            [
                "14 messages to move",
                "    12 order, rejected",
                "     2 no event, no reason",
                "  1,001 messages stay",
                "    1,000 user, x",
                "        1 no event, no reason",
            ],
        ),
        (
            {"others": Counter({ORDER: 5})},
            {"select": Selection(limit=3)},
            ["3 messages to move", "    3 order, rejected"],
        ),
        (
            {"others": Counter({ORDER: 1})},
            {"select": Selection(limit=4)},
            ["3 messages to move", "    3 order, rejected", "  1 message stays", "    1 order, rejected"],
        ),
        (
            {"processed": 1, "in_progress": 1},
            {},
            [
                "3 messages to move",
                "    3 order, rejected",
                "  1 of them was handled before and will be skipped: use --force to have it handled again",
                "  1 of them may be in progress in a worker: the moved messages will wait for it",
            ],
        ),
        (
            {"processed": 2, "partly_processed": 1},
            {},
            [
                "3 messages to move",
                "    3 order, rejected",
                "  2 of them were handled before and will be skipped: use --force to have them handled again",
                "  1 of them was handled by some of its handlers: only the others will run",
            ],
        ),
        (
            {"processed": 2, "partly_processed": 2},
            {"force": True},
            [
                "3 messages to move",
                "    3 order, rejected",
                "  2 of them were handled before: with --force, handlers will handle them again",
                "  2 of them were handled by some of their handlers: all their handlers will run again",
            ],
        ),
        ({"selected": Counter()}, {}, ["no messages"]),
        (
            {"selected": Counter(), "others": Counter({ORDER: 1})},
            {},
            ["none of 1 message matches", "    1 order, rejected"],
        ),
    ],
)
def test_the_plan_counts_the_messages_by_type_and_reason_and_says_what_will_happen(
    run: Callable[..., tuple[int, str, str]], fields: dict[str, Any], options: dict[str, Any], lines: list[str]
) -> None:
    _, out, _ = run(scanned(**fields), dry_run=True, **options)

    first, *others = out.splitlines()[1:]
    assert [first.removeprefix("orders-dlq → orders: "), *others] == lines


@pytest.mark.parametrize(
    ("result", "purge", "code", "text"),
    [
        (RemovalResult(done=1, skipped=2), False, 0, "moved 1, skipped 2"),
        (RemovalResult(done=2, failed=failures(1)), False, 1, "moved 2, failed 1"),
        (RemovalResult(done=3, not_deleted=failures(1)), False, 1, "moved 3"),
        (RemovalResult(done=3, not_deleted=failures(1)), True, 1, "deleted 2"),
        (RemovalResult(done=2), False, 1, "moved 2, not reached 1"),
        (RemovalResult(done=4), False, 0, "moved 4"),
        (
            RemovalResult(done=1, interrupted=True),
            False,
            1,
            "moved 1, not reached 2; interrupted: the other messages are still in the queue",
        ),
    ],
)
def test_the_last_line_and_the_exit_code_report_what_was_not_done(
    run: Callable[..., tuple[int, str, str]], result: RemovalResult, purge: bool, code: int, text: str
) -> None:
    found, out, _ = run(scanned(), result, purge=purge)

    assert (found, out.splitlines()[-1]) == (code, f"orders-dlq: {text}")


@pytest.mark.parametrize(("count", "last"), [(10, "m9"), (11, "  and 1 more"), (12, "  and 2 more")])
def test_ten_failures_are_shown_and_the_others_counted(
    run: Callable[..., tuple[int, str, str]], count: int, last: str
) -> None:
    _, _, err = run(scanned(), RemovalResult(failed=failures(count)))

    lines = err.splitlines()
    assert lines[0] == "  m0 stays: Throttled: slow"
    assert last in lines[-1]
    assert len(lines) == min(count, 10) + (count > 10)


@pytest.mark.parametrize(
    ("purge", "what"), [(False, "was moved but not deleted, so it will appear again"), (True, "was not deleted")]
)
def test_a_message_that_was_not_deleted_is_shown(
    run: Callable[..., tuple[int, str, str]], purge: bool, what: str
) -> None:
    _, _, err = run(scanned(), RemovalResult(done=3, not_deleted=failures(1)), purge=purge)

    assert err == f"  m0 {what}: Throttled: slow\n"


@pytest.mark.parametrize(
    ("select", "code"), [(Selection(), 0), (Selection(limit=1), 0), (Selection(types=("order",)), 1)]
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_filters_that_match_nothing_are_a_failure_and_an_empty_queue_is_none(
    run: Callable[..., tuple[int, str, str]], select: Selection, code: int, dry_run: bool
) -> None:
    assert run(scanned(selected=Counter()), select=select, dry_run=dry_run)[0] == code


def test_the_question_names_the_number_of_messages_and_is_asked_before_anything_happens(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def refuse(question: str, **_: Any) -> None:
        asked.append(question)
        raise typer.Exit(7)

    monkeypatch.setattr(redrive, "confirm", refuse)

    assert run(scanned(complete=False))[0] == 7
    assert run(scanned(selected=Counter({ORDER: 1})), purge=True)[0] == 7
    assert run(scanned(), dry_run=True)[0] == 0
    assert asked == ["Move 3 or more messages?", "Delete 1 message?"]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("purge", [False, True])
def test_the_json_has_every_count(run: Callable[..., tuple[int, str, str]], purge: bool, dry_run: bool) -> None:
    result = None if dry_run else RemovalResult(done=1, failed=failures(1), interrupted=True)
    scan = scanned(others=Counter({BROKEN: 2}), processed=1, partly_processed=2, in_progress=3)
    code, out, err = run(scan, result, purge=purge, dry_run=dry_run, as_json=True)

    found = json.loads(out)
    assert out == json.dumps(found, indent=2) + "\n"
    extra = {} if purge else {"handled_before": 1, "partly_handled_before": 2, "in_progress": 3}
    assert (code, err, found["dry_run"]) == (0 if dry_run else 1, "", dry_run)
    assert found["queues"] == [
        {
            "queue": "orders-dlq",
            "source": "orders",
            "wanted": [{"type": "order", "reason": "rejected", "count": 3}],
            "others": [{"type": None, "reason": "none", "count": 2}],
            "complete": True,
            **extra,
            ("deleted" if purge else "moved"): 0 if dry_run else 1,
            "skipped": 0,
            "failed": [] if dry_run else [{"id": "m0", "code": "Throttled", "detail": "slow"}],
            "not_deleted": [],
            "not_reached": 0 if dry_run else 1,
            "interrupted": not dry_run,
        }
    ]


@pytest.mark.parametrize(
    ("terminal", "as_json", "expected"),
    [
        (False, False, "orders-dlq: moved 3 of 3+\norders-dlq: moved 4 of 3+\n"),
        (False, True, ""),
        (
            True,
            False,
            "".join(f"\rorders-dlq: moved {count} of 3+\x1b[K" for count in (1, 3, 4)) + "\r\x1b[K",
        ),
    ],
)
def test_progress_is_one_line_on_a_terminal_and_elsewhere_a_line_every_ten_seconds(
    terminal: bool,
    as_json: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 100.0
    monkeypatch.setattr(redrive, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    options = RedriveOptions(as_json=as_json)
    operation = Operation([SHOP], Selection(), options, "move", "moved", is_redrive=True)

    progress = Progress(operation, SHOP, scanned(complete=False))
    for moment, done in ((100.1, 0), (100.25, 1), (100.3, 2), (110.0, 3), (110.1, 3), (120.0, 4)):
        now = moment
        progress(RemovalResult(done=done))
    progress.end()

    assert capsys.readouterr().err == expected


def test_progress_that_printed_nothing_clears_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    operation = Operation([SHOP], Selection(), RedriveOptions(), "move", "moved", is_redrive=True)

    Progress(operation, SHOP, scanned()).end()

    assert capsys.readouterr().err == ""
