"""The text and the JSON of a plan."""

from __future__ import annotations

import json
import os
import shutil
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
"""The mark at the beginning of each line, and its colour on a terminal."""


class Line(NamedTuple):
    """One line of text, with its colour on a terminal."""

    text: str
    colour: str | None = None


def heading(naming: Naming) -> str:
    """Return the line that names account, region, prefix and application, so that you see where changes are made."""
    prefix = f"prefix {naming.prefix}" if naming.prefix else "no prefix"
    return f"account {naming.account_id}, {naming.region}, {prefix}, application {naming.application}"


def describe_changes(
    changes: Sequence[Change], *, every: bool = False, deleting: bool = False, without_pending: bool = False
) -> Iterator[Line]:
    """Yield the lines of a plan, and at the end the number of changes of each kind.

    Args:
        every: Include unchanged resources.
        deleting: The changes are those of a ``destroy``, which calls the resources that it leaves alone kept.
        without_pending: Leave out the changes that are still to be made; their number is included.
    """
    for change in changes:
        if (change.action == "unchanged" and not every) or (without_pending and change.pending):
            continue
        mark, colour = MARKS[change.action]
        action = "kept" if deleting and change.action == "external" else change.action
        reason = f"  ({action}: {change.reason})" if change.reason else ""
        yield Line(f"  {mark} {change.kind:<12} {change.name}{reason}", colour)
        yield from describe_differences(change)
    counts = {action: sum(change.action == action for change in changes) for action in MARKS}
    pending = f"{counts['create']} to create, {counts['update']} to update, {counts['delete']} to delete"
    rest = ", ".join(f"{counts[action]} {action}" for action in ("unchanged", "external", "orphaned") if counts[action])
    if deleting:
        pending = f"{counts['delete']} to delete" if counts["delete"] else "nothing to delete"
        rest = f"{counts['external']} kept" if counts["external"] else ""
    elif not any(change.pending for change in changes):
        pending = "nothing to change"
    yield Line(f"{pending}{'; ' + rest if rest else ''}")
    if counts["orphaned"]:
        yield Line(
            "orphaned: check that you named every TARGET of the application, and that no other application has its "
            "SMARTPIPE_APPLICATION"
        )


def describe_differences(change: Change) -> Iterator[Line]:
    """Yield the old and the new values of an update."""
    if change.action == "update":
        for difference in change.differences:
            yield Line(f"      {difference}", MARKS[change.action][1])


class ProgressLine:
    """Shows the progress of changes in one line of the terminal. Without a terminal, it prints a line for each."""

    def __init__(self) -> None:
        self._width = 0
        self._terminal = sys.stdout.isatty()

    def show(self, text: str) -> None:
        """Replace the line by *text*."""
        if not self._terminal:
            print_line(text)
            return
        line = escape_text(text)
        columns = shutil.get_terminal_size().columns - 1  # a longer line could not be replaced
        line = line if len(line) <= columns else f"{line[: columns - 1]}…"
        typer.echo(f"\r{line:<{self._width}}", nl=False)
        self._width = len(line)

    def end(self) -> None:
        """Keep the last text, and continue on the next line."""
        if self._width:
            typer.echo()


def print_line(line: Line | str, *, err: bool = False) -> None:
    """Print one line, in colour on a terminal, with terminal control characters and line breaks escaped."""
    text, colour = line if isinstance(line, Line) else (line, None)
    coloured = colour is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    typer.echo(typer.style(escape_text(text), fg=colour) if coloured else escape_text(text), err=err)


def format_json(context: PlanContext, changes: Sequence[Change], kept: Sequence[Change] | None = None) -> str:
    """Return *changes* as JSON with account, region and prefix, and after a destroy with the *kept* resources."""
    fields = {
        **context.naming._asdict(),
        "changes": [change.as_json() for change in changes],
        **({} if kept is None else {"kept": [change.as_json() for change in kept]}),
        "notes": context.notes,
    }
    return escape_json(json.dumps(fields, indent=2))
