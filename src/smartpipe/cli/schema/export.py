"""``smartpipe schema``: writes JSON Schema files of events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from smartpipe.cli.targets import load_events
from smartpipe.contracts.files import export
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def run_export(targets: Sequence[str], directory: Path, *, as_json: bool) -> None:
    """Write the files, and print which of them have changed.

    Raises:
        ConfigError: Some events have no schema. All others have been written.
    """
    files, errors = export(load_events(targets), directory)
    if as_json:
        typer.echo(json.dumps([{"path": path.as_posix(), "changed": changed} for path, changed in files.items()]))
    else:
        for path, changed in files.items():
            typer.echo(f"  {'written' if changed else 'unchanged'}  {path.as_posix()}")
    if errors:
        raise ConfigError(errors)
