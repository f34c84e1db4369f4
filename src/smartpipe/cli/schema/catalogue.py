"""``smartpipe schema docs``: writes a catalogue of events."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from smartpipe.cli.export import check_choice, write_directory
from smartpipe.cli.targets import load_events, services_among
from smartpipe.contracts.catalogue import Consumer, Entry, make_pages
from smartpipe.contracts.files import FIXTURES, describe, read_directory, stem_of
from smartpipe.contracts.fixtures import read_fixture_file
from smartpipe.contracts.page import Form, render
from smartpipe.errors import ConfigError
from smartpipe.events import contract_of
from smartpipe.topology.derive import DEAD_LETTER_RETENTION_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from smartpipe.contracts.files import Described
    from smartpipe.contracts.fixtures import Fixture
    from smartpipe.events import Event
    from smartpipe.service import Service

EXAMPLES = ("full", "minimal")
"""The names of the fixtures that are shown, the preferred one first."""


def run_catalogue(targets: Sequence[str], directory: Path, output: Path, form: str) -> None:
    """Write the pages, and print which of them have changed.

    Raises:
        ConfigError: A target or a file is wrong. Or an event has no schema, and all other pages have been written.
    """
    check_choice("--format", form, get_args(Form))
    events = load_events(targets)
    services = services_among(targets)
    committed = read_directory(directory) if directory.is_dir() else {}
    current: dict[str, list[tuple[Described, type[Event]]]] = {}
    errors: list[str] = []
    for event in events:
        try:
            current.setdefault(contract_of(event).type, []).append((describe(event), event))
        except ConfigError as error:
            errors += error.problems
    entries = []
    for type_, classes in current.items():
        classes.sort(key=lambda one: one[0].declaration.number)
        described = [one for one, _ in classes]
        versions = {one.declaration.number: one for one in [*committed.get(type_, ()), *described]}
        ordered = [versions[number] for number in sorted(versions)]
        examples = _find_examples(classes, directory)
        consumers = _consumers(services, type_, [event for _, event in classes])
        entries.append(Entry(described, ordered, examples, _producers(services, type_), consumers))
    pages = (render(page, form) for page in make_pages(entries))  # type: ignore[arg-type] # checked
    write_directory(output, dict(pages))
    if errors:
        raise ConfigError(errors)


def _producers(services: Sequence[Service], type_: str) -> list[str]:
    return sorted({one.name for one in services if any(contract.type == type_ for contract in one.published)})


def _consumers(services: Sequence[Service], type_: str, classes: Sequence[type[Event]]) -> list[Consumer]:
    found = []
    for service in services:
        for binding in service.bindings:
            majors = sorted({one.major for one in binding.contracts if one.type == type_})
            handlers = [
                handler.name
                for handler in service.handlers_on(binding.queue.name)
                if any(event in classes for event in handler.events)
            ]
            if majors:
                found.append(
                    Consumer(
                        service.name,
                        binding.queue.name,
                        tuple(dict.fromkeys(handlers)),
                        tuple(majors),
                        binding.queue.retention_seconds,
                        binding.queue.dead_letter_name,
                        DEAD_LETTER_RETENTION_SECONDS,
                    )
                )
    return found


def _find_examples(classes: Sequence[tuple[Described, type[Event]]], directory: Path) -> Mapping[str, object]:
    """Return an example message for each version: a committed one or, with the extra ``contracts``, a new one."""
    found: dict[str, object] = {}
    for described, event in classes:
        stem = directory / stem_of(described.declaration)
        path = stem.with_name(stem.name + FIXTURES)
        fixtures = read_fixture_file(path) if path.exists() else list(_generate(described, event))
        by_name = {one.name: one for one in fixtures}
        names = [name for name in (*EXAMPLES, *by_name) if name in by_name]
        if names:
            found[described.declaration.version] = by_name[names[0]].message
    return found


def _generate(described: Described, event: type[Event]) -> Iterator[Fixture]:
    try:
        from smartpipe.contracts.messages import make_messages
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"hypothesis", "jsonschema"}:
            raise
        return
    yield from make_messages(described, event, 0).fixtures
