"""A plan as people and as programs read it."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import typer

from smartpipe.escaping import escape_json, escape_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.names import Naming
    from smartpipe.topology.aws.provision import PlanContext
    from smartpipe.topology.changes import Action, Change

MARKS: dict[Action, tuple[str, str]] = {
    "create": ("+", "green"),
    "update": ("~", "yellow"),
    "delete": ("-", "red"),
    "unchanged": ("=", "white"),
    "external": ("?", "cyan"),
    "orphaned": ("!", "magenta"),
}
"""What stands before each line, and its colour on a terminal."""


class Line(NamedTuple):
    """One line of text, with its colour on a terminal."""

    text: str
    colour: str | None = None


def heading(naming: Naming) -> str:
    """Say where it is, so that nobody changes the wrong account."""
    prefix = f"prefix {naming.prefix}" if naming.prefix else "no prefix"
    return f"account {naming.account_id}, {naming.region}, {prefix}, application {naming.application}"


def in_words(changes: Sequence[Change], *, every: bool = False, deleting: bool = False) -> Iterator[Line]:
    """Yield the lines of a plan, or of what is to be deleted, and, last, its sums."""
    shown = [change for change in changes if every or change.action != "unchanged"]
    for change in shown:
        mark, colour = MARKS[change.action]
        action = "kept" if deleting and change.action == "external" else change.action
        why = f"  ({action}: {change.reason})" if change.reason else ""
        yield Line(f"  {mark} {change.kind:<12} {change.name}{why}", colour)
        if change.action == "update":
            for difference in change.differences:
                yield Line(f"      {difference}", colour)
    sums = {action: sum(change.action == action for change in changes) for action in MARKS}
    done = f"{sums['create']} to create, {sums['update']} to update, {sums['delete']} to delete"
    rest = ", ".join(f"{sums[action]} {action}" for action in ("unchanged", "external", "orphaned") if sums[action])
    if deleting:
        done = f"{sums['delete']} to delete" if sums["delete"] else "nothing to delete"
        rest = f"{sums['external']} kept" if sums["external"] else ""
    elif not any(change.pending for change in changes):
        done = "nothing to change"
    yield Line(f"{done}{'; ' + rest if rest else ''}")
    if sums["orphaned"]:
        yield Line("orphaned: is every TARGET of the application named, and is SMARTPIPE_APPLICATION its own?")


def tell(line: Line | str, *, err: bool = False) -> None:
    """Print one line, in colour on a terminal; what could command the terminal, or forge a line, is escaped."""
    text, colour = line if isinstance(line, Line) else (line, None)
    coloured = colour is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    typer.echo(typer.style(escape_text(text), fg=colour) if coloured else escape_text(text), err=err)


def as_json_text(survey: PlanContext, changes: Sequence[Change], kept: Sequence[Change] | None = None) -> str:
    """Return *changes* as JSON with account, region and prefix, and after a destroy with the *kept* resources."""
    fields = {
        **survey.naming._asdict(),
        "changes": [change.as_json() for change in changes],
        **({} if kept is None else {"kept": [change.as_json() for change in kept]}),
        "notes": survey.notes,
    }
    return escape_json(json.dumps(fields, indent=2))
