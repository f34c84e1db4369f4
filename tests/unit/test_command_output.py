"""What commands print about dead-letter messages and changes, and how they ask for confirmation."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from smartpipe import ConfigError
from smartpipe.cli import confirm as confirming
from smartpipe.cli.changes import Line, describe_changes, format_json, heading, print_line
from smartpipe.cli.dlq import describe
from smartpipe.dlq.messages import DeadLetterMessage
from smartpipe.message import Message
from smartpipe.names import Naming
from smartpipe.topology.changes import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")


@pytest.mark.parametrize(("prefix", "shown"), [("staging-", "prefix staging-"), ("", "no prefix")])
def test_a_heading_says_where_changes_are_made(prefix: str, shown: str) -> None:
    assert heading(NAMING._replace(prefix=prefix)) == f"account 123456789012, eu-west-1, {shown}, application smartpipe"


REASON: Any = {
    "kind": "retries-exhausted", "error_type": "builtins.OSError", "message": "down", "handler": "shop.ship",
    "receive_count": 1, "dead_lettered_at": "2026-11-27T07:00:00.5+01:00",
}  # fmt: skip


@pytest.mark.parametrize(
    ("dead_letter", "lines"),
    [
        (
            DeadLetterMessage(Message("m1", "r", '{"a": 1}', receive_count=2), "7", "order", "shop", REASON),
            [
                "  7  order from shop",
                "      retries-exhausted after 1 receive in shop.ship: OSError: down",
                "      dead-lettered 2026-11-27 06:00:00 UTC; 2 receives in all; message m1",
                '      {"a": 1}',
            ],
        ),
        (
            DeadLetterMessage(
                Message("m1", "r", "x" * 200), None, None, None, REASON | {"handler": None, "dead_lettered_at": None}
            ),
            [
                "  no event  ",
                "      retries-exhausted after 1 receive: OSError: down",
                "      dead-lettered ?; 1 receive in all; message m1",
                "      " + "x" * 113 + "…",
            ],
        ),
        (
            DeadLetterMessage(Message("m1", "r", "x" * 114, sent_at=1_000_000_000.0), "7", "a\nb\x1b", None, {}),
            [
                "  7  a b\N{REPLACEMENT CHARACTER}",
                "      no reason: SQS moved it after too many receives, or SNS could not deliver it",
                "      sent 2001-09-09 01:46:40 UTC; 1 receive in all; message m1",
                "      " + "x" * 114,
            ],
        ),
        (
            DeadLetterMessage(Message("m1", "r", ""), "7", "order", None, {}),
            [
                "  7  order",
                "      no reason: SQS moved it after too many receives, or SNS could not deliver it",
                "      sent ?; 1 receive in all; message m1",
                "      ",
            ],
        ),
    ],
)
def test_a_dead_letter_message_is_described_in_four_lines_of_the_terminals_width(
    dead_letter: DeadLetterMessage, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    assert describe(dead_letter) == lines


CREATED, UPDATED, DELETED, SAME, THEIRS, LEFT = (
    Change(action, "queue", (f"arn:{action}",), {}, {}) for action in
    ("create", "update", "delete", "unchanged", "external", "orphaned")
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "options", "names", "count"),
    [
        ([CREATED, UPDATED, DELETED, SAME], {}, "+~-", "1 to create, 1 to update, 1 to delete; 1 unchanged"),
        ([CREATED, SAME, SAME], {"every": True}, "+==", "1 to create, 0 to update, 0 to delete; 2 unchanged"),
        ([CREATED, THEIRS], {"without_pending": True}, "?", "1 to create, 0 to update, 0 to delete; 1 external"),
        ([SAME, THEIRS], {}, "?", "nothing to change; 1 unchanged, 1 external"),
        ([], {}, "", "nothing to change"),
        ([DELETED, THEIRS], {"deleting": True}, "-?", "1 to delete; 1 kept"),
        ([DELETED], {"deleting": True}, "-", "1 to delete"),
        ([THEIRS], {"deleting": True}, "?", "nothing to delete; 1 kept"),
    ],
)
def test_a_plan_has_a_line_for_each_change_and_their_numbers(
    changes: Sequence[Change], options: dict[str, Any], names: str, count: str
) -> None:
    *lines, last = describe_changes(changes, **options)

    assert "".join(line.text.strip()[0] for line in lines) == names
    assert last == Line(count)


def test_orphans_come_with_a_warning() -> None:
    lines = [line.text for line in describe_changes([LEFT])]

    assert lines[1] == "nothing to change; 1 orphaned"
    assert lines[2].startswith("orphaned: check that you named every TARGET")


def test_a_change_shows_its_reason_and_an_update_the_old_and_the_new_values() -> None:
    changes = [
        CREATED._replace(reason="new"),
        UPDATED._replace(before={"a": "1", "b": "2"}, attributes={"a": "2", "b": None}),
        DELETED._replace(before={"a": "1"}, attributes={"a": "2"}),
        THEIRS._replace(reason="of others"),
    ]

    *lines, _ = describe_changes(changes)

    assert lines == [
        Line("  + queue        create  (create: new)", "green"),
        Line("  ~ queue        update", "yellow"),
        Line("      a: 1 → 2", "yellow"),
        Line("      b: 2 → nothing", "yellow"),
        Line("  - queue        delete", "red"),
        Line("  ? queue        external  (external: of others)", "cyan"),
    ]
    assert next(describe_changes([THEIRS._replace(reason="of others")], deleting=True)).text.endswith(
        "(kept: of others)"
    )
    assert next(describe_changes([DELETED._replace(reason="x")], deleting=True)).text.endswith("(delete: x)")


@pytest.mark.parametrize(
    ("terminal", "no_color", "colour", "coloured"),
    [
        (True, "", "red", True),
        (True, "1", "red", False),
        (False, "", "red", False),
        (True, "", None, False),
        (True, "1", None, False),
        (False, "", None, False),
    ],
)
def test_a_line_is_coloured_on_a_terminal_only(
    terminal: bool,
    no_color: str,
    colour: str | None,
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed: list[Any] = []
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(typer, "echo", lambda text, *, err: printed.append((text, err)))
    monkeypatch.setenv("NO_COLOR", no_color)

    print_line(Line("a\x1bb", colour), err=coloured)
    print_line("text")

    assert printed == [("\x1b[31ma\\x1bb\x1b[0m" if coloured else "a\\x1bb", coloured), ("text", False)]


def test_the_json_of_a_plan_has_the_kept_resources_of_a_destroy_only() -> None:
    context: Any = SimpleNamespace(naming=NAMING, notes=["\u202e"])

    text = format_json(context, [CREATED])
    assert list(json.loads(text)) == [*NAMING._asdict(), "changes", "notes"]
    assert text == json.dumps(json.loads(text), indent=2)
    found = json.loads(format_json(context, [], [THEIRS]))
    assert (found["changes"], found["kept"], found["notes"]) == (
        [],
        [THEIRS.as_json() | {"arns": ["arn:external"]}],
        ["\u202e"],
    )
    assert json.loads(format_json(context, [], []))["kept"] == []


@pytest.mark.parametrize(
    ("terminal", "as_json", "answer", "code"),
    [(True, False, True, None), (True, False, False, 1), (True, False, typer.Abort(), 1)],
)
def test_a_command_continues_only_if_the_user_agrees(
    terminal: bool,
    as_json: bool,
    answer: bool | Exception,
    code: int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask(question: str) -> bool:
        assert question == "Delete?"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(typer, "confirm", ask)
    if code is None:
        confirming.confirm("Delete?", yes=False, as_json=as_json)
    else:
        with pytest.raises(typer.Exit) as ended:
            confirming.confirm("Delete?", yes=False, as_json=as_json)
        assert ended.value.exit_code == code
    line_end = "\n" if isinstance(answer, Exception) else ""  # the cursor is still behind the question
    assert capsys.readouterr().out == ("" if code is None else f"{line_end}nothing was changed\n")


@pytest.mark.parametrize(("terminal", "as_json"), [(False, False), (True, True), (False, True)])
def test_nobody_can_be_asked_without_a_terminal_or_beside_json(
    terminal: bool, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)

    confirming.confirm("Delete?", yes=True, as_json=as_json)
    with pytest.raises(ConfigError, match=r"needs a terminal and no --json: review the plan, then add --yes"):
        confirming.confirm("Delete?", yes=False, as_json=as_json)
