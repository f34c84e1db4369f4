"""Rules over the events that services publish and subscribe to. Pure."""

from __future__ import annotations

import math
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from smartpipe.doctor.findings import Examined, Finding
from smartpipe.events import Event, contract_of, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smartpipe.service import Service

FEW_GROUPS = 10
"""Fewer groups than the default concurrency of one process."""
SENSITIVE = "sensitive"
"""The key of ``Field(json_schema_extra={"sensitive": True})``."""


def examine_events(services: Sequence[Service]) -> Examined:
    """Apply all rules about events."""
    published = list_published(services)
    subscribed = [event for service in services for handler in service.handlers for event in handler.known_events]
    findings = [
        *(finding for event in published for finding in find_poor_keys(event)),
        *(finding for event in dict.fromkeys([*published, *subscribed]) for finding in find_unreadable_fields(event)),
        *(finding for event in published for finding in find_open_secrets(event, services)),
        *find_dead_ends(services),
    ]
    silent = [service.name for service in services if service.handlers and not service.publishes]
    not_seen = [f"events that handlers publish without publishes=[...]: services {', '.join(silent)}"] if silent else []
    return Examined(findings, not_seen)


def list_published(services: Iterable[Service]) -> list[type[Event]]:
    """Return the events that the services declare to publish."""
    found = (one for service in services for one in service.publishes if isinstance(one, type))
    return list(dict.fromkeys(found))


def find_poor_keys(event: type[Event]) -> Iterator[Finding]:
    """SP104: SQS delivers the messages of one group one at a time, and the group is the event's key."""
    contract = contract_of(event)
    fields = fields_of(contract.key)
    if not contract.topic.fifo or not fields:
        return
    annotations = [event.model_fields[field].annotation for field in fields]
    counts = [_count_values(one) for one in annotations]
    groups = math.prod(one for one in counts if one is not None) if None not in counts else None
    resource, key = f"event {contract.type}", ", ".join(fields)
    if groups is not None and groups < FEW_GROUPS:
        values = "one value" if groups == 1 else f"{groups} values"
        together = "are one group" if groups == 1 else f"are {groups} groups"
        handled = "one is" if groups == 1 else f"{groups} are"
        yield Finding(
            code="SP104",
            resource=resource,
            message=f"its key {key} has only {values}, so all its events {together}: {handled} handled at a time, "
            "with any number of workers",
            remedy="choose a key with many values, such as the id of the order",
            figures={"groups": groups},
            milder=None if groups == 1 else "note",
        )
    optional = [field for field, one in zip(fields, annotations, strict=True) if type(None) in get_args(one)]
    if optional:
        part = f"{', '.join(optional)} of its key {key}" if len(fields) > 1 else f"its key {key}"
        yield Finding(
            code="SP104",
            resource=resource,
            message=f"{part} may be None, and publishing to a FIFO topic then fails with MissingKey",
            remedy="make each field of the key required",
        )


def find_unreadable_fields(event: type[Event]) -> Iterator[Finding]:
    """SP106: fields whose JSON other languages cannot read, or that Pydantic cannot always write."""
    for path, types, model in _list_fields(event):
        resource = f"event {contract_of(event).type}, field {path}"
        if bytes in types and model.model_config.get("ser_json_bytes", "utf8") == "utf8":
            yield Finding(
                code="SP106",
                resource=resource,
                message="bytes are written as UTF-8, and publishing fails if they are not text",
                remedy=f'set model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64") in '
                f"{model.__name__}",
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


def find_open_secrets(event: type[Event], services: Sequence[Service]) -> Iterator[Finding]:
    """SP106: fields that are marked as sensitive, on a topic or in a queue without a KMS key."""
    contract = contract_of(event)
    marked = [name for name, field in event.model_fields.items() if _is_sensitive(field.json_schema_extra)]
    queues = {
        binding.queue
        for service in services
        for binding in service.bindings
        if any(one.type == contract.type for one in binding.contracts) and not binding.queue.existing
    }
    places = [f"topic {contract.topic.name}"] if not (contract.topic.kms_key or contract.topic.external) else []
    places += sorted(f"queue {queue.name}" for queue in queues if not queue.kms_key)
    if marked and places:
        yield Finding(
            code="SP106",
            resource=f"event {contract.type}, field {', '.join(marked)}",
            message=f"it is marked as sensitive, and {', '.join(places)} has no KMS key: everyone who may subscribe or "
            "receive can read it, without a permission for a key",
            remedy='set Topic(kms_key="alias/...") and Queue(kms_key="alias/...")',
        )


def _is_sensitive(extra: Any) -> bool:
    return isinstance(extra, dict) and bool(extra.get(SENSITIVE))


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


def _count_values(annotation: Any) -> int | None:
    """Return the number of values of a type; None if it is not small and fixed."""
    if annotation is bool:
        return 2
    if get_origin(annotation) is Literal:
        return len(get_args(annotation))
    return len(annotation) if isinstance(annotation, type) and issubclass(annotation, Enum) else None


def _list_fields(
    model: type[BaseModel], path: str = "", seen: frozenset[type] = frozenset()
) -> Iterator[tuple[str, set[Any], type[BaseModel]]]:
    """Yield the path of each field, also of nested models, the types in its annotation, and the model that has it."""
    for name, field in model.model_fields.items():
        types = set(_leaves(field.annotation))
        yield f"{path}{name}", types, model
        for one in types:
            if isinstance(one, type) and issubclass(one, BaseModel) and one not in seen | {model}:
                yield from _list_fields(one, f"{path}{name}.", seen | {model})


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal or not arguments:
        yield annotation
        return
    for one in arguments:
        yield from _leaves(one)
