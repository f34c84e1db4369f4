"""Message attributes that are numbers and lists: written with the types of SNS, read back, and refused if wrong."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from smartpipe import FilterPolicy, Publisher, PublishError, Queue, Service
from smartpipe.message import Attribute, make_attribute
from smartpipe.outbox.rows import read_row, row_of
from smartpipe.publisher.prepare import Publication, prepare
from smartpipe.testing import MemoryBroker
from tests.support.events import UserLeft


@pytest.mark.parametrize(
    ("value", "data_type", "text"),
    [
        ("x", "String", "x"),
        (12.5, "Number", "12.5"),
        (7, "Number", "7"),
        (-0.0000001, "Number", "-0.0000001"),
        (1e21, "Number", "1000000000000000000000"),
        (Decimal("1.10"), "Number", "1.10"),
        (["a", "b"], "String.Array", '["a","b"]'),
        (("ü", 1, 1.5, True, None), "String.Array", '["ü",1,1.5,true,null]'),
        ([], "String.Array", "[]"),
    ],
)
def test_a_value_is_written_with_its_type_and_read_back(value: Any, data_type: str, text: str) -> None:
    made = make_attribute(value)

    assert made == Attribute(data_type, text)
    expected = list(value) if isinstance(value, tuple) else float(value) if isinstance(value, Decimal) else value
    assert made.parsed == expected


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        (Attribute("Number", "1e3"), 1000.0),
        (Attribute("Number", "+7"), 7.0),
        (Attribute("Number.int", "7"), 7),
        (Attribute("Number", "seven"), "seven"),
        (Attribute("Number", "Infinity"), "Infinity"),
        (Attribute("Number", "true"), "true"),
        (Attribute("String.Array", "no JSON"), "no JSON"),
        (Attribute("String.Array", '{"a": 1}'), '{"a": 1}'),
        (Attribute("String.custom", "[1]"), "[1]"),
        (Attribute("String", "5"), "5"),
        (Attribute("Binary", b"\x00"), b"\x00"),
    ],
)
def test_a_value_of_another_producer_stays_text_if_it_does_not_have_the_form_of_its_type(
    attribute: Attribute, expected: Any
) -> None:
    assert attribute.parsed == expected
    assert type(attribute.parsed) is type(expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "must be text of at least one character"),
        ("\x00", "must be text of at least one character, without control characters"),
        (True, 'must not be True or False, for which SNS has no type: write "true" or [True]'),
        (None, "must be text, a number, or a list"),
        (b"x", "must be text, a number, or a list"),
        (float("nan"), "must be a finite number"),
        (1e39, "needs more than 38 digits"),
        (Decimal("1e-39"), "needs more than 38 digits"),
        (10**40, "needs more than 38 digits"),
        ([["a"]], "has ['a'] in its list"),
        ([float("inf")], "has a number in its list that JSON does not have"),
        (["\ufffe"], "has characters in its list that SNS does not accept"),
    ],
)
async def test_a_value_that_sns_would_refuse_is_refused_before_it_is_sent(value: Any, reason: str) -> None:
    async with MemoryBroker() as broker, Publisher("test", transport=broker.transport) as publisher:
        with pytest.raises(PublishError, match=re.escape(f"attribute 'a' {reason}")) as caught:
            await publisher.publish(UserLeft(name="Bob"), attributes={"a": value})

    assert caught.value.failures[0].code == "InvalidAttribute"


def test_the_outbox_keeps_the_types() -> None:
    prepared = prepare(Publication(UserLeft(name="Bob"), {"amount": 12.5, "tags": ["a"]}), source="test")
    row = {**row_of(prepared), "id": 1, "attempts": 0, "body_bytes": 1, "payload_bytes": 0}
    stored = {**row, "attributes": '{"amount": ["Number", "12.5"], "tags": ["String.Array", "[\\"a\\"]"]}'}

    assert row["attributes"]["amount"] == ["Number", "12.5"]
    assert row["attributes"]["tags"] == ["String.Array", '["a"]']
    assert {name: one.parsed for name, one in read_row(stored).message.attributes.items()} == {
        "amount": 12.5,
        "tags": ["a"],
    }


async def test_numeric_filters_and_elements_of_lists_decide_about_delivery_in_memory() -> None:
    async def take(_: UserLeft) -> None: ...

    def service(name: str, conditions: dict[str, Any]) -> Service:
        made = Service(name, queue=Queue(name, filter_policy=FilterPolicy(conditions)))
        made.subscribe(UserLeft)(take)
        return made

    cheap = service("cheap", {"amount": [{"numeric": ["<", 20]}]})
    tagged = service("tagged", {"tags": ["b"]})
    async with MemoryBroker(cheap, tagged) as broker:
        await broker.publish(UserLeft(name="both"), attributes={"amount": 12.5, "tags": ["a", "b"]})
        await broker.publish(UserLeft(name="text is no number"), attributes={"amount": "12.5", "tags": '["b"]'})
        await broker.publish(UserLeft(name="neither"), attributes={"amount": 20, "tags": ["a"]})
        await broker.drain()

    lines = [line.split() for line in broker.timeline.splitlines() if " handled " in line]
    assert sorted(line[line.index("from") + 1] for line in lines) == ["cheap,", "tagged,"]
    assert {event.name for event in broker.handled(UserLeft)} == {"both"}


async def test_a_message_sent_to_a_queue_keeps_numbers_and_lists() -> None:
    service, seen = Service("direct", queue=Queue("direct", direct=True)), list[Any]()

    @service.subscribe(UserLeft)
    async def take(event: UserLeft, delivery: Any) -> None:
        seen.append((delivery.attribute("amount"), delivery.attribute("tags")))

    async with MemoryBroker(service) as broker:
        await broker.publish(UserLeft(name="Bob"), queue="direct", attributes={"amount": 1, "tags": ["a", 2]})
        await broker.drain()

    assert seen == [(1, ["a", 2])]
