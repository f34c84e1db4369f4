"""What `smartpipe topology show` and `smartpipe dlq list` print about deployed queues."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Queue, Service
from smartpipe.cli import dlq, show
from smartpipe.cli.dlq import DeadLetterQueue, run_list
from smartpipe.cli.show import describe_contents, run_show
from smartpipe.errors import TransportError
from smartpipe.names import Naming
from smartpipe.topology.derive import derive
from smartpipe.topology.resources import Topology
from smartpipe.topology.status import Branch, QueueState, TopicState
from tests.support import exported

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")


def queue(name: str = "mailer", **fields: Any) -> QueueState:
    return QueueState(name, f"arn:{name}", **{"exists": True, **fields})


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


@pytest.mark.parametrize(
    ("state", "red"),
    [
        (queue(dead_letters=queue("dead", visible=1)), True),
        (queue(dead_letters=queue("dead", in_flight=1)), True),
        (queue(dead_letters=queue("dead", visible=2, in_flight=2)), True),
        (queue(dead_letters=queue("dead")), False),
        (queue(visible=1, in_flight=2), False),
    ],
)
def test_only_messages_in_a_dead_letter_queue_are_red(
    state: QueueState, red: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = [TopicState("users", "arn:users", True, (Branch(True, None, True, state),))]
    monkeypatch.setattr(show, "load_services", lambda _: [])
    monkeypatch.setattr(show, "with_session", lambda _: (NAMING, tree, []))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")

    run_show([], as_json=False)

    assert ("\x1b[31m" in capsys.readouterr().out) == red


def test_a_tree_is_not_wrapped_and_has_no_markup_and_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "[bold]" + "x" * 200
    tree = [TopicState(long, "arn:users", True, (Branch(True, {"a": ["\x1b"]}, True, queue(long)),))]
    monkeypatch.setattr(show, "load_services", lambda _: [])
    monkeypatch.setattr(show, "with_session", lambda _: (NAMING._replace(prefix="[red]"), tree, [f"{long} 12 \x1b"]))
    monkeypatch.setenv("COLUMNS", "40")

    run_show([], as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "account 123456789012, eu-west-1, prefix [red], application smartpipe",
        f"topic {long}",
        "└── subscription a in \\x1b",
        f"    └── queue {long}  0 waiting, 0 in flight",
        f"note: {long} 12 \\x1b",
    ]

    run_show([], as_json=True)
    text = capsys.readouterr().out
    assert text == json.dumps(json.loads(text), indent=2) + "\n"


class Session:
    """A session that is only passed on."""

    def __init__(self, naming: Naming = NAMING) -> None:
        self.addresses = self
        self._naming = naming

    async def naming(self) -> Naming:
        return self._naming


async def fail(*_: object) -> dict[str, float]:
    raise TransportError("AccessDenied", "you may not", retryable=False)


async def find(_: object, names: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(names, 60.0)


NOTE = "the age of the oldest messages is not known: you may not"


@pytest.mark.parametrize(("ages", "notes"), [(find, []), (fail, [NOTE])])
def test_the_topology_is_read_with_its_errors_and_with_the_ages_of_messages(
    ages: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    desired = derive([exported.archive()], NAMING)

    class Provisioner:
        def __init__(self, _: object) -> None: ...

        async def compare(self, services: list[str], *, ignore_errors: bool) -> Any:
            assert (services, ignore_errors) == (["a:b"], True)
            return SimpleNamespace(desired=desired, actual=desired, naming=NAMING)

    monkeypatch.setattr(show, "load_services", lambda targets: targets)
    monkeypatch.setattr(show, "with_session", lambda work: asyncio.run(work(Session())))
    monkeypatch.setattr(show, "Provisioner", Provisioner)
    monkeypatch.setattr(show, "oldest_ages", ages)

    run_show(["a:b"], as_json=True)

    found = json.loads(capsys.readouterr().out)
    queues = [branch["queue"] for topic in found["topics"] for branch in topic["branches"]]
    assert {one["oldest_age_seconds"] for one in queues} == {None if notes else 60.0}
    assert found["notes"] == notes


@pytest.mark.parametrize(("ages", "notes"), [(find, []), (fail, [NOTE])])
def test_dead_letter_queues_are_read_with_the_ages_of_messages(
    ages: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reader:
        def __init__(self, _: object) -> None: ...

        async def read(self, wanted: Topology, *, tags: bool) -> Topology:
            assert not tags
            first, *_ = wanted.queues
            return Topology({"queue": {first: {"ApproximateNumberOfMessages": "3"}}})

    queues = [DeadLetterQueue(Service("shop"), Queue(name), f"{name}-dlq", name) for name in ("a", "b")]
    monkeypatch.setattr(dlq, "dead_letter_queues", lambda _: queues)
    monkeypatch.setattr(dlq, "with_session", lambda work: asyncio.run(work(Session())))
    monkeypatch.setattr(dlq, "TopologyReader", Reader)
    monkeypatch.setattr(show, "oldest_ages", ages)

    run_list([], as_json=True)

    text = capsys.readouterr().out
    found = json.loads(text)
    assert text == json.dumps(found, indent=2) + "\n"
    assert [(one["exists"], one["oldest_age_seconds"]) for one in found["dead_letter_queues"]] == [
        (True, None if notes else 60.0),
        (False, None),
    ]
    assert found["notes"] == notes


@pytest.mark.parametrize(
    ("state", "red"), [({"visible": 1}, True), ({"in_flight": 1}, True), ({"exists": False}, True), ({}, False)]
)
def test_a_dead_letter_queue_is_red_if_it_holds_messages_or_does_not_exist(
    state: dict[str, Any], red: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[Any] = []
    monkeypatch.setattr(
        dlq, "dead_letter_queues", lambda _: [DeadLetterQueue(Service("shop"), Queue("a"), "a-dlq", "a")]
    )
    monkeypatch.setattr(dlq, "with_session", lambda _: (NAMING, [queue("a-dlq", **state)], []))
    monkeypatch.setattr(dlq, "print_line", printed.append)

    run_list([], as_json=False)

    assert printed[1].colour == ("red" if red else None)


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
