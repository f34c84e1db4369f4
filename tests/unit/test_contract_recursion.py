"""Comparisons of schemas that contain themselves, in which each pair of schemas is compared once."""

from __future__ import annotations

from typing import Any

import pytest

from smartpipe.contracts import compare
from smartpipe.contracts.compare import Document, find_breaks
from smartpipe.contracts.fields import walk_fields

MEMBERS = 12


def make_trees(*, required: bool = False, **more: Any) -> Document:
    """Return the schema of a union of objects, each with a list of the same union."""

    def make_union() -> dict[str, Any]:  # Pydantic writes each union out
        return {"oneOf": [{"$ref": f"#/$defs/Node{index}"} for index in range(MEMBERS)]}

    nodes = {
        f"Node{index}": {
            "type": "object",
            "properties": {
                "children": {"type": "array", "items": make_union()},
                "kind": {"const": f"k{index}"},
                **more,
            },
            "additionalProperties": False,
            "required": ["kind", *(more if required else ())],
        }
        for index in range(MEMBERS)
    }
    return Document({"$defs": nodes, "type": "object", "properties": {"root": make_union()}})


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the schemas that a comparison resolves, of which there are some for each pair."""
    found: list[object] = []
    original = compare.Document.resolve

    def resolve(self: Document, schema: Any) -> Any:
        found.append(schema)
        assert len(found) < 100 * MEMBERS**2, "pairs are compared repeatedly"
        return original(self, schema)

    monkeypatch.setattr(compare.Document, "resolve", resolve)
    return found


def test_each_pair_of_members_of_a_recursive_union_is_compared_once(resolved: list[object]) -> None:
    assert not find_breaks(make_trees(), make_trees(note={"type": "string"}))
    assert resolved


def test_a_break_in_each_member_of_a_recursive_union_is_found_where_it_is_first(resolved: list[object]) -> None:
    found = find_breaks(make_trees(), make_trees(required=True, note={"type": "string"}))

    assert {(one.rule, one.path) for one in found} >= {
        ("required", "root.note"),
        ("required", "root.children[].note"),
    }
    assert resolved


def test_a_break_that_was_found_at_one_field_is_found_at_each_other_field_of_the_same_model() -> None:
    def make(kind: str) -> Document:
        address = {"type": "object", "properties": {"zip": {"type": kind}}}
        fields = {"billing": {"$ref": "#/$defs/Address"}, "places": {"items": {"$ref": "#/$defs/Address"}}}
        return Document({"$defs": {"Address": address}, "type": "object", "properties": fields})

    found = find_breaks(make("string"), make("integer"))

    assert [one.path for one in found if one.rule == "type"] == ["billing.zip", "places[].zip"]


def test_a_pair_that_fitted_only_by_a_wrong_assumption_is_compared_again() -> None:
    def make(**more: Any) -> Document:
        a = {"type": "object", "properties": {"b": {"$ref": "#/$defs/B"}, **more}}
        b = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}
        fields = {"first": {"$ref": "#/$defs/A"}, "second": {"$ref": "#/$defs/B"}}
        return Document({"$defs": {"A": a, "B": b}, "type": "object", "properties": fields})

    found = find_breaks(make(x={"type": "string"}), make(x={"type": "integer"}))

    assert [one.path for one in found] == ["first.x", "second.a.x"]


def test_a_reference_with_keywords_beside_it_may_contain_itself() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"minProperties": 1, "anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
    }
    document = Document({"$defs": {"Node": node}, "$ref": "#/$defs/Node"})

    assert not find_breaks(document, Document({"$defs": {"Node": node}, "$ref": "#/$defs/Node"}))


def test_the_fields_of_a_recursive_union_are_walked_once(resolved: list[object]) -> None:
    found = walk_fields(make_trees())

    assert {"root.kind", "root.children", "root.children[].kind"} <= found.keys()
    assert resolved
