"""Rules over the events that services publish and subscribe to. Pure."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from smartpipe.doctor.findings import Examined, Finding
from smartpipe.events import Event, contract_of, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smartpipe.service import Service


def examine_events(services: Sequence[Service]) -> Examined:
    """Apply all rules about events."""
    published = list_published(services)
    subscribed = [event for service in services for handler in service.handlers for event in handler.known_events]
    findings = [
        *(finding for event in published for finding in find_constant_keys(event)),
        *(finding for event in dict.fromkeys([*published, *subscribed]) for finding in find_unreadable_fields(event)),
        *find_dead_ends(services),
    ]
    silent = [service.name for service in services if service.handlers and not service.publishes]
    not_seen = [f"events that handlers publish without publishes=[...]: services {', '.join(silent)}"] if silent else []
    return Examined(findings, not_seen)


def list_published(services: Iterable[Service]) -> list[type[Event]]:
    """Return the events that the services declare to publish."""
    found = (one for service in services for one in service.publishes if isinstance(one, type))
    return list(dict.fromkeys(found))


def find_constant_keys(event: type[Event]) -> Iterator[Finding]:
    """SP104: SQS delivers the messages of one group one at a time, and the group is the event's key."""
    contract = contract_of(event)
    constant = [field for field in fields_of(contract.key) if _is_constant(event.model_fields[field].annotation)]
    if contract.topic.fifo and constant and len(constant) == len(fields_of(contract.key)):
        yield Finding(
            code="SP104",
            resource=f"event {contract.type}",
            message=f"its key {', '.join(constant)} has only one value, so all its events are one group: one is "
            "handled at a time, whatever the number of workers",
            remedy="choose a key with many values, such as the id of the order",
        )


def find_unreadable_fields(event: type[Event]) -> Iterator[Finding]:
    """SP106: fields whose JSON other languages cannot read, or that Pydantic cannot always write."""
    for name, field in event.model_fields.items():
        types = set(_leaves(field.annotation))
        resource = f"event {contract_of(event).type}, field {name}"
        if bytes in types and event.model_config.get("ser_json_bytes", "utf8") == "utf8":
            yield Finding(
                code="SP106",
                resource=resource,
                message="bytes are written as UTF-8, and publishing fails if they are not text",
                remedy='set model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")',
            )
        if datetime in types:
            yield Finding(
                code="SP106",
                resource=resource,
                message="a datetime without a time zone is written without an offset. It is then not a date-time of "
                "RFC 3339, which Go, Java and JSON Schema expect",
                remedy="annotate it as pydantic.AwareDatetime, which refuses times without a time zone",
                milder="note",
            )


def find_dead_ends(services: Sequence[Service]) -> Iterator[Finding]:
    """SP107: events without a subscriber or a publisher among the services that are examined."""
    published = {contract.type: service.name for service in services for contract in service.published}
    subscribed = {
        contract.type: (service.name, contract.topic.external)
        for service in services
        for binding in service.bindings
        if not binding.queue.direct
        for contract in binding.contracts
    }
    for type_ in published.keys() - subscribed.keys():
        yield Finding(
            code="SP107",
            resource=f"event {type_}",
            message=f"service {published[type_]} publishes it, and none of the examined services subscribes to it",
            remedy="name all services as TARGETs; if another application subscribes to it, ignore the finding",
        )
    for type_ in subscribed.keys() - published.keys():
        name, is_external = subscribed[type_]
        if not is_external and published:  # without any publishes=[...] nothing is known about publishers
            yield Finding(
                code="SP107",
                resource=f"event {type_}",
                message=f"service {name} subscribes to it, and none of the examined services declares to publish it",
                remedy=f"name all services as TARGETs, or declare Service(..., publishes=[...]) where {type_} is "
                "published",
            )


def _is_constant(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return len(get_args(annotation)) == 1
    return isinstance(annotation, type) and issubclass(annotation, Enum) and len(annotation) == 1


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation. The fields of nested models are not searched."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal or not arguments:
        yield annotation
        return
    for one in arguments:
        yield from _leaves(one)
