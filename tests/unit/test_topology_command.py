"""The commands `smartpipe topology plan`, `apply` and `destroy`. AWS is not asked."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from smartpipe import ConfigError
from smartpipe.cli import topology
from smartpipe.cli.topology import run_apply, run_destroy, run_plan
from smartpipe.errors import SmartpipeError, TopologyError
from smartpipe.names import Naming
from smartpipe.topology.changes import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")
HEADING = "account 123456789012, eu-west-1, prefix staging-, application smartpipe"
CREATED = Change("create", "queue", ("arn:aws:sqs:eu-west-1:1:new",), {}, {})
UPDATED = Change("update", "topic", ("arn:aws:sns:eu-west-1:1:old",), {"a": "2"}, {"a": "1"})
DELETED = Change("delete", "queue", ("arn:aws:sqs:eu-west-1:1:gone",), {}, {}, "orphaned")
SAME = Change("unchanged", "queue", ("arn:aws:sqs:eu-west-1:1:same",), {}, {})
THEIRS = Change("external", "topic", ("arn:aws:sns:eu-west-1:1:theirs",), {}, {}, "of others")
NEW_LINE, OLD_LINE, SAME_LINE = "  + queue        new", "  ~ topic        old", "  = queue        same"
DIFFERENCE = "      a: 1 → 2"
COUNT = "1 to create, 1 to update, 0 to delete; 1 unchanged"


class Deployed:
    """A deployed topology whose plan has some changes, and a record of the calls."""

    def __init__(self) -> None:
        self.changes = [CREATED, UPDATED, SAME]
        self.deletions = [DELETED, THEIRS]
        self.happened: list[Any] = []
        self.knows_orphans = True
        self.full: list[str] = []
        self.compare_error: BaseException | None = None
        self.apply_error: BaseException | None = None
        self.asked: list[str] = []
        self.agrees = True

    async def compare(self, services: Any, **options: Any) -> Any:
        self.happened.append(("compare", services, options))
        if self.compare_error is not None:
            raise self.compare_error
        return SimpleNamespace(
            naming=NAMING,
            actual="actual",
            changes=self.changes,
            pending=[change for change in self.changes if change.pending],
            notes=["a warning", "not read"],
            not_read=["not read"],
            knows_orphans=self.knows_orphans,
            plan_destroy=self.plan_destroy,
        )

    def plan_destroy(self, **options: Any) -> list[Change]:
        self.happened.append(("plan destroy", options))
        return self.deletions

    async def apply(self, changes: Sequence[Change], on_change: Any) -> None:
        for number, change in enumerate(changes):
            if number == 1 and self.apply_error is not None:
                raise self.apply_error
            self.happened.append(("apply", change.name))
            on_change(change)

    def describe_full_queues(self, changes: Sequence[Change], actual: str) -> list[str]:
        assert (changes, actual) == (self.deletions, "actual")
        return self.full

    def confirm(self, question: str, *, yes: bool, as_json: bool) -> None:
        if yes:
            return
        self.asked.append(question)
        if as_json or not self.agrees:
            raise typer.Exit(9)


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Deployed:
    deployed = Deployed()

    class Session:
        def __init__(self, _: object) -> None:
            deployed.happened.append("open")

        async def aclose(self) -> None:
            deployed.happened.append("close")

    monkeypatch.setattr(topology, "AwsSession", Session)
    monkeypatch.setattr(topology, "Provisioner", lambda _: deployed)
    monkeypatch.setattr(topology, "load_services", lambda targets: [*targets])
    monkeypatch.setattr(topology, "confirm", deployed.confirm)
    monkeypatch.setattr(topology, "describe_full_queues", deployed.describe_full_queues)
    monkeypatch.delenv("SMARTPIPE_APPLICATION", raising=False)
    return deployed


def plan(*, every: bool = False, as_json: bool = False) -> int:
    with pytest.raises(typer.Exit) as ended:
        run_plan(["a:b"], every=every, as_json=as_json)
    return ended.value.exit_code


@pytest.mark.parametrize("every", [False, True])
def test_a_plan_lists_the_changes_and_exits_with_1(
    deployed: Deployed, every: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(every=every) == 1

    same = [SAME_LINE] if every else []
    assert capsys.readouterr().out.splitlines() == [
        *(HEADING, NEW_LINE, OLD_LINE, DIFFERENCE, *same),
        *(COUNT, "note: a warning", "note: not read"),
    ]
    assert deployed.happened == ["open", ("compare", ["a:b"], {"ignore_errors": False, "destroying": False}), "close"]


def test_a_plan_without_changes_exits_with_0(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.changes = [SAME]

    assert plan() == 0

    assert capsys.readouterr().out.splitlines()[1] == "nothing to change; 1 unchanged"


def test_a_plan_as_json_has_every_resource(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(as_json=True) == 1

    text = capsys.readouterr().out
    found = json.loads(text)
    assert text == json.dumps(found, indent=2) + "\n"
    assert [change["action"] for change in found["changes"]] == ["create", "update", "unchanged"]
    assert (found["prefix"], found["notes"]) == ("staging-", ["a warning", "not read"])
    assert "kept" not in found
    assert deployed.happened[-1] == "close"


def test_a_plan_that_is_not_possible_exits_with_2_because_1_means_changes(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.compare_error = TopologyError(["first", "second"])
    with pytest.raises(ConfigError) as raised:
        run_plan([], every=False, as_json=False)
    assert raised.value.problems == ("first", "second")
    assert deployed.happened[-1] == "close"

    deployed.compare_error = ValueError("a fault")
    assert plan() == 2
    assert capsys.readouterr().err.endswith("ValueError: a fault\n")


def test_misspelt_settings_are_printed_beside_the_plan(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFX", "x")

    plan(as_json=True)

    assert deployed.happened
    assert capsys.readouterr().err == (
        "smartpipe: SMARTPIPE_PREFX is not a setting of smartpipe and is ignored; did you mean SMARTPIPE_PREFIX?\n"
    )


def test_apply_lists_the_changes_asks_and_then_counts_them_while_it_makes_them(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    run_apply(["a:b"], yes=False, as_json=False)

    assert deployed.asked == ["Make these changes?"]
    assert capsys.readouterr().out.splitlines() == [
        *(HEADING, NEW_LINE, OLD_LINE, DIFFERENCE, COUNT, "note: a warning", "note: not read"),
        *("  [1/2] create queue new", "  [2/2] update topic old", "2 changes made"),
    ]


class Terminal:
    """Standard output that is a terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_on_a_terminal_the_changes_after_a_question_are_one_line(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", Terminal(sys.stdout))
    monkeypatch.setenv("NO_COLOR", "1")

    run_apply(["a:b"], yes=False, as_json=False)

    assert deployed.asked
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "",
        "  [1/2] create queue new",
        "  [2/2] update topic old",
        "2 changes made",
    ]


def test_an_apply_that_the_user_declines_changes_nothing(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.agrees = False

    with pytest.raises(typer.Exit) as ended:
        run_apply(["a:b"], yes=False, as_json=False)

    assert ended.value.exit_code == 9
    assert "made" not in capsys.readouterr().out
    assert [one for one in deployed.happened if one[0] == "apply"] == []


def test_with_yes_each_change_is_printed_when_it_is_made(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.changes = [CREATED, UPDATED, DELETED, SAME]

    run_apply(["a:b"], yes=True, as_json=False)

    assert deployed.asked == []
    assert capsys.readouterr().out.splitlines() == [
        HEADING,
        "1 to create, 1 to update, 1 to delete; 1 unchanged",
        *("note: a warning", "note: not read"),
        "  [1/3] create queue new",
        *("  [2/3] update topic old", DIFFERENCE),
        "  [3/3] delete queue gone  (orphaned)",
        "3 changes made",
    ]


def test_the_numbers_of_ten_changes_have_one_width(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.changes = [CREATED] * 10

    run_apply(["a:b"], yes=True, as_json=False)

    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "  [ 1/10] create queue new"
    assert lines[13] == "  [10/10] create queue new"


def test_an_apply_as_json_prints_the_changes_that_were_made(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    run_apply(["a:b"], yes=True, as_json=True)

    found = json.loads(capsys.readouterr().out)
    assert [change["name"] for change in found["changes"]] == ["new", "old"]
    assert "kept" not in found

    with pytest.raises(typer.Exit):
        run_apply(["a:b"], yes=False, as_json=True)
    assert capsys.readouterr().out == ""
    assert deployed.asked == ["Make these changes?"]


def test_without_changes_apply_asks_nothing_and_makes_none(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.changes = [SAME]

    run_apply(["a:b"], yes=False, as_json=False)

    assert deployed.asked == []
    assert deployed.happened.count("open") == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        *("nothing to change; 1 unchanged", "note: a warning", "note: not read"),
    ]


def test_one_change_is_in_the_singular(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.changes = [CREATED]

    run_apply(["a:b"], yes=True, as_json=False)

    assert capsys.readouterr().out.splitlines()[-1] == "1 change made"


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_apply_reports_the_changes_that_were_made(
    deployed: Deployed, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.apply_error = KeyboardInterrupt()

    with pytest.raises(SmartpipeError) as raised:
        run_apply(["a:b"], yes=True, as_json=as_json)

    assert str(raised.value) == ("interrupted after 1 of 2 changes: run the same command again to make the others")
    out = capsys.readouterr().out
    assert "made" not in out
    if as_json:
        assert [change["name"] for change in json.loads(out)["changes"]] == ["new"]


def test_a_failed_apply_prints_its_json_and_raises_the_error(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.apply_error = SmartpipeError("refused")

    with pytest.raises(SmartpipeError, match="refused"):
        run_apply(["a:b"], yes=True, as_json=True)

    assert [change["name"] for change in json.loads(capsys.readouterr().out)["changes"]] == ["new"]
    assert deployed.happened[-1] == "close"


def destroy(**options: Any) -> None:
    run_destroy(["a:b"], **{"orphaned": False, "even_if_not_empty": False, "yes": False, "as_json": False, **options})


def test_destroy_lists_the_deletions_and_asks(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    destroy()

    assert deployed.happened[1] == ("compare", ["a:b"], {"ignore_errors": True, "destroying": True})
    assert ("plan destroy", {"orphaned": False, "even_if_not_empty": False}) in deployed.happened
    assert deployed.asked == ["Delete these?"]
    assert capsys.readouterr().out.splitlines() == [
        HEADING,
        "  - queue        gone  (delete: orphaned)",
        "  ? topic        theirs  (kept: of others)",
        "1 to delete; 1 kept",
        "note: not read",
        "  [1/1] delete queue gone",
        "1 change made",
    ]


def test_with_yes_destroy_prints_each_deletion_when_it_is_made(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    destroy(yes=True)

    assert deployed.asked == []
    assert capsys.readouterr().out.splitlines() == [
        HEADING,
        "  ? topic        theirs  (kept: of others)",
        "1 to delete; 1 kept",
        "note: not read",
        "  [1/1] delete queue gone  (orphaned)",
        "1 change made",
    ]


def test_a_destroy_as_json_prints_the_deleted_and_the_kept(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    destroy(yes=True, as_json=True)

    found = json.loads(capsys.readouterr().out)
    assert [change["name"] for change in found["changes"]] == ["gone"]
    assert [change["name"] for change in found["kept"]] == ["theirs"]
    assert deployed.happened[-2:] == [("apply", "gone"), "close"]


def test_without_deletions_destroy_asks_nothing(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.deletions = [THEIRS]

    destroy()

    assert deployed.asked == []
    assert capsys.readouterr().out.splitlines()[2:] == ["nothing to delete; 1 kept", "note: not read"]


@pytest.mark.parametrize("yes", [False, True])
def test_queues_that_hold_messages_are_listed_and_nothing_is_deleted(
    deployed: Deployed, yes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.full = ["queue gone holds 3 messages"]

    with pytest.raises(SmartpipeError) as raised:
        destroy(yes=yes)

    assert str(raised.value).splitlines() == [
        "queue gone holds 3 messages",
        "nothing is deleted: handle or move the messages, or add --even-if-not-empty to lose them",
    ]
    assert "  - queue        gone  (delete: orphaned)" in capsys.readouterr().out.splitlines()
    assert deployed.asked == []
    assert deployed.happened.count("open") == 1


def test_queues_that_hold_messages_are_deleted_on_request(deployed: Deployed) -> None:
    deployed.full = ["queue gone holds 3 messages"]

    destroy(yes=True, even_if_not_empty=True)

    assert ("plan destroy", {"orphaned": False, "even_if_not_empty": True}) in deployed.happened
    assert ("apply", "gone") in deployed.happened


def test_orphans_need_the_name_of_an_application(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--orphaned searches by the application's name: set SMARTPIPE_APPLICATION"):
        destroy(orphaned=True)
    assert deployed.happened == []

    monkeypatch.setenv("SMARTPIPE_APPLICATION", "shop")
    destroy(orphaned=True, yes=True)
    assert ("plan destroy", {"orphaned": True, "even_if_not_empty": False}) in deployed.happened


@pytest.mark.parametrize("orphaned", [False, True])
def test_orphans_that_aws_did_not_list_prevent_a_destroy_of_orphans_only(
    deployed: Deployed, orphaned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMARTPIPE_APPLICATION", "shop")
    deployed.knows_orphans = False
    message = ""
    try:
        destroy(orphaned=orphaned, yes=True)
    except SmartpipeError as error:
        message = str(error)

    listed = "nothing is deleted: AWS did not list the resources that no TARGET declares; see the note"
    assert message == (listed if orphaned else "")
    assert "note: not read" in capsys.readouterr().out
    assert (("apply", "gone") in deployed.happened) != orphaned
