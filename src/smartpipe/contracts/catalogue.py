"""The catalogue of events: a page for each event, and an index. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.contracts.compare import Document, alternatives_of
from smartpipe.contracts.differences import find_differences
from smartpipe.contracts.fields import NO_DEFAULT, Field
from smartpipe.contracts.page import Code, Heading, Items, Json, Link, Page, Paragraph, Subheading, Table
from smartpipe.contracts.schemas import DECIMAL
from smartpipe.keys import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from smartpipe.contracts.files import Described
    from smartpipe.contracts.page import Block, Inline, Line

NOT_KNOWN = "no service in this catalogue"
_SIGNS = {"+": "added", "-": "removed", "~": "changed"}
_DURATIONS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


class Consumer(NamedTuple):
    """A queue of a service whose handlers take an event."""

    service: str
    queue: str
    handlers: tuple[str, ...]
    majors: tuple[int, ...]
    retention_seconds: int
    dead_letter_queue: str
    dead_letter_retention_seconds: int


class Entry(NamedTuple):
    """An event in the catalogue.

    Args:
        current: The versions in code, one of each major version, the oldest first.
        versions: All versions, in code and committed, the oldest first.
        examples: An example message for each version in code that has one.
        producers: The names of the services that publish it.
    """

    current: Sequence[Described]
    versions: Sequence[Described]
    examples: Mapping[str, object]
    producers: Sequence[str]
    consumers: Sequence[Consumer]

    @property
    def latest(self) -> Described:
        """The newest version in code."""
        return self.current[-1]

    @property
    def type(self) -> str:
        """The type of the event."""
        return self.latest.declaration.type


def make_pages(entries: Sequence[Entry]) -> list[Page]:
    """Return the index, and then a page for each event, by type."""
    ordered = sorted(entries, key=lambda one: one.type)
    return [_make_index(ordered), *(Page(_page_name(one.type), one.type, list(_describe(one))) for one in ordered)]


def _page_name(type_: str) -> str:
    """Return the name of an event's file, without suffix, as in a schema directory."""
    return escape(type_)


def _make_index(entries: Sequence[Entry]) -> Page:
    rows: list[Sequence[Line]] = [
        (
            (Link(one.type, _page_name(one.type)),),
            (" ".join(_purpose(one)[0].split()),),
            (_versions_in_code(one),),
            (Code(one.latest.declaration.topic),),
            (", ".join(one.producers) or "—",),
            (", ".join(_unique(consumer.service for consumer in one.consumers)) or "—",),
        )
        for one in entries
    ]
    header = ("Event", "Purpose", "Version", "Topic", "Published by", "Consumed by")
    return Page("", "Events", [Table(header, rows)])


def _describe(entry: Entry) -> Iterator[Block]:
    for paragraph in _purpose(entry):
        yield from _describe_paragraph(paragraph)
    yield Table((), list(_facts(entry)))
    for described in reversed(entry.current):
        yield from _describe_fields(entry, described)
    for described in reversed(entry.current):
        yield from _describe_example(entry, described)
    yield from _describe_consumers(entry)
    yield from _describe_versions(entry)


def _purpose(entry: Entry) -> list[str]:
    """Return the paragraphs of the docstring. A class without one has its type and version as the description."""
    text = str(entry.latest.reader.get("description", ""))
    paragraphs = [one for one in text.split("\n\n") if one.strip()]
    return paragraphs if paragraphs and text != entry.latest.reader.get("title") else ["No description."]


def _describe_paragraph(text: str) -> Iterator[Block]:
    """Return a paragraph of a docstring, and a list of its lines from the first one that begins with ``-`` or ``*``."""
    first, *items = re.split(r"^\s*[-*] ", text, flags=re.MULTILINE)
    if first.strip():
        yield Paragraph((" ".join(first.split()),))
    if items:
        yield Items([(" ".join(one.split()),) for one in items])


def _versions_in_code(entry: Entry) -> str:
    return ", ".join(one.declaration.version for one in reversed(entry.current))


def _facts(entry: Entry) -> Iterator[Sequence[Line]]:
    declaration = entry.latest.declaration
    fifo = " (FIFO: the events of one key arrive in order)" if declaration.fifo else ""
    yield ("Type",), (Code(declaration.type),)
    yield ("Version",), (_versions_in_code(entry),)
    yield ("Topic",), (Code(declaration.topic), fifo)
    if declaration.key:
        yield ("Key",), _join_codes(declaration.key)
    if declaration.tenant:
        yield ("Tenant",), (Code(declaration.tenant), " (shares of SQS fair queues)")
    yield ("Published by",), (", ".join(entry.producers) or NOT_KNOWN,)
    yield ("Consumed by",), (", ".join(_unique(one.service for one in entry.consumers)) or NOT_KNOWN,)


def _describe_fields(entry: Entry, described: Described) -> Iterator[Block]:
    yield Heading((f"Fields{_of_version(entry, described)}",))
    reader, writer = Document.of_data(described.reader), Document.of_data(described.writer)
    yield _make_table(reader, reader.schema, writer, writer.schema)
    for name in _find_objects(reader, reader.schema):
        reference = {"$ref": f"#/$defs/{name}"}
        known = name in writer.root.get("$defs", {})
        yield Subheading((Code(name),))
        yield _make_table(reader, reference, writer, reference if known else {})


def _find_objects(document: Document, schema: Any) -> list[str]:
    """Return the names of the definitions of objects that a schema refers to, in the order of its fields."""
    found: dict[str, None] = {}
    waiting = [document.resolve(schema)]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list):
            waiting[:0] = one
        elif isinstance(one, dict):
            name = str(one.get("$ref", "")).rpartition("/")[2].replace("~1", "/").replace("~0", "~")
            if name and name not in found:
                resolved = document.resolve(one)
                if "properties" in resolved:
                    found[name] = None
                waiting.append(resolved)
            waiting[:0] = [value for key, value in one.items() if key not in {"$ref", "default", "examples", "$defs"}]
    return list(found)


def _make_table(reader: Document, read: Any, writer: Document, written: Any) -> Block:
    accepted, sent = _fields_of(reader, read), _fields_of(writer, written)
    rows = [_describe_field(field) for field in accepted.values()]
    rows += [_describe_field(field, computed=True) for name, field in sent.items() if name not in accepted]
    if not rows:
        return Paragraph(("No fields.",))
    return Table(("Field", "Type", "Required", "Default", "Description"), rows)


def _fields_of(document: Document, schema: Any) -> dict[str, Field]:
    """Return the fields of one object, without those of the objects within it."""
    resolved = document.resolve(schema)
    required = resolved.get("required", ())
    return {
        name: Field(
            name,
            one,
            name in required,
            one.get("default", NO_DEFAULT) if isinstance(one, dict) else NO_DEFAULT,
            document,
        )
        for name, one in resolved.get("properties", {}).items()
    }


def _describe_field(field: Field, *, computed: bool = False) -> Sequence[Line]:
    required = "only sent" if computed else "yes" if field.required else "no"
    default: Line = ("",)
    if field.default is not NO_DEFAULT:
        default = (Code(json.dumps(field.default, ensure_ascii=False)),)
    # Annotations of an optional field may be beside its union or in one of the members.
    resolved = field.document.resolve(field.schema)
    schemas = [resolved, *(one for one in alternatives_of(resolved) if isinstance(one, dict))]
    text = next((one["description"] for one in schemas if "description" in one), "")
    description: list[Inline] = [" ".join(str(text).split())]
    examples: list[Any] = next((one["examples"] for one in schemas if isinstance(one.get("examples"), list)), [])
    if examples:
        end = "" if not text else " " if str(text).endswith((".", "!", "?")) else ". "
        description.append(f"{end}Examples: ")
        description += _join_codes([json.dumps(one, ensure_ascii=False) for one in examples])
    type_ = field.text.replace(f"string, pattern {DECIMAL}", "string (decimal)")
    return (Code(field.path),), (Code(type_),), (required,), default, tuple(description)


def _describe_example(entry: Entry, described: Described) -> Iterator[Block]:
    example = entry.examples.get(described.declaration.version)
    if example is not None:
        yield Heading((f"Example{_of_version(entry, described)}",))
        yield Json(json.dumps(example, indent=2, ensure_ascii=False))


def _describe_consumers(entry: Entry) -> Iterator[Block]:
    yield Heading(("Queues",))
    if not entry.consumers:
        yield Paragraph(("No service in this catalogue consumes the event.",))
        return
    rows: list[Sequence[Line]] = [
        (
            (one.service,),
            (Code(one.queue),),
            _join_codes(one.handlers),
            (", ".join(f"{major}.x" for major in one.majors),),
            (format_duration(one.retention_seconds),),
            (Code(one.dead_letter_queue),),
            (format_duration(one.dead_letter_retention_seconds),),
        )
        for one in sorted(entry.consumers)
    ]
    header = ("Service", "Queue", "Handlers", "Versions", "Kept for", "Dead-letter queue", "Kept there for")
    yield Table(header, rows)


def _describe_versions(entry: Entry) -> Iterator[Block]:
    yield Heading(("Versions",))
    in_code = {one.declaration.version for one in entry.current}
    for index in range(len(entry.versions) - 1, -1, -1):
        described = entry.versions[index]
        version = described.declaration.version
        state = "in code" if version in in_code else "retired" if described.declaration.retired else "earlier"
        if not index:
            yield Paragraph((f"{version} ({state}): the first version.",))
            continue
        before = entry.versions[index - 1]
        differences = find_differences(before, described)
        major = before.declaration.number[0] != described.declaration.number[0]
        kind = "a major version, which consumers of the one before cannot read" if major else "a minor version"
        since = f"since {before.declaration.version}"
        changes = f"Changes {since}:" if differences else f"No field has changed {since}."
        yield Paragraph((f"{version} ({state}): {kind}. {changes}",))
        if differences:
            yield Items([(f"{_SIGNS[one.sign]} ", Code(one.name), ": ", Code(one.text)) for one in differences])


def _of_version(entry: Entry, described: Described) -> str:
    return f" of version {described.declaration.version}" if len(entry.current) > 1 else ""


def _join_codes(texts: Sequence[str]) -> Line:
    joined: list[Inline] = []
    for text in texts:
        joined += [", ", Code(text)] if joined else [Code(text)]
    return tuple(joined)


def _unique(names: Iterator[str]) -> list[str]:
    return sorted(set(names))


def format_duration(seconds: int) -> str:
    """Return a duration in the largest unit that divides it."""
    unit, size = next(one for one in _DURATIONS if seconds % one[1] == 0)
    count = seconds // size
    return f"{count:,} {unit}{'' if count == 1 else 's'}"
