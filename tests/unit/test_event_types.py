"""Event types with / and :, as other CloudEvents producers use them, in every place that contains a type."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError, Event, Idempotency, Service, Topic
from smartpipe.contracts.files import export, read_directory
from smartpipe.envelope.encode import wrap
from smartpipe.events import contract_of
from smartpipe.filter_policy import TYPE_ATTRIBUTE
from smartpipe.idempotency.store import HandlerName
from smartpipe.publisher.prepare import Publication, prepare
from smartpipe.testing import MemoryBroker
from smartpipe.topology.derive import derive
from smartpipe.topology.export.asyncapi import build_document
from smartpipe.topology.export.pictures import draw_dot, draw_mermaid
from smartpipe.transports.memory.transport import NAMING

if TYPE_CHECKING:
    from pathlib import Path

TYPE = "https://example.com/orders/v1:placed"


class Placed(Event, topic=Topic("orders"), type=TYPE, version="1.0"):
    order: str


class Cancelled(Event, topic=Topic("orders"), type="com.example/order:cancelled", version="2.0"):
    order: str


def shop() -> tuple[Service, list[str]]:
    service, seen = Service("shop", publishes=[Placed]), list[str]()

    @service.subscribe(Placed, idempotent=True)
    async def place(event: Placed) -> None:
        seen.append(event.order)

    @service.subscribe(Cancelled)
    async def cancel(event: Cancelled) -> None:
        seen.append(event.order)

    return service, seen


@pytest.mark.parametrize("type_", ["a/b", "a:b", "urn:x:y", "https://example.com/a", "com.example/order:placed", "a/"])
def test_a_type_may_have_slashes_and_colons(type_: str) -> None:
    class Declared(Event, topic=Topic("orders"), type=type_, version="9.0"): ...

    assert Declared.__contract__ is not None
    assert Declared.__contract__.type == type_


@pytest.mark.parametrize("type_", ["/a", ":a", "a..b", "a.", "a b", "a\\b", "a?b", "a%b", "ä", "a\n"])
def test_other_characters_are_still_refused(type_: str) -> None:
    with pytest.raises(ConfigError, match="'_', '-', '/' and ':'"):

        class Declared(Event, topic=Topic("orders"), type=type_, version="9.0"): ...


async def test_such_events_are_published_filtered_claimed_and_handled_once() -> None:
    service, seen = shop()

    async with MemoryBroker(service) as broker:
        for _ in range(2):
            await broker.publish(Placed(order="o-1"), event_id="same")
        await broker.publish(Cancelled(order="o-2"))
        await broker.drain()

    assert seen == ["o-1", "o-2"]
    [policy] = [one["FilterPolicy"] for one in derive([service], NAMING).subscriptions.values()]
    assert policy == {TYPE_ATTRIBUTE: sorted([TYPE, "com.example/order:cancelled"])}


def test_the_type_is_a_message_attribute_and_the_type_of_the_envelope_unchanged() -> None:
    message = prepare(Publication(Placed(order="o-1")), source="test").message

    assert message.attributes[TYPE_ATTRIBUTE].value == TYPE
    assert json.loads(message.body)["type"] == TYPE


def test_a_claim_of_such_an_event_has_no_more_parts_than_others() -> None:
    key = Idempotency().key_of(HandlerName("", "shop", "shop", "place"), wrap(Placed(order="1"), source="s"))

    assert key.startswith("claim//shop/shop/place/https!3A!2F!2Fexample.com!2Forders!2Fv1!3Aplaced/id/s/")


def test_schema_files_have_a_folder_each_whose_name_every_file_system_takes(tmp_path: Path) -> None:
    files, errors = export([Placed, Cancelled], tmp_path)

    assert errors == []
    assert {path.parent.name for path in files} == {
        "com.example!2Forder!3Acancelled",
        "https!3A!2F!2Fexample.com!2Forders!2Fv1!3Aplaced",
        tmp_path.name,
    }
    assert {one.declaration.type for found in read_directory(tmp_path).values() for one in found} == {
        contract_of(Placed).type,
        contract_of(Cancelled).type,
    }


def test_the_keys_of_an_asyncapi_document_are_valid_and_all_references_lead_somewhere() -> None:
    document = build_document([shop()[0]], prefix="", application="shop")

    components = document["components"]
    names = [*components["messages"], *components["schemas"], *document["channels"], *document["operations"]]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        found = document
        for part in reference.split("/"):
            found = found[part]
    assert {one["name"] for one in components["messages"].values()} == {TYPE, "com.example/order:cancelled"}


def test_pictures_show_the_type_as_it_is() -> None:
    assert f'|"com.example/order:cancelled<br/>{TYPE}"|' in draw_mermaid([shop()[0]])
    assert TYPE in draw_dot([shop()[0]])


def test_metrics_have_the_type_as_their_label() -> None:
    service, _ = shop()

    assert {handler.event_type for handler in service.handlers} == {TYPE, "com.example/order:cancelled"}
