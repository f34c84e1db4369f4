"""``smartpipe schema fixtures``: writes example messages of events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import typer

from smartpipe.cli.targets import load_events
from smartpipe.contracts.files import FIXTURES, describe, read_directory, stem_of, write_text
from smartpipe.contracts.fixtures import read_fixture_file, render_fixtures
from smartpipe.errors import ConfigError
from smartpipe.events import contract_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from smartpipe.contracts.files import Described
    from smartpipe.events import Event

EXTRA = frozenset({"hypothesis", "jsonschema"})
"""The packages of the extra ``contracts``."""


class _File(NamedTuple):
    path: Path
    word: str
    messages: int


def run_fixtures(targets: Sequence[str], directory: Path, count: int, *, as_json: bool) -> None:
    """Write a file for each version that is in code or among the schema files, and print the files.

    The file of an older version stays as it is: its class has written the messages, and is gone. A retired version
    gets none.

    Raises:
        ConfigError: The extra ``contracts`` is not installed, a target or a file is wrong, or an event has no message
            that its class accepts. All other files have been written.
    """
    _require_extra()
    in_code = {contract_of(event)[:2]: event for event in load_events(targets)}
    committed = read_directory(directory) if directory.is_dir() else {}
    files: list[_File] = []
    notes: list[str] = []
    errors: list[str] = []
    versions: dict[tuple[str, str], tuple[Described | None, type[Event] | None]] = {
        (type_, one.declaration.version): (one, None)
        for type_ in {type_ for type_, _ in in_code}
        for one in committed.get(type_, ())
        if not one.declaration.retired
    }
    versions |= {(type_, version): (None, event) for (type_, version), event in in_code.items()}
    for described, event in (versions[key] for key in sorted(versions)):
        try:
            file = _write(described or describe(event), event, directory, count, notes)  # type: ignore[arg-type] # one is set
            files.append(file)
        except ConfigError as error:
            errors += error.problems
    _print(files, notes, as_json=as_json)
    if errors:
        raise ConfigError(errors)


def _write(described: Described, event: type[Event] | None, directory: Path, count: int, notes: list[str]) -> _File:
    from smartpipe.contracts.messages import find_wrong_messages, make_messages

    stem = directory / stem_of(described.declaration)
    path = stem.with_name(stem.name + FIXTURES)
    if event is None and path.exists():
        kept = read_fixture_file(path)
        if wrong := find_wrong_messages(described, kept):
            raise ConfigError([f"{path}: {one}; delete the file to have it written again" for one in wrong])
        return _File(path, "kept", len(kept))
    made = make_messages(described, event, count)
    if not made.fixtures:
        remedy = "give the field examples that its class accepts: Field(examples=[...])"
        raise ConfigError([f"{note}; {remedy}" for note in made.notes[:1]])
    notes += made.notes
    return _File(path, "written" if write_text(path, render_fixtures(made.fixtures)) else "unchanged", len(made[0]))


def _print(files: Sequence[_File], notes: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        entries = [
            {"path": one.path.as_posix(), "changed": one.word == "written", "messages": one.messages} for one in files
        ]
        typer.echo(json.dumps(entries))
    else:
        for one in files:
            plural = "" if one.messages == 1 else "s"
            typer.echo(f"  {one.word:9}  {one.path.as_posix()}  {one.messages} message{plural}")
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _require_extra() -> None:
    try:
        from smartpipe.contracts import messages
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA:
            raise
        raise ConfigError(f"example messages need {name}: pip install 'smartpipe[contracts]'") from None
    del messages
