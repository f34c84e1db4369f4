"""A key of several fields: one group, one partition key and one claim for each combination of their values."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpipe import ConfigError, Event, Idempotency, Publisher, PublishError, Queue, Service, Topic
from smartpipe.envelope import wrap
from smartpipe.events import contract_of, text_of
from smartpipe.idempotency.store import HandlerName
from smartpipe.limits import MAX_ID_LENGTH
from smartpipe.publisher.prepare import Publication, group_id_of, prepare
from smartpipe.testing import MemoryBroker
from tests.support.events import ledger

NAME = HandlerName("", "billing", "billing", "app.charge")


class Region(Enum):
    EU = "eu/west"


class Booked(Event, topic=ledger, type="composite.booked", version="1.0", key=("tenant", "number")):
    tenant: str | None = None
    number: int | str | Region | None = None


class Noted(Event, topic=Topic("notes"), type="composite.noted", version="1.0", key=("tenant", "number")):
    tenant: str | None = None
    number: int | None = None


def body_of(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(prepare(Publication(event), source="s").message.body)
    return found


def test_a_composite_key_is_the_group_and_the_partition_key() -> None:
    event = Booked(tenant="acme", number=4711)

    assert contract_of(Booked).key == ("tenant", "number")
    assert prepare(Publication(event), source="s").message.group_id == "acme/4711"
    assert body_of(event)["partitionkey"] == "acme/4711"
    assert body_of(Noted(tenant="acme", number=1))["partitionkey"] == "acme/1"


@pytest.mark.parametrize(("number", "group"), [
    (Region.EU, "a!2Fb/eu!2Fwest"),
    ("x y", "a!2Fb/x!20y"),
    (0, "a!2Fb/0"),
    ("é", "a!2Fb/!C3!A9"),
])  # fmt: skip
def test_each_value_is_escaped_so_that_the_slash_between_them_is_unique(number: Any, group: str) -> None:
    assert group_id_of(Booked(tenant="a/b", number=number), fifo=True) == group


@given(st.tuples(st.text(min_size=1), st.text(min_size=1)), st.tuples(st.text(min_size=1), st.text(min_size=1)))
def test_different_values_are_different_groups_that_sqs_accepts(one: tuple[str, str], other: tuple[str, str]) -> None:
    groups = [group_id_of(Booked(tenant=tenant, number=number), fifo=True) for tenant, number in (one, other)]

    assert (groups[0] == groups[1]) == (one == other)
    assert all(group and len(group) <= MAX_ID_LENGTH and group.isascii() and " " not in group for group in groups)


def test_a_long_composite_key_goes_by_its_hash_as_a_single_one_does() -> None:
    groups = {group_id_of(Booked(tenant="x" * 120, number="y" * 20 + end), fifo=True) for end in "aab"}

    assert len(groups) == 2
    assert all(group is not None and group.startswith("smartpipe/sha256/") for group in groups)
    assert "partitionkey" not in body_of(Noted(tenant="x" * 256, number=1))


@pytest.mark.parametrize(("tenant", "number", "empty"), [
    ("", 1, "'tenant'"), ("acme", None, "'number'"), (None, None, "'tenant', 'number'")
])  # fmt: skip
def test_a_key_with_an_empty_part_is_empty_and_the_error_names_the_part(
    tenant: str | None, number: int | None, empty: str
) -> None:
    assert text_of(Booked(tenant=tenant, number=number), ("tenant", "number")) is None
    with pytest.raises(PublishError, match=f"its key, {empty}, is empty"):
        prepare(Publication(Booked(tenant=tenant, number=number)), source="s")
    assert "partitionkey" not in body_of(Noted(tenant=tenant, number=number))


def test_a_tuple_of_one_field_is_that_field() -> None:
    class One(Event, topic=ledger, type="composite.one", version="1.0", key=("name",)):
        name: str

    assert contract_of(One).key == "name"
    assert group_id_of(One(name="a/b"), fifo=True) == "a/b"
    assert Idempotency(key=("name",)) == Idempotency(key="name")


def test_every_part_of_a_key_must_be_a_field() -> None:
    with pytest.raises(ConfigError) as caught:

        class Wrong(Event, topic=ledger, type="composite.wrong", version="1.0", key=("tenant", "a", "b")):
            tenant: str

    assert [problem.partition(": ")[2] for problem in caught.value.problems] == [
        "key 'a' is not one of its fields (tenant)",
        "key 'b' is not one of its fields (tenant)",
    ]


async def test_events_of_one_composite_key_are_handled_in_order() -> None:
    service, seen = Service("books", queue=Queue("books", fifo=True)), list[tuple[str | None, Any]]()

    @service.subscribe(Booked)
    async def book(event: Booked) -> None:
        seen.append((event.tenant, event.number))

    events = [Booked(tenant=tenant, number=number) for number in (1, 2) for tenant in ("a", "b")]
    async with MemoryBroker(service) as broker:
        await Publisher("s").publish_many([*events, *events])
        await broker.drain()

    assert sorted(seen, key=str) == sorted([(one.tenant, one.number) for one in events] * 2, key=str)


def claim_of(event: Event, key: Any = ("tenant", "number"), **context: Any) -> str:
    return Idempotency(key=key).key_of(NAME, wrap(event, source="shop")._replace(**context))


def test_a_claim_names_each_field_with_the_type_of_its_value() -> None:
    key = claim_of(Booked(tenant="a/b", number=4711))

    assert key == "claim//billing/billing/app.charge/composite.booked/key/tenant/str/a!2Fb/number/json/4711"
    assert claim_of(Booked(tenant="a/b", number="4711")) != key


def test_no_composite_claim_is_that_of_other_fields_or_values() -> None:
    claims = [
        claim_of(Booked(tenant="a", number="b")),
        claim_of(Booked(tenant="b", number="a")),
        claim_of(Booked(tenant="a", number="b"), key=("number", "tenant")),
        claim_of(Booked(tenant="a/number/str/b"), key="tenant"),
        claim_of(Booked(tenant="a"), key="tenant"),
    ]

    assert len(set(claims)) == len(claims)


def test_an_event_with_an_empty_part_is_known_by_its_id() -> None:
    claims = [claim_of(Booked(tenant="a", number=None), id=id_) for id_ in ("1", "2", "2")]

    assert claims[0] != claims[1] == claims[2]
    assert claims[1].endswith("/id/shop/2")


@pytest.mark.parametrize("key", [["a"], (), ("a", 5), ("a", "a"), 5])
def test_an_idempotency_key_that_is_neither_a_field_nor_a_tuple_of_fields_is_refused(key: Any) -> None:
    with pytest.raises(ConfigError, match=r"Idempotency: key="):
        Idempotency(key=key)


def test_every_part_of_an_idempotency_key_must_be_a_field() -> None:
    with pytest.raises(ConfigError, match=r"its idempotency key 'order' is not a field of Booked \(tenant, number\)"):

        @Service("s", queue=Queue("s", fifo=True)).subscribe(Booked, idempotent=Idempotency(key=("tenant", "order")))
        async def book(event: Booked) -> None: ...


async def test_events_of_one_composite_claim_are_handled_once() -> None:
    service, seen = Service("books"), list[tuple[str | None, Any]]()

    @service.subscribe(Noted, idempotent=Idempotency(key=("tenant", "number")))
    async def note(event: Noted) -> None:
        seen.append((event.tenant, event.number))

    async with MemoryBroker(service) as broker:
        for event in (Noted(tenant="a", number=1), Noted(tenant="a", number=1), Noted(tenant="b", number=1)):
            await broker.publish(event)
            await broker.drain()

    assert seen == [("a", 1), ("b", 1)]
