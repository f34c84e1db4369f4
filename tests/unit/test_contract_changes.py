"""Each kind of change: the verdict of ``schema check``, and what consumers really do with the messages."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from pydantic import ValidationError

from smartpipe.contracts.check import Options, check
from smartpipe.contracts.compare import Document
from smartpipe.contracts.examples import find_example
from smartpipe.contracts.files import describe
from smartpipe.contracts.strategies import Hints, values_of
from tests.support.contract_changes import CHANGES, TYPE, Change, make_event

if TYPE_CHECKING:
    from smartpipe.contracts.files import Described
    from smartpipe.contracts.findings import Direction, Finding
    from smartpipe.events import Event


class Judged(NamedTuple):
    """The verdict about a change, and whether consumers really refuse events in each direction."""

    findings: list[Finding]
    event: type[Event]
    old: Described
    new: Described
    backward: bool
    forward: bool


CHANGES_BY_NAME = {change.name: change for change in CHANGES}
PAGE = Path(__file__).parents[2] / "docs" / "contracts.md"
BEGIN, END = "<!-- The test test_contract_changes writes this table. -->\n", "<!-- The end of the table. -->\n"
LENIENT = "read by Pydantic"
SETTINGS = settings(
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=60,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@lru_cache
def judge(name: str) -> Judged:
    change = CHANGES_BY_NAME[name]
    before = make_event(change.before)
    old = describe(before)
    after = make_event(change.after, "1.1")
    new = describe(after)
    findings = check([new], {TYPE: [old]}, Options(), {})
    return Judged(findings, after, old, new, is_refused(before, after), is_refused(after, before))


def breaks(findings: list[Finding], direction: Direction) -> bool:
    return any(finding.fails and direction in finding.directions for finding in findings)


def is_refused(writer: type[Event], reader: type[Event]) -> bool:
    """Whether the class *reader* refuses any message of the class *writer*."""

    def refuses(data: object) -> bool:
        try:
            sent = writer.model_validate_json(json.dumps(data)).model_dump_json(by_alias=True)
        except ValidationError:
            return False  # the writer would not send it
        try:
            reader.model_validate_json(sent)
        except ValidationError:
            return True
        return False

    schema, hints = describe(writer).writer, Hints([describe(reader).reader])
    try:
        find(values_of(Document.of_data(schema), hints), refuses, settings=SETTINGS)
    except NoSuchExample:
        return False
    return True


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_the_verdict_is_what_really_happens(change: Change) -> None:
    judged = judge(change.name)

    assert breaks(judged.findings, "forward") == (judged.forward or change.lenient == "forward")
    assert breaks(judged.findings, "backward") == (judged.backward or change.lenient == "backward")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_each_break_comes_with_a_message_that_breaks(change: Change) -> None:
    judged = judge(change.name)

    for finding in judged.findings:
        if finding.fails:
            example = find_example(finding, judged.event, judged.new, {"1.0": judged.old})
            assert example is not None
            assert example.proof == ("schema" if finding.directions == {change.lenient} else "class")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_class_is_compatible_with_itself(change: Change) -> None:
    for fields in (change.before, change.after):
        event = describe(make_event(fields))
        assert check([event], {TYPE: [event]}, Options(), {}) == []


def render_table() -> str:
    words = {True: "allowed", False: "**refused**"}
    really = {False: "read", True: "**refused**"}
    head = ("change", "Confluent, backward", "Confluent, forward", "smartpipe", "older events", "older consumers")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    for change in CHANGES:
        judged = judge(change.name)
        codes = ", ".join(dict.fromkeys(one.code for one in judged.findings))
        fails = any(one.fails for one in judged.findings)
        verdict = f"**{codes}**" if fails else f"allowed, {codes}" if codes else "allowed"
        read = [LENIENT if change.lenient == "backward" else really[judged.backward]]
        read.append(LENIENT if change.lenient == "forward" else really[judged.forward])
        cells = [change.name.replace("|", "\\|"), words[change.backward], words[change.forward], verdict, *read]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_table_in_the_docs_is_up_to_date() -> None:
    """Run `python -m tests.unit.test_contract_changes` when this fails."""
    text = PAGE.read_text(encoding="utf-8")

    assert text.partition(BEGIN)[2].partition(END)[0] == render_table()


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    start, _, rest = page.partition(BEGIN)
    PAGE.write_text(start + BEGIN + render_table() + END + rest.partition(END)[2], encoding="utf-8")
