"""``smartpipe schema diff``: how events differ from their last version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from smartpipe.cli.schema.check import read_baseline
from smartpipe.cli.targets import load_events
from smartpipe.contracts.differences import find_differences
from smartpipe.contracts.files import describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def run_diff(targets: Sequence[str], directory: Path, against: str | None) -> None:
    """Print the differences of each event that has changed.

    Raises:
        ConfigError: A target or a file is wrong, or an event has no schema.
    """
    events = load_events(targets)
    baseline = read_baseline(directory, against)
    for event in events:
        new = describe(event)
        declaration = new.declaration
        older = [one for one in baseline.get(declaration.type, ()) if one.declaration.number <= declaration.number]
        if not older:
            typer.echo(f"{declaration.type} {declaration.version} is new")
            continue
        differences = find_differences(older[-1], new)
        before = older[-1].declaration.version
        if not differences:
            typer.echo(f"{declaration.type} {declaration.version} does not differ from {before}")
            continue
        typer.echo(f"{declaration.type} {before} → {declaration.version}")
        width = max(len(one.name) for one in differences)
        for one in differences:
            typer.echo(f"  {one.sign} {one.name:{width}}  {one.text}")
