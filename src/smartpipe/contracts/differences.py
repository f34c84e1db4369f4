"""The differences between two versions of an event, line by line. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from smartpipe.contracts.compare import Document
from smartpipe.contracts.fields import NO_DEFAULT, walk_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.contracts.fields import Field
    from smartpipe.contracts.files import Described

Sign: TypeAlias = Literal["+", "-", "~"]


class Difference(NamedTuple):
    """A field, or an attribute of the declaration, that was added (``+``), removed (``-``) or changed (``~``)."""

    sign: Sign
    name: str
    text: str


def find_differences(old: Described, new: Described) -> list[Difference]:
    """Return the differences of two versions, as their consumers see them, in the order of the fields."""
    found = [*_compare_declarations(old, new)]
    before = walk_fields(Document.of_data(old.reader))
    after = walk_fields(Document.of_data(new.reader))
    for path, field in after.items():
        if path not in before:
            found.append(Difference("+", path, describe_field(field)))
        else:
            changes = list(_compare_fields(before[path], field))
            if changes:
                found.append(Difference("~", path, "; ".join(changes)))
    found += [Difference("-", path, describe_field(field)) for path, field in before.items() if path not in after]
    return found


def describe_field(field: Field) -> str:
    """Return the type of a field, and whether it is required."""
    if field.required:
        return f"{field.text}, required"
    default = "" if field.default is NO_DEFAULT else f", default {_show(field.default)}"
    return f"{field.text}, optional{default}"


def _compare_declarations(old: Described, new: Described) -> Iterator[Difference]:
    before, after = old.declaration.model_dump(mode="json"), new.declaration.model_dump(mode="json")
    for name in ("topic", "fifo", "key", "tenant"):
        if before[name] != after[name]:
            yield Difference("~", f"{name}=", f"{_show(before[name])} → {_show(after[name])}")


def _compare_fields(old: Field, new: Field) -> Iterator[str]:
    if old.text != new.text:
        yield f"{old.text} → {new.text}"
    if old.required != new.required:
        yield "required → optional" if old.required else "optional → required"
    if old.default is not new.default and _show(old.default) != _show(new.default):
        yield f"default {_show(old.default)} → {_show(new.default)}"


def _show(value: object) -> str:
    return "none" if value is NO_DEFAULT else json.dumps(value, ensure_ascii=False, sort_keys=True)
