"""Filter policies, by the examples of Amazon SNS's "Subscription filter policies"."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smartpipe.filter_policy import FilterPolicy
from smartpipe.message import Attribute, OutgoingMessage
from smartpipe.transports.memory.filters import matches

WILD = {"path": Attribute("String", "app/src/index.js"), "star": Attribute("String", "a*b\\c")}
NUMBERS = {
    "number": Attribute("Number", "2e9"),
    "exact": Attribute("Number.int", "7.000001"),
    "text": Attribute("Number", "1_000"),
    "many": Attribute("Number.Array", "[100, 50]"),
    "mixed": Attribute("String.Array", '["a", 7, true, null, ["b"]]'),
    "nothing": Attribute("String.Array", "[]"),
    "broken": Attribute("String.Array", "[NaN"),
    "digits": Attribute("String", "7"),
}
ATTRIBUTES = {
    "store": Attribute("String", "example_corp"),
    "event": Attribute("String", "order_cancelled"),
    "interests": Attribute("String.Array", '["soccer", "rugby", "hockey"]'),
    "price": Attribute("Number", "210.75"),
    "source_ip": Attribute("String", "10.0.0.77"),
    "raw": Attribute("Binary", b"x"),
}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, True),
        ({"store": ["example_corp"]}, True),
        ({"store": ["other", "example_corp"], "event": ["order_cancelled"]}, True),
        ({"store": ["example_corp"], "event": ["order_placed"]}, False),
        ({"absent": ["x"]}, False),
        ({"interests": ["rugby"]}, True),
        ({"interests": ["tennis"]}, False),
        ({"interests": [{"anything-but": ["rugby"]}]}, True),
        ({"interests": [{"anything-but": ["soccer", "rugby", "hockey"]}]}, False),
        ({"event": [{"prefix": "order_"}]}, True),
        ({"event": [{"suffix": "_placed"}]}, False),
        ({"event": [{"anything-but": ["order_placed"]}]}, True),
        ({"event": [{"anything-but": "order_cancelled"}]}, False),
        ({"event": [{"anything-but": {"prefix": "order_"}}]}, False),
        ({"absent": [{"anything-but": ["x"]}]}, False),
        ({"event": [{"equals-ignore-case": "ORDER_cancelled"}]}, True),
        ({"store": [{"exists": True}]}, True),
        ({"store": [{"exists": False}]}, False),
        ({"absent": [{"exists": False}]}, True),
        ({"price": [210.75]}, True),
        ({"price": [{"numeric": [">", 100, "<=", 210.75]}]}, True),
        ({"price": [{"numeric": ["<", 100]}]}, False),
        ({"price": [{"numeric": ["=", 210.75]}]}, True),
        ({"store": [{"numeric": [">", 0]}]}, False),
        ({"source_ip": [{"cidr": "10.0.0.0/24"}]}, True),
        ({"source_ip": [{"cidr": "10.0.1.0/24"}]}, False),
        ({"raw": [{"exists": True}]}, False),
        ({"$or": [{"store": ["nobody"]}, {"price": [{"numeric": [">", 200]}]}]}, True),
        ({"event": ["order_cancelled"], "$or": [{"store": ["nobody"]}, {"absent": ["x"]}]}, False),
    ],
    ids=str,
)
def test_a_policy_over_attributes(policy: dict[str, Any] | None, expected: bool) -> None:
    assert matches(policy, "", OutgoingMessage("{}", 2, ATTRIBUTES)) is expected


BODY = {"store": "example_corp", "customer": {"name": "Ada", "tags": ["new", "vip"]}, "items": [{"sku": 1}, {"sku": 2}]}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"store": ["example_corp"]}, True),
        ({"customer": {"name": ["Ada"]}}, True),
        ({"customer": {"name": ["Bob"]}}, False),
        ({"customer": {"tags": ["vip"]}}, True),
        ({"items": {"sku": [2]}}, True),
        ({"items": {"sku": [3]}}, False),
        ({"customer": {"age": [{"exists": False}]}}, True),
        ({"$or": [{"store": ["x"]}, {"customer": {"name": ["Ada"]}}]}, True),
    ],
    ids=str,
)
def test_a_policy_over_the_body(policy: dict[str, Any], expected: bool) -> None:
    assert matches(policy, "MessageBody", OutgoingMessage(json.dumps(BODY), 2)) is expected


def test_a_body_that_is_no_json_object_never_matches() -> None:
    assert not matches({"store": ["x"]}, "MessageBody", OutgoingMessage("plain text", 2))
    assert not matches({"store": ["x"]}, "MessageBody", OutgoingMessage("[1]", 2))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"path": [{"wildcard": "*/src/*.js"}]}, True),
        ({"path": [{"wildcard": "app/*"}]}, True),
        ({"path": [{"wildcard": "*"}]}, True),
        ({"path": [{"wildcard": "app/src/index.js"}]}, True),
        ({"path": [{"wildcard": "app/src/index.js*"}]}, True),
        ({"path": [{"wildcard": "app"}]}, False),
        ({"path": [{"wildcard": "src/*"}]}, False),
        ({"path": [{"wildcard": "*.js*.js"}]}, False),
        ({"path": [{"wildcard": "*/lib/*"}]}, False),
        ({"star": [{"wildcard": "a\\*b\\\\*"}]}, True),
        ({"path": [{"wildcard": "app\\*"}]}, False),
        ({"number": [{"wildcard": "*"}]}, False),
        ({"path": [{"anything-but": {"wildcard": ["*/lib/*", "*.py"]}}]}, True),
        ({"path": [{"anything-but": {"wildcard": ["*/lib/*", "*.js"]}}]}, False),
        ({"path": [{"anything-but": {"prefix": ["lib", "app"]}}]}, False),
        ({"number": [{"anything-but": {"prefix": "a"}}]}, True),
        ({"number": [{"numeric": [">", 0]}]}, False),
        ({"number": [{"exists": True}]}, True),
        ({"exact": [7]}, True),
        ({"exact": [{"numeric": ["=", 7]}]}, True),
        ({"exact": ["7"]}, False),
        ({"digits": [7]}, False),
        ({"digits": [{"numeric": ["=", 7]}]}, False),
        ({"text": [1000]}, False),
        ({"many": [{"anything-but": [100, 500]}]}, True),
        ({"many": [{"anything-but": [100, 50]}]}, False),
        ({"many": [{"numeric": ["<", 60]}]}, True),
        ({"mixed": [7]}, True),
        ({"mixed": [True]}, True),
        ({"mixed": [None]}, True),
        ({"mixed": [1]}, False),
        ({"mixed": ["b"]}, True),
        ({"nothing": [{"exists": True}]}, False),
        ({"nothing": [{"exists": False}]}, True),
        ({"broken": ["NaN"]}, False),
    ],
    ids=str,
)
def test_wildcards_numbers_and_lists_as_attributes(policy: dict[str, Any], expected: bool) -> None:
    FilterPolicy(policy)

    assert matches(policy, "MessageAttributes", OutgoingMessage("{}", 2, {**WILD, **NUMBERS})) is expected


def test_a_message_without_attributes_matches_no_policy() -> None:
    assert not matches({"x": [{"exists": False}]}, "MessageAttributes", OutgoingMessage("{}", 2))


@pytest.mark.parametrize(
    ("policy", "body", "expected"),
    [
        ({"a.b": ["x"]}, {"a": {"b": "x"}}, True),
        ({"a": {"b": ["x"]}}, {"a.b": "x"}, True),
        ({"a.b.c": ["x"]}, {"a": {"b.c": "x"}}, True),
        ({"a.b": ["x"]}, {"a": {"b": "y"}, "a.b": "x"}, True),
        ({"a.b": [{"exists": False}]}, {"a": {"b": "y"}, "a.b": "x"}, False),
        ({"a": {"b": ["x"], "c": ["y"]}}, {"a": [{"b": "x", "c": "y"}]}, True),
        ({"a": {"b": ["x"], "c": ["y"]}}, {"a": [{"b": "x"}, {"c": "y"}]}, False),
        ({"a": {"b": ["x"]}}, {"a": [[{"b": "x"}]]}, True),
        ({"a": ["x"]}, {"a": [["x"]]}, True),
        ({"a": ["x"]}, {"a": {"b": "x"}}, False),
        ({"a": {"b": [{"exists": False}]}}, {"a": "text"}, True),
        ({"a": {"b": [{"exists": False}]}}, {}, True),
        ({"a": [{"exists": True}]}, {"a": {"b": 1}}, False),
        ({"a": [{"exists": True}]}, {"a": None}, False),
        ({"a": [{"exists": True}]}, {"a": ""}, False),
        ({"a": [{"exists": False}]}, {"a": []}, True),
        ({"a": [None]}, {"a": None}, True),
        ({"a": [None]}, {}, False),
        ({"a": [0]}, {"a": False}, False),
        ({"d": {"s": ["x"], "$or": [{"p": ["1"]}, {"q": ["2"]}]}}, {"d": {"s": "x", "q": "2"}}, True),
        ({"d": {"s": ["x"], "$or": [{"p": ["1"]}, {"q": ["2"]}]}}, {"d": {"s": "x", "q": "1"}}, False),
        ({"d": {"s": ["x"], "$or": [{"p": ["1"]}, {"q": ["2"]}]}}, {"d": [{"s": "x"}, {"q": "2"}]}, False),
    ],
    ids=str,
)
def test_paths_and_lists_in_the_body(policy: dict[str, Any], body: Any, expected: bool) -> None:
    FilterPolicy(policy, scope="MessageBody")

    assert matches(policy, "MessageBody", OutgoingMessage(json.dumps(body), 2)) is expected


@pytest.mark.parametrize("body", ['{"a": NaN}', "[" * 100_000, '{"a": ' * 100_000])
def test_a_body_that_no_parser_accepts_never_matches(body: str) -> None:
    assert not matches({"a": [{"exists": False}, {"anything-but": "x"}]}, "MessageBody", OutgoingMessage(body, 2))


@pytest.mark.parametrize(
    ("policy", "body", "expected"),
    [
        ({"a": [1_000_000_000]}, {"a": 1_000_000_000}, True),
        ({"a": [{"numeric": [">", 5]}]}, {"a": 1_000_000_000}, True),
        ({"a": [{"numeric": [">", 5]}]}, {"a": 1_000_000_001}, False),
        ({"a": [{"numeric": ["<", 5]}]}, {"a": -1_000_000_000}, True),
        ({"a": [{"numeric": ["<", 5]}]}, {"a": -1_000_000_000.5}, False),
        ({"a": [{"numeric": ["<", 5]}]}, {"a": 5}, False),
        ({"a": [{"numeric": ["<=", 5]}]}, {"a": 5}, True),
        ({"a": [{"numeric": [">", 5]}]}, {"a": 5}, False),
        ({"a": [{"numeric": [">=", 5]}]}, {"a": 5}, True),
        ({"a": [{"numeric": [">", 5]}]}, {"a": 5.00001}, True),
        ({"a": [{"numeric": [">", 5]}]}, {"a": 5.000001}, False),
        ({"a": [{"numeric": ["=", 5]}]}, {"a": 5.000004}, True),
        ({"a": [{"numeric": [">", 0, "<", 9]}]}, {"a": 9}, False),
        ({"a": [{"numeric": [">", 0, "<", 9]}]}, {"a": 0}, False),
        ({"a": [{"numeric": [">", 0, "<", 9]}]}, {"a": True}, False),
        ({"a": [{"numeric": ["=", 1]}]}, {"a": "1"}, False),
        ({"a": [True]}, {"a": 1}, False),
        ({"a": [1]}, {"a": True}, False),
        ({"a": [False]}, {"a": False}, True),
        ({"a": ["x", None]}, {"a": None}, True),
        ({"a": [{"exists": True}]}, {"a": ["", None, 0]}, True),
        ({"a": [{"exists": True}]}, {"a": ["", None]}, False),
        ({"a": [{"exists": False}]}, {"a": ["", None]}, False),
        ({"a": [{"anything-but": ["x"]}]}, {"a": ["x", "y"]}, True),
        ({"a": [{"anything-but": 5}]}, {"a": 5.0}, False),
        ({"a": [{"anything-but": 5}]}, {"a": "5"}, True),
        ({"a": [{"anything-but": {"prefix": "x"}}]}, {"a": "yx"}, True),
        ({"a": [{"equals-ignore-case": "x"}]}, {"a": 5}, False),
        ({"a": [{"suffix": "x"}]}, {"a": 5}, False),
        ({"a": [{"prefix": "x"}]}, {"a": None}, False),
        ({"a": [{"cidr": "10.0.0.0/24"}]}, {"a": "10.0.0.255"}, True),
        ({"a": [{"cidr": "10.0.0.77/24"}]}, {"a": "10.0.0.1"}, True),
        ({"a": [{"cidr": "10.0.0.0/24"}]}, {"a": "ten"}, False),
        ({"a": [{"cidr": "10.0.0.0/24"}]}, {"a": 167_772_161}, False),
        ({"a": [{"cidr": "2001:db8::/32"}]}, {"a": "10.0.0.1"}, False),
        ({"a": [{"wildcard": "a*a"}]}, {"a": "a"}, False),
        ({"a": [{"wildcard": "a*a"}]}, {"a": "aa"}, True),
        ({"a": [{"wildcard": "ab*bc"}]}, {"a": "abc"}, False),
        ({"a": [{"wildcard": "*b*b*"}]}, {"a": "abc"}, False),
        ({"a": [{"wildcard": "*b*b*"}]}, {"a": "bb"}, True),
        ({"a": [{"wildcard": "*ab*ab"}]}, {"a": "abab"}, True),
        ({"a": [{"wildcard": "*ab*ab"}]}, {"a": "ab"}, False),
        ({"a": ["x"], "b": ["y"]}, {"a": "x", "b": "z"}, False),
        ({"a": {"b": ["x"]}}, {"a": [{"b": "y"}, {"b": "x"}]}, True),
        ({"a": {"b": ["x"]}, "c": ["z"]}, {"a": {"b": "x"}, "c": "y"}, False),
    ],
    ids=str,
)
def test_both_sides_of_each_comparison(policy: dict[str, Any], body: Any, expected: bool) -> None:
    FilterPolicy(policy, scope="MessageBody")

    assert matches(policy, "MessageBody", OutgoingMessage(json.dumps(body), 2)) is expected


@pytest.mark.parametrize(("text", "number"), [
    ("7", 7), ("+7", 7), ("-7.5", -7.5), (".5", 0.5), ("5.", 5), ("1e3", 1_000), ("1.5E-1", 0.15), ("", None),
    ("7 ", None), ("0x7", None), ("1e", None), (".", None), ("inf", None),
])  # fmt: skip
def test_a_number_attribute_is_compared_if_it_is_a_number(text: str, number: float | None) -> None:
    message = OutgoingMessage("{}", 2, {"n": Attribute("Number", text), "other": Attribute("String", "x")})

    assert matches({"n": [{"exists": False}]}, "MessageAttributes", message) is (number is None)
    if number is not None:
        assert matches({"n": [number]}, "MessageAttributes", message)
