"""Filter policies, by the examples of Amazon SNS's "Subscription filter policies"."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smartpipe.message import Attribute, OutgoingMessage
from smartpipe.transports.memory.filters import matches

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
