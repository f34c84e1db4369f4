from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel, Field

from smartpipe import Event, Queue, Service
from smartpipe.envelope import encode, wrap
from smartpipe.topology.export.asyncapi import build_document
from tests.support import exported
from tests.support.exported import AccountClosed, AccountOpened, accounts, subscribed

ROOT = Path(__file__).parents[2]
SPECIFICATION = ROOT / ".venv/node/node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json"


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]
    walks: tuple[int, str] = (1, "km")


class PetFound(Event, topic=accounts, type="pet.found", version="1.0"):
    pet: Cat | Dog = Field(discriminator="kind")


def made(*services: Service) -> dict[str, Any]:
    return build_document(services, prefix="test-", application="shop")


def pets() -> Service:
    return subscribed(Service("pets", publishes=[PetFound]), PetFound)


def test_a_document_of_everything_is_valid_under_asyncapis_own_schema() -> None:
    if not SPECIFICATION.exists():
        pytest.skip("AsyncAPI's JSON Schema is not here: npm install --prefix .venv/node @asyncapi/specs@6.11.1")
    validator = Draft7Validator(json.loads(SPECIFICATION.read_text()))

    faults = [fault.message[:200] for fault in validator.iter_errors(made(*exported.everything(), pets()))]

    assert faults == []


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_leads_to_something() -> None:
    found = made(*exported.everything(), pets())

    assert references(found)
    for reference in references(found):
        place: Any = found
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_a_document_does_not_depend_on_the_order_of_the_targets() -> None:
    services = exported.everything()

    assert json.dumps(made(*services)) == json.dumps(made(*reversed(services)))


def test_topics_and_queues_are_channels_with_their_physical_names() -> None:
    channels = made(*exported.services())["channels"]

    assert {name: channel["address"] for name, channel in channels.items()} == {
        "queue-archive": "test-archive",
        "queue-ledger.fifo": "test-ledger.fifo",
        "queue-mailer": "test-mailer",
        "queue-reports": "test-reports",
        "topic-accounts": "test-accounts",
        "topic-payments.fifo": "test-payments.fifo",
    }
    assert channels["queue-mailer"]["bindings"]["sqs"]["queue"]["deliveryDelay"] == 5
    assert channels["topic-payments.fifo"]["bindings"]["sns"]["ordering"]["type"] == "FIFO"


def test_the_address_of_an_external_resource_is_its_arn() -> None:
    channels = made(exported.affiliates(), exported.borrower())["channels"]

    assert channels["topic-partners"]["address"] == exported.partners.arn
    assert channels["queue-theirs"]["address"] == "arn:aws:sqs:eu-west-1:210987654321:theirs"


def test_services_send_published_events_and_receive_handled_ones() -> None:
    operations = made(*exported.services())["operations"]

    assert {
        name: [one["$ref"].rpartition("/")[2] for one in found["messages"]] for name, found in operations.items()
    } == {
        "archive.receive.queue-archive": ["account.opened.v1.received", "payment.made.v1.received"],
        "archive.receive.queue-reports": ["account.opened.v1.received"],
        "ledger.receive.queue-ledger.fifo": ["payment.made.v1.received"],
        "mailer.receive.queue-mailer": ["account.closed.v2.received", "account.opened.v1.received"],
        "mailer.send.topic-accounts": ["account.closed.v2"],
        "portal.send.queue-reports": ["account.opened.v1"],
        "portal.send.topic-accounts": ["account.closed.v2", "account.opened.v1"],
        "portal.send.topic-payments.fifo": ["payment.made.v1"],
    }


def test_a_send_names_its_consumers_with_their_filters() -> None:
    operations = made(*exported.services())["operations"]

    archive, mailer = operations["portal.send.topic-accounts"]["bindings"]["sns"]["consumers"]
    assert archive["endpoint"] == {"name": "test-archive"}
    assert archive["filterPolicy"] == {"type": ["account.opened"]}
    assert mailer["x-filter-policy"]["tenant"][0] == "acme"  # the binding allows no operators
    assert mailer["rawMessageDelivery"] is True


def test_a_send_without_consumers_has_no_binding() -> None:
    service = Service("portal", publishes=[AccountOpened])

    assert "bindings" not in made(service)["operations"]["portal.send.topic-accounts"]


def test_a_published_event_is_valid_under_the_payload_schema() -> None:
    schemas = made(pets())["components"]["schemas"]
    payload = {"$ref": "#/components/schemas/pet.found.v1", "components": {"schemas": schemas}}
    validator = Draft7Validator(payload)
    good = json.loads(encode(wrap(PetFound(pet=Dog(kind="dog")), source="pets")))
    bad = {**good, "data": {"pet": {"kind": "dog", "walks": ["far", 1]}}}

    assert validator.is_valid(good)
    assert not validator.is_valid(bad)


def test_each_message_has_its_own_definitions() -> None:
    schemas = made(subscribed(Service("s"), AccountOpened, AccountClosed, PetFound))["components"]["schemas"]

    assert {"pet.found.v1.Dog", "pet.found.v1.received.PetFound", "account.opened.v1.AccountOpened"} <= schemas.keys()


def test_a_queue_of_another_service_is_a_channel_even_without_a_handler() -> None:
    service = Service("portal", publishes=[Queue("elsewhere")])

    [channel] = made(service)["channels"].values()

    assert channel["bindings"]["sqs"]["queue"] == {"name": "test-elsewhere", "fifoQueue": False}


def test_a_receive_lists_the_older_versions_that_are_upcast() -> None:
    class ShelfMoved(Event, topic=accounts, type="shelf.moved", version="3.0"):
        shelf: str

    class ShelfMovedV2(Event, topic=accounts, type="shelf.moved", version="2.4"):
        """The class of producers that are not deployed yet."""

        number: int

    for version in ("1", "2"):
        ShelfMoved.upcast(from_version=version)(lambda data: data)
    found = made(subscribed(Service("shelves"), ShelfMoved))
    names = [f"shelf.moved.v{major}.received" for major in (1, 2, 3)]
    messages, schemas = found["components"]["messages"], found["components"]["schemas"]

    [received] = found["operations"].values()
    assert [one["$ref"].rpartition("/")[2] for one in received["messages"]] == names
    assert [messages[name]["title"] for name in names] == ["shelf.moved 1.0", "shelf.moved 2.4", "shelf.moved 3.0"]
    # The class of version 1 is gone, so only the context of its events is known.
    assert ["data" in schemas[name]["properties"] for name in names] == [False, True, True]
    assert list(schemas["shelf.moved.v2.received.ShelfMovedV2"]["properties"]) == ["number"]
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "shelf.moved", "data": {"any": 1}}
    assert Draft7Validator(schemas["shelf.moved.v1.received"]).is_valid(event)
    both = made(subscribed(Service("shelves", publishes=[ShelfMovedV2]), ShelfMoved))["components"]["messages"]
    assert {name: both[name] for name in names} == {name: messages[name] for name in names}
