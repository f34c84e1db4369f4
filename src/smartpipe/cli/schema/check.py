"""``smartpipe schema check`` and ``accept``."""

from __future__ import annotations

import ast
import inspect
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import typer

from smartpipe.ci_formats import Place
from smartpipe.cli.export import check_choice
from smartpipe.cli.targets import load_events, services_among
from smartpipe.contracts.accepted import add_accepted, apply_accepted, check_exception, read_accepted
from smartpipe.contracts.check import Mode, Options, Usage, check, find_edited, find_removed, retire
from smartpipe.contracts.files import describe, find_merge_base, read_directory, read_git, refuse_empty
from smartpipe.contracts.findings import Parties
from smartpipe.contracts.reports import Report, render_github, render_json_report, render_sarif, render_text
from smartpipe.errors import ConfigError
from smartpipe.events import contract_of
from smartpipe.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from smartpipe.contracts.files import Described, Versions
    from smartpipe.contracts.findings import Finding
    from smartpipe.events import Event
    from smartpipe.service import Service

MAX_EXAMPLES = 10
"""An example takes up to a second, so a check with many faults does not search for all of them."""
GIT = "git:"


class _Checked(NamedTuple):
    events: Sequence[type[Event]]
    described: Mapping[type[Event], Described]
    baseline: Versions
    findings: list[Finding]
    types: frozenset[str]
    errors: Sequence[str]


def run_check(
    targets: Sequence[str], directory: Path, against: str | None, mode: str, form: str, *, transitive: bool
) -> None:
    """Compare, print the findings, and exit with 1 if one of them is an error.

    Raises:
        ConfigError: An option, a target or a file is wrong; or an event has no schema, after the others were compared.
    """
    check_choice("--mode", mode, get_args(Mode))
    check_choice("--format", form, list(_RENDERERS))
    checked = _check(targets, directory, against, Options(mode, transitive))  # type: ignore[arg-type] # checked
    unused = apply_accepted(checked.findings, [one for one in read_accepted(directory) if one.type in checked.types])
    whole = mode == "full" and transitive  # otherwise a comparison that was left out may need them
    notes = [
        f"This check does not need the exception {one.code} of {one.type}{f' {one.path}' if one.path else ''}. If no "
        "check of other services needs it, remove it from accepted.json."
        for one in (unused if whole else ())
    ]
    notes += _add_examples(checked.findings, checked.described, checked.baseline)
    types = {one.declaration.type for one in checked.described.values()}
    notes += [f"{type_} has no earlier version." for type_ in sorted(types - checked.baseline.keys())]
    versions = sum(len(checked.baseline.get(type_, ())) for type_ in types)
    places = {contract_of(one)[:2]: _locate(one) for one in checked.events}
    report = Report(checked.findings, (len(checked.described), versions), notes, places)
    typer.echo(_RENDERERS[form](report), nl=form in {"json", "sarif"})
    if checked.errors:
        raise ConfigError(checked.errors)
    if report.fails:
        raise typer.Exit(1)


def run_accept(
    targets: Sequence[str], directory: Path, against: str | None, reason: str, code: str, type_: str, path: str | None
) -> None:
    """Write an exception for a finding of the check, and print the file.

    Raises:
        ConfigError: The code does not exist, the check has no such finding, or a target or a file is wrong.
    """
    check_exception(code, reason)
    checked = _check(targets, directory, against, Options())
    found = [one for one in checked.findings if one.type == type_]
    accepted = [one for one in found if one.code == code and path in {None, one.path}]
    if not accepted:
        others = ", ".join(f"{one.code}{f' of {one.path}' if one.path else ''}" for one in found) or "none"
        raise ConfigError(
            f"the check has no finding {code} of {type_}{f' {path}' if path else ''}; those of {type_} are: {others}. "
            "Pass the same TARGETs, --against and --directory as to `smartpipe schema check`"
        )
    file = add_accepted(directory, accepted, reason, path)
    typer.echo(f"Accepted {code} of {type_}{f' {path}' if path else ''} in {file}. Commit the file.")


def _check(targets: Sequence[str], directory: Path, against: str | None, options: Options) -> _Checked:
    events = load_events(targets)
    here = read_directory(directory) if against is not None and directory.is_dir() else {}
    baseline = retire(read_baseline(directory, against), here)
    described: dict[type[Event], Described] = {}
    errors: list[str] = []
    for event in events:
        try:
            described[event] = describe(event)
        except ConfigError as error:
            errors += error.problems
    findings = check(described.values(), baseline, options, _find_usage(services_among(targets)))
    types = {one.declaration.type for one in described.values()}
    gone = _find_gone_types(baseline, here, directory, against) - types
    if against is not None and (directory.is_dir() or against.startswith(GIT)):
        findings += find_removed(baseline, here, sorted(types | gone))
        changed = {(one.type, one.version) for one in findings if one.code == "SC302"}
        edited = find_edited(baseline, here, sorted(types))
        findings += [one for one in edited if (one.type, one.version) not in changed]
    return _Checked(events, described, baseline, findings, frozenset(types | gone), errors)


def read_baseline(directory: Path, against: str | None) -> Versions:
    """Return the versions that ``--against`` names.

    Raises:
        ConfigError: They do not exist, or a file is wrong.
    """
    if against is not None and against.startswith(GIT):
        return read_git(against.removeprefix(GIT), directory)
    place = directory if against is None else Path(against)
    refuse_empty(place)
    return read_directory(place)


def _find_gone_types(baseline: Versions, here: Versions, directory: Path, against: str | None) -> set[str]:
    """Return the types that this branch has removed with all of their files, or has renamed.

    No TARGET declares them any more. A type that the other branch has added since is not gone.
    """
    gone = baseline.keys() - here.keys()
    if not gone or against is None or not against.startswith(GIT):
        return set()
    base = find_merge_base(against.removeprefix(GIT), directory)
    return gone & read_git(base, directory).keys()


def _find_usage(services: Iterable[Service]) -> Mapping[str, Usage]:
    producers: dict[str, set[str]] = {}
    consumers: dict[str, set[str]] = {}
    majors: dict[str, dict[str, frozenset[int]]] = {}
    for service in services:
        for contract in service.published:
            producers.setdefault(contract.type, set()).add(service.name)
        for binding in service.bindings:
            for contract in binding.contracts:  # those that upcasters read, too
                consumers.setdefault(contract.type, set()).add(service.name)
                known = majors.setdefault(contract.type, {})
                known[service.name] = known.get(service.name, frozenset()) | {contract.major}
    return {
        type_: Usage(
            Parties(tuple(sorted(producers.get(type_, ()))), tuple(sorted(consumers.get(type_, ())))),
            majors.get(type_, {}),
        )
        for type_ in producers.keys() | consumers.keys()
    }


def _add_examples(
    findings: Iterable[Finding], described: Mapping[type[Event], Described], baseline: Versions
) -> list[str]:
    """Add an example to each finding that has breaks; return sentences about those without one."""
    with_breaks = [finding for finding in findings if finding.breaks]
    if not with_breaks:
        return []
    try:
        from smartpipe.contracts.examples import find_example
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in {"hypothesis", "jsonschema"}:
            raise
        return [f"Install smartpipe[contracts] to see a message that each change would break: {name} is missing."]
    classes = {(one.declaration.type, one.declaration.version): (event, one) for event, one in described.items()}
    for finding in with_breaks[:MAX_EXAMPLES]:
        event, new = classes[finding.type, finding.version]
        older = {one.declaration.version: one for one in baseline[finding.type]}
        finding.example = find_example(finding, event, new, older)
    left = len(with_breaks) - MAX_EXAMPLES
    return [f"{left} more findings are shown without an example."] if left > 0 else []


def _locate(event: type[Event]) -> Place:
    """Return the file and line of a class."""
    try:
        file = Path(inspect.getsourcefile(event) or "")
    except TypeError:  # of a module without a file
        return Place(event.__module__, 1)
    line = _find_classes(file).get(event.__name__, 1)
    return Place((file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file).as_posix(), line)


@lru_cache
def _find_classes(file: Path) -> dict[str, int]:
    """Return the line of each class in a file by name. ``inspect`` would parse the file again for each one."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    return {node.name: node.lineno for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


_RENDERERS: dict[str, Callable[[Report], str]] = {
    "text": render_text,
    "json": render_json_report,
    "github": render_github,
    "sarif": lambda report: render_sarif(report, __version__),
}
