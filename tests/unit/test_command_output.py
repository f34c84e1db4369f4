"""What commands print about queues, dead-letter messages and changes, and how they ask for confirmation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import typer

from smartpipe import ConfigError, Queue, Service
from smartpipe.cli import confirm as confirming
from smartpipe.cli import dlq, show
from smartpipe.cli.changes import Line, describe_changes, heading
from smartpipe.cli.dlq import DeadLetterQueue, describe, run_list
from smartpipe.cli.show import describe_contents, run_show
from smartpipe.dlq.messages import DeadLetterMessage
from smartpipe.message import Message
from smartpipe.names import Naming
from smartpipe.topology.changes import Change
from smartpipe.topology.status import Branch, QueueState, TopicState

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")


def queue(name: str = "mailer", **fields: Any) -> QueueState:
    return QueueState(name, f"arn:{name}", **{"exists": True, **fields})


@pytest.mark.parametrize(("prefix", "shown"), [("staging-", "prefix staging-"), ("", "no prefix")])
def test_a_heading_says_where_changes_are_made(prefix: str, shown: str) -> None:
    assert heading(NAMING._replace(prefix=prefix)) == f"account 123456789012, eu-west-1, {shown}, application smartpipe"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "0 waiting, 0 in flight"),
        ({"visible": 1_000, "in_flight": 2_000, "delayed": 3_000}, "1,000 waiting, 2,000 in flight, 3,000 delayed"),
        ({"oldest_age_seconds": 0.0}, "0 waiting, 0 in flight, oldest 0 s"),
        ({"oldest_age_seconds": 59.4}, "0 waiting, 0 in flight, oldest 59 s"),
        ({"oldest_age_seconds": 60}, "0 waiting, 0 in flight, oldest 1.0 min"),
        ({"oldest_age_seconds": 3_599}, "0 waiting, 0 in flight, oldest 60.0 min"),
        ({"oldest_age_seconds": 3_600}, "0 waiting, 0 in flight, oldest 1.0 h"),
        ({"oldest_age_seconds": 86_399}, "0 waiting, 0 in flight, oldest 24.0 h"),
        ({"oldest_age_seconds": 129_600}, "0 waiting, 0 in flight, oldest 1.5 d"),
    ],
)
def test_the_contents_of_a_queue_are_described_in_numbers_and_an_age(fields: dict[str, Any], text: str) -> None:
    assert describe_contents(queue(**fields)) == text


TREE = [
    TopicState(
        "users",
        "arn:users",
        True,
        (
            Branch(True, None, True, queue(dead_letters=queue("mailer-dlq", visible=1))),
            Branch(True, {"type": ["a", {"prefix": "b"}], "$or": {"x": 1}}, False, queue("audit")),
            Branch(False, None, True, queue("late", exists=False)),
        ),
        elsewhere=2,
    ),
    TopicState("orders", "arn:orders", False, ()),
    TopicState("parcels", "arn:parcels", True, (), elsewhere=1),
    TopicState("", "", True, (Branch(True, None, True, queue("direct")),)),
]
DRAWN = """\
account 123456789012, eu-west-1, prefix staging-, application smartpipe
topic users
├── subscription everything
│   └── queue mailer  0 waiting, 0 in flight
│       └── dead-letter queue mailer-dlq  1 waiting, 0 in flight
├── subscription type in a | {"prefix": "b"}, $or {"x": 1}  not raw
│   └── queue audit  0 waiting, 0 in flight
├── subscription  not deployed
│   └── queue late  not deployed
└── and 2 subscriptions of others
topic orders  not deployed
└── no subscriptions
topic parcels
└── and 1 subscription of others
direct queues
└── queue direct  0 waiting, 0 in flight
note: a note
"""


@pytest.mark.parametrize("as_json", [False, True])
def test_the_deployed_topology_is_drawn_as_a_tree_or_as_json(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "load_services", lambda _: [])
    monkeypatch.setattr(show, "with_session", lambda _: (NAMING, TREE, ["a note"]))

    run_show([], as_json=as_json)

    out = capsys.readouterr().out
    if not as_json:
        assert out == DRAWN
        return
    found = json.loads(out)
    assert (found["region"], found["notes"]) == ("eu-west-1", ["a note"])
    assert [topic["name"] for topic in found["topics"]] == ["users", "orders", "parcels", ""]
    assert found["topics"][0]["branches"][0]["queue"]["dead_letters"]["visible"] == 1
    assert found["topics"][0]["branches"][1]["filter"] == {"type": ["a", {"prefix": "b"}], "$or": {"x": 1}}


@pytest.mark.parametrize("as_json", [False, True])
def test_dead_letter_queues_are_listed_with_their_contents_and_those_that_are_missing(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service("shop")
    queues = [DeadLetterQueue(service, Queue(name), f"{name}-dlq", name) for name in ("a", "longer", "b")]
    states = [queue("a-dlq", visible=1), queue("longer-dlq", exists=False), queue("b-dlq")]
    monkeypatch.setattr(dlq, "dead_letter_queues", lambda _: queues)
    monkeypatch.setattr(dlq, "with_session", lambda _: (NAMING, states, ["a note"]))

    run_list([], as_json=as_json)

    out = capsys.readouterr().out
    if as_json:
        found = json.loads(out)["dead_letter_queues"]
        assert [(one["service"], one["source"], one["name"], one["exists"], one["visible"]) for one in found] == [
            ("shop", "a", "a-dlq", True, 1),
            ("shop", "longer", "longer-dlq", False, 0),
            ("shop", "b", "b-dlq", True, 0),
        ]
        assert "dead_letters" not in found[0]
        return
    assert out.splitlines()[1:] == [
        "  a-dlq       1 waiting, 0 in flight  (of a)",
        "  longer-dlq  does not exist: run smartpipe topology apply  (of longer)",
        "  b-dlq       0 waiting, 0 in flight  (of b)",
        "note: a note",
    ]


def test_services_that_only_publish_have_no_dead_letter_queues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dlq, "dead_letter_queues", lambda _: [])
    monkeypatch.setattr(dlq, "with_session", lambda _: (NAMING, [], []))

    run_list([], as_json=False)

    assert capsys.readouterr().out.splitlines()[1:] == ["no queues: these services only publish"]


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


@pytest.mark.parametrize(
    ("terminal", "as_json", "answer", "code"),
    [(True, False, True, None), (True, False, False, 1), (True, False, typer.Abort(), 1)],
)
def test_a_command_continues_only_if_the_user_agrees(
    terminal: bool, as_json: bool, answer: bool | Exception, code: int | None, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize(("terminal", "as_json"), [(False, False), (True, True), (False, True)])
def test_nobody_can_be_asked_without_a_terminal_or_beside_json(
    terminal: bool, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)

    confirming.confirm("Delete?", yes=True, as_json=as_json)
    with pytest.raises(ConfigError, match=r"needs a terminal and no --json: review the plan, then add --yes"):
        confirming.confirm("Delete?", yes=False, as_json=as_json)
