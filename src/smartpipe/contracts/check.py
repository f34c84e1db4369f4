"""Compares the contracts in code with those of earlier versions. Pure."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from smartpipe.contracts.compare import KEYWORDS, Document, find_breaks
from smartpipe.contracts.fields import list_defaults, summarize, walk_fields
from smartpipe.contracts.findings import Finding, Parties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from smartpipe.contracts.compare import Break
    from smartpipe.contracts.fields import Field
    from smartpipe.contracts.files import Declaration, Described, Versions
    from smartpipe.contracts.findings import Direction

Mode: TypeAlias = Literal["full", "forward", "backward"]
DIRECTIONS: Mapping[Mode, tuple[Direction, ...]] = {
    "full": ("forward", "backward"),
    "forward": ("forward",),
    "backward": ("backward",),
}
_CODES: Mapping[tuple[str, Direction], str] = {
    ("required", "forward"): "SC102",
    ("required", "backward"): "SC101",
    ("type", "forward"): "SC104",
    ("type", "backward"): "SC105",
}
_SAME_IN_BOTH = {"closed": "SC109", "limit": "SC106", "format": "SC107", "pattern": "SC202", "keyword": "SC202"}
_MISSING = ("SC101", "SC102")


class Options(NamedTuple):
    """How to compare.

    Args:
        transitive: Compare with every older version of the major version, and not only with the last one.
    """

    mode: Mode = "full"
    transitive: bool = True


class Usage(NamedTuple):
    """How services use a type.

    Args:
        majors: For each service with handlers, the major versions that they read, by classes or upcasters.
    """

    parties: Parties = Parties()
    majors: Mapping[str, frozenset[int]] = {}


def check(
    events: Iterable[Described], baseline: Versions, options: Options, usage: Mapping[str, Usage]
) -> list[Finding]:
    """Return the findings for *events*, ordered by type, version and field.

    Args:
        events: The contracts in code.
        baseline: The contracts to compare with.
        usage: How the checked services use each type; without targets that are services, nothing is known.
    """
    found: list[Finding] = []
    in_code: dict[str, list[Described]] = {}
    for event in events:
        in_code.setdefault(event.declaration.type, []).append(event)
    for type_, classes in in_code.items():
        versions = [one for one in baseline.get(type_, ()) if not one.declaration.retired]
        for event in classes:
            found += _check_sequence(event, baseline.get(type_, ()))
            new = _Version(event)
            older = [one for one in versions if one.declaration.number[0] == event.declaration.number[0]]
            for old in older if options.transitive else older[-1:]:
                _merge(found, _compare(new, _Version(old), options.mode))
        found += _check_majors(classes, versions, usage.get(type_, Usage()))
    for finding in found:
        finding.parties = usage.get(finding.type, Usage()).parties
    return sorted(found, key=lambda one: (one.type, one.version, one.path, one.code))


def retire(baseline: Versions, now: Versions) -> Versions:
    """Return *baseline* with each version marked as retired that is marked in *now*, such as on this branch."""
    retired = {
        (type_, one.declaration.version)
        for type_, versions in now.items()
        for one in versions
        if one.declaration.retired
    }
    return {
        type_: [
            one._replace(declaration=one.declaration.model_copy(update={"retired": True}))
            if (type_, one.declaration.version) in retired
            else one
            for one in versions
        ]
        for type_, versions in baseline.items()
    }


def find_removed(before: Versions, after: Versions, types: Iterable[str]) -> list[Finding]:
    """Return a finding for each version of *types* that is in *before*, not retired, and not in *after*."""
    return [
        Finding("SC304", type_, one.declaration.version, "", f"the files of version {one.declaration.version} are gone")
        for type_ in types
        for one in before.get(type_, ())
        if not one.declaration.retired
        and one.declaration.version not in {other.declaration.version for other in after.get(type_, ())}
    ]


def find_edited(before: Versions, after: Versions, types: Iterable[str]) -> list[Finding]:
    """Return a finding for each version of *types* whose files describe other messages in *after* than in *before*."""
    now = {(type_, one.declaration.version): one for type_, versions in after.items() for one in versions}
    return [
        Finding("SC302", type_, version, "", f"the files of version {version} describe other messages than before")
        for type_ in types
        for one in before.get(type_, ())
        if not one.declaration.retired
        and (type_, version := one.declaration.version) in now
        and not have_same_meaning(one, now[type_, version])
    ]


def have_same_meaning(one: Described, other: Described) -> bool:
    """Return whether two contracts describe the same messages. Titles, descriptions and examples do not count."""
    return _Version(one).has_meaning_of(_Version(other))


class _Version:
    """A version of an event, with both views of its data."""

    def __init__(self, described: Described) -> None:
        self.declaration = described.declaration
        self.reader, self.writer = Document.of_data(described.reader), Document.of_data(described.writer)

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The fields that consumers read, by path."""
        return walk_fields(self.reader)

    @cached_property
    def defaults(self) -> dict[str, list[str]]:
        """The defaults that consumers use, as JSON, by the path of their field."""
        return list_defaults(self.reader)

    @cached_property
    def written(self) -> dict[str, Field]:
        """The fields that producers write, by path."""
        return walk_fields(self.writer)

    @cached_property
    def _meaning(self) -> list[object]:
        return [_find_meaning(one, one.schema, {}) for one in (self.reader, self.writer)]

    def has_meaning_of(self, other: _Version) -> bool:
        return not _describe_moves(self.declaration, other.declaration) and self._meaning == other._meaning


def _compare(new: _Version, old: _Version, mode: Mode) -> Iterator[Finding]:
    version, before = new.declaration.version, old.declaration.version
    if new.has_meaning_of(old):
        return

    def make(code: str, path: str, message: str) -> Finding:
        return Finding(code, new.declaration.type, version, path, message, [before])

    if version == before:
        yield make("SC302", "", f"version {version} differs from its committed schema")
    moves = _describe_moves(new.declaration, old.declaration)
    if moves:
        yield make("SC301", "", f"since {before}: {'; '.join(moves)}")
    pair = _Pair(new, old)
    breaks = {direction: pair.find_breaks(direction) for direction in DIRECTIONS[mode]}
    yield from _join_renamed(list(_make_findings(pair, breaks, make)), pair, make)
    yield from _find_warnings(pair, make)


class _Pair(NamedTuple):
    new: _Version
    old: _Version

    def find_breaks(self, direction: Direction) -> list[Break]:
        """Return the breaks that the change has made. Because of serializers, a version may not fit itself."""
        found = find_breaks(*self.documents(direction))
        known = find_breaks(self.old.writer, self.old.reader) if found else []
        return [one for one in found if one not in known]

    def documents(self, direction: Direction) -> tuple[Document, Document]:
        """Return the writer's and the reader's schema of a direction."""
        return (self.new.writer, self.old.reader) if direction == "forward" else (self.old.writer, self.new.reader)


_Make: TypeAlias = "Callable[[str, str, str], Finding]"


def _make_findings(pair: _Pair, breaks: Mapping[Direction, Sequence[Break]], make: _Make) -> Iterator[Finding]:
    before = pair.old.declaration.version
    grouped: dict[tuple[str, str], list[tuple[Direction, str, Break]]] = {}
    replaced = {one.path for one in breaks.get("forward", ()) if one.rule in {"type", "alternative"}} & {
        one.path for one in breaks.get("backward", ()) if one.rule in {"type", "alternative"}
    }
    for direction, found in breaks.items():
        for one in found:
            code = _SAME_IN_BOTH.get(one.rule) or _CODES.get((one.rule, direction)) or _CODES["type", direction]
            if one.path in replaced and one.rule in {"type", "alternative"}:
                code = "SC108"
            grouped.setdefault((code, one.path), []).append((direction, before, one))
    for (code, path), entries in grouped.items():
        finding = make(code, path, _describe_breaks(code, path, entries, pair))
        finding.breaks = entries
        finding.directions = {direction for direction, _, _ in entries}
        yield finding


def _describe_breaks(code: str, path: str, entries: Sequence[tuple[Direction, str, Break]], pair: _Pair) -> str:
    place = f"field {path!r}" if path else "the data"
    before, after = f"version {pair.old.declaration.version}", f"version {pair.new.declaration.version}"
    if before == after:
        after = "the class"
    direction, _, first = entries[0]
    writer, reader = pair.documents(direction)
    if code == "SC101":
        return f"{place} is required, and events of {before} may not have it"
    if code == "SC102":
        always = "" if first.written is None else "always "
        return f"{place} is not {always}sent any more, and consumers of {before} require it"
    shown = ", ".join(dict.fromkeys(_summarize(writer, one.written) for way, _, one in entries if way == direction))
    accepted = ", ".join(dict.fromkeys(_summarize(reader, one.accepted) for way, _, one in entries if way == direction))
    if code == "SC109":
        return f"{place} is sent, and consumers of {before if direction == 'forward' else after} refuse it"
    sender, receiver = (after, before) if direction == "forward" else (before, after)
    return f"{place} of {sender} may be {shown}; consumers of {receiver} accept {accepted}"


def _summarize(document: Document, value: object) -> str:
    """Describe a schema, keywords of a schema, or a value."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    limits = {key: one for key, one in value.items() if key in KEYWORDS}
    if limits and not limits.keys() & {"type", "$ref", "anyOf", "oneOf", "enum", "const"}:
        return ", ".join(f"{key} {one if isinstance(one, str) else json.dumps(one)}" for key, one in limits.items())
    return summarize(document, value)


def _join_renamed(findings: list[Finding], pair: _Pair, make: _Make) -> Iterator[Finding]:
    """Replace the findings of a field that is gone and of a new one of the same type beside it by one finding."""
    before, after = pair.old.fields, pair.new.fields
    gone = [one for one in findings if one.code == "SC102" and one.path not in after and one.path in before]
    added = [one for one in findings if one.code == "SC101" and one.path not in before and one.path in after]
    joined: list[Finding] = []
    for old in gone:
        parent = old.path.rpartition(".")[0]
        for new in added:
            if new.path.rpartition(".")[0] == parent and after[new.path].text == before[old.path].text:
                added.remove(new)
                joined += [old, new]
                rename = f"field {old.path!r} is gone and {new.path!r} of the same type is new, as if it were renamed"
                finding = make("SC103", new.path, rename)
                finding.breaks = [*old.breaks, *new.breaks]
                finding.directions = old.directions | new.directions
                yield finding
                break
    yield from (one for one in findings if not any(one is other for other in joined))


def _find_warnings(pair: _Pair, make: _Make) -> Iterator[Finding]:
    before, after, written = pair.old.fields, pair.new.fields, pair.new.written
    for path, field in before.items():
        if (
            path not in after
            and path not in written
            and not field.required
            and not _is_inside_another(path, before, after)
        ):
            yield make("SC201", path, f"field {path!r} is not sent any more")
            continue
        then, now = pair.old.defaults.get(path, ()), pair.new.defaults.get(path, ())
        old, new = (", ".join(sorted({*some} - {*others})) for some, others in ((then, now), (now, then)))
        if old and new:  # otherwise a member of a union was added or removed, or there was or is no default
            yield make("SC203", path, f"the default of field {path!r} was {old} and is {new}")


def _is_inside_another(path: str, before: Mapping[str, Field], after: Mapping[str, Field]) -> bool:
    """Return whether an object around the field is gone as well, which is one change."""
    return any(path.startswith((f"{one}.", f"{one}[", f"{one}{{")) for one in before.keys() - after.keys())


def _describe_moves(now: Declaration, then: Declaration) -> list[str]:
    return [
        f"{name} was {before or 'none'} and is {after or 'none'}"
        for name, before, after in (
            ("topic", then.topic, now.topic),
            ("key", ", ".join(then.key), ", ".join(now.key)),
            ("tenant", then.tenant, now.tenant),
            ("FIFO", str(then.fifo), str(now.fifo)),
        )
        if before != after
    ]


def _check_sequence(event: Described, versions: Sequence[Described]) -> Iterator[Finding]:
    numbers = [one.declaration.number for one in versions]
    major, minor = event.declaration.number
    if not numbers or (major, minor) in numbers:
        last = max((number for number in numbers if number[0] == major), default=None)
        if last is None or last == (major, minor):
            return
        message = f"version {major}.{minor} is older than {last[0]}.{last[1]}, which is committed"
    else:
        minors = [number[1] for number in numbers if number[0] == major]
        expected = (major, max(minors) + 1) if minors else (max(numbers)[0] + 1, 0)
        if (major, minor) == expected or (not minors and minor == 0 and major < expected[0]):
            return
        message = (
            f"version {major}.{minor} follows {_last(numbers, major)}; the next one is {expected[0]}.{expected[1]}"
        )
    yield Finding("SC303", event.declaration.type, event.declaration.version, "", message)


def _last(numbers: Sequence[tuple[int, int]], major: int) -> str:
    same = [number for number in numbers if number[0] == major]
    last = max(same or numbers)
    return f"{last[0]}.{last[1]}"


def _check_majors(classes: Sequence[Described], versions: Sequence[Described], usage: Usage) -> Iterator[Finding]:
    """Find older major versions that a service with a handler of the type does not read. Its queue gets them, too."""
    newest = max(classes, key=lambda one: one.declaration.number).declaration
    for major in sorted({one.declaration.number[0] for one in versions}):
        without = sorted(name for name, majors in usage.majors.items() if major not in majors)
        if major < newest.number[0] and without:
            services = ", ".join(without)
            message = f"messages of version {major}.x may still be in queues, and no handler of {services} reads them"
            yield Finding("SC305", newest.type, newest.version, "", message, [f"{major}.x"])


def _merge(found: list[Finding], more: Iterable[Finding]) -> None:
    """Add findings. One that holds for several older versions is shown once."""
    known = {(one.code, one.type, one.version, one.path): one for one in found}
    for finding in more:
        same = known.get((finding.code, finding.type, finding.version, finding.path))
        if same is None:
            found.append(finding)
            continue
        same.against += [one for one in finding.against if one not in same.against]
        same.directions |= finding.directions
        same.breaks += finding.breaks


def _find_meaning(document: Document, value: object, seen: dict[str, int], *, names: bool = False) -> object:
    """Return a schema without annotations, and without the names of its definitions, which may change.

    Args:
        seen: The definitions that have been visited, each with its number.
        names: The keys of *value* are names of fields, and not keywords.
    """
    if isinstance(value, list):
        return [_find_meaning(document, one, seen) for one in value]
    if not isinstance(value, dict):
        return value
    reference = value.get("$ref")
    if isinstance(reference, str) and not names:
        rest = {key: one for key, one in value.items() if key != "$ref"}
        if reference in seen:
            return [seen[reference], _find_meaning(document, rest, seen)]
        seen[reference] = len(seen)
        return _find_meaning(document, document.resolve(value), seen)
    found: dict[str, object] = {}
    for key, one in value.items():
        if not names and key in _VALUES:
            found[key] = one
        elif not names and key == "required":
            found[key] = sorted(one)
        elif names or key not in _TEXTS:
            found[key] = _find_meaning(document, one, seen, names=key in _NAMED and not names)
    return found


_VALUES = frozenset({"default", "const", "enum"})
_NAMED = frozenset({"properties", "patternProperties"})
_TEXTS = frozenset({"title", "description", "examples", "deprecated", "$comment", "$schema", "$defs"})
"""Keywords without effect on the messages."""
