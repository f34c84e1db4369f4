"""An AsyncAPI 3.0.0 document: the channels, operations and messages of services. Pure.

Source: AsyncAPI 3.0.0, and the versions of its bindings that its JSON Schema knows: SNS 0.1.0 and SQS 0.2.0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.contracts.schemas import envelope_schema, event_schema
from smartpipe.events import event_class
from smartpipe.names import account_in, name_in
from smartpipe.topics import FIFO_SUFFIX
from smartpipe.topology.derive import derive
from smartpipe.topology.export.portable import convert, make_unique, portable_naming
from smartpipe.topology.kinds import TOPIC, kind_of
from smartpipe.topology.resources import TAGS, dead_letter_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from smartpipe.contracts.schemas import View
    from smartpipe.events import Contract
    from smartpipe.names import Naming
    from smartpipe.topology.derive import Declares
    from smartpipe.topology.resources import Attributes, Topology

CONTENT_TYPE = "application/cloudevents+json"
_SNS_BINDING = {"bindingVersion": "0.1.0"}
_SQS_BINDING = {"bindingVersion": "0.2.0"}
_QUEUE_FIELDS = {
    "DeduplicationScope": "deduplicationScope",
    "FifoThroughputLimit": "fifoThroughputLimit",
    "DelaySeconds": "deliveryDelay",
    "VisibilityTimeout": "visibilityTimeout",
    "MessageRetentionPeriod": "messageRetentionPeriod",
    TAGS: "tags",
}


class _Message(NamedTuple):
    """An event of one major version, as it is written or as it is read."""

    contract: Contract
    view: View


class _Operation(NamedTuple):
    """The sending or receiving of one service at one topic or queue."""

    action: str
    service: str
    arn: str
    contracts: tuple[Contract, ...]

    @property
    def messages(self) -> list[_Message]:
        return [_Message(one, "writer" if self.action == "send" else "reader") for one in self.contracts]


def build_document(services: Sequence[Declares], *, prefix: str, application: str) -> dict[str, Any]:
    """Return the document of *services*: a channel for each topic and queue, and messages for each major version.

    An event that is sent and its counterpart that is received are two messages, because consumers accept more than
    producers write.

    Raises:
        ConfigError: The declarations contradict each other or AWS.
    """
    naming = portable_naming(prefix, application)
    topology = derive(services, naming)
    contents = _contents(services, naming)
    channels = make_unique({arn: _channel_id(arn, naming) for arn in contents})
    operations = list(_operations(services, naming, contents))
    messages = _messages(contents, operations)
    used = sorted({one for found in messages.values() for one in found}, key=_message_id)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": application,
            "version": "1.0.0",
            "description": f"Events of {', '.join(sorted({one.name for one in services}))} on Amazon SNS and SQS. "
            "Each message has a version of its own.",
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {name: _server(name) for name in ("sns", "sqs")},
        "channels": {
            channels[arn]: _channel(arn, messages[arn], topology, naming)
            for arn in sorted(channels, key=lambda one: channels[one])
        },
        "operations": {name: _operation(one, channels, topology) for name, one in _named(operations, channels)},
        "components": {
            "messages": {_message_id(one): _message(one) for one in used},
            "schemas": {name: schema for one in used for name, schema in _schemas(one)},
        },
    }


def _server(service: str) -> dict[str, Any]:
    region = {"description": "The AWS region that topics and queues are in."}
    return {"host": f"{service}.{{region}}.amazonaws.com", "protocol": service, "variables": {"region": region}}


def _contents(services: Iterable[Declares], naming: Naming) -> dict[str, tuple[Contract, ...]]:
    """Return the contracts of the events of each topic and queue, by ARN; none for a queue without handlers."""
    found: dict[str, set[Contract]] = {}
    for service in services:
        for binding in service.bindings:
            found.setdefault(naming.queue_arn(binding.queue.name), set()).update(binding.contracts)
        for contract in _contracts_of(service):
            found.setdefault(naming.topic_arn(contract.topic.name), set()).add(contract)
        for queue in service.sends_to:
            found.setdefault(naming.queue_arn(queue.name), set())
    return {arn: tuple(sorted(contracts)) for arn, contracts in found.items()}


def _messages(
    contents: Mapping[str, tuple[Contract, ...]], operations: Iterable[_Operation]
) -> dict[str, list[_Message]]:
    """Return the messages of each topic and queue, by ARN. Only producers send to a topic."""
    found = {
        arn: {_Message(one, "writer" if kind_of(arn) is TOPIC else "reader") for one in contracts}
        for arn, contracts in contents.items()
    }
    for operation in operations:
        found[operation.arn] |= set(operation.messages)
    return {arn: sorted(messages, key=_message_id) for arn, messages in found.items()}


def _contracts_of(service: Declares) -> Iterator[Contract]:
    """Yield the contracts that the service publishes and those that it subscribes to."""
    yield from service.published
    for binding in service.bindings:
        if not binding.queue.direct:
            yield from binding.contracts


def _channel_id(arn: str, naming: Naming) -> str:
    name = name_in(arn).removeprefix(naming.prefix) if _is_own(arn, naming) else name_in(arn)
    return f"{kind_of(arn).name}-{name}"


def _is_own(arn: str, naming: Naming) -> bool:
    return account_in(arn) == naming.account_id


def _channel(arn: str, messages: Iterable[_Message], topology: Topology, naming: Naming) -> dict[str, Any]:
    renderer = _RENDERERS[kind_of(arn).name]
    return {
        "address": name_in(arn) if _is_own(arn, naming) else arn,
        "servers": [{"$ref": f"#/servers/{renderer.protocol}"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in map(_message_id, messages)},
        "bindings": {renderer.protocol: renderer.channel(arn, topology)},
    }


def _topic_channel(arn: str, topology: Topology) -> dict[str, Any]:
    ordering = {"type": "FIFO" if arn.endswith(FIFO_SUFFIX) else "standard", "contentBasedDeduplication": False}
    tags = topology.topics[arn].get(TAGS)
    return {"name": name_in(arn), "ordering": ordering, **({"tags": tags} if tags else {}), **_SNS_BINDING}


def _queue_channel(arn: str, topology: Topology) -> dict[str, Any]:
    target = dead_letter_of(topology.queues.get(arn, {}))
    dead_letter = {"deadLetterQueue": _queue(target, topology)} if target else {}
    return {"queue": _queue(arn, topology), **dead_letter, **_SQS_BINDING}


def _queue(arn: str, topology: Topology) -> dict[str, Any]:
    attributes = topology.queues.get(arn, {})
    found = {"name": name_in(arn), "fifoQueue": arn.endswith(FIFO_SUFFIX)}
    found |= {field: convert(name, attributes[name]) for name, field in _QUEUE_FIELDS.items() if name in attributes}
    target = dead_letter_of(attributes)
    if target:
        redrive = {name: value for name, value in attributes["RedrivePolicy"].items() if name == "maxReceiveCount"}
        found["redrivePolicy"] = {"deadLetterQueue": {"name": name_in(target)}, **redrive}
    return found


def _operations(
    services: Iterable[Declares], naming: Naming, contents: Mapping[str, tuple[Contract, ...]]
) -> Iterator[_Operation]:
    for service in services:
        for topic in dict.fromkeys(contract.topic for contract in service.published):
            sent = tuple(contract for contract in service.published if contract.topic == topic)
            yield _Operation("send", service.name, naming.topic_arn(topic.name), sent)
        for queue in service.sends_to:
            arn = naming.queue_arn(queue.name)
            yield _Operation("send", service.name, arn, contents[arn])
        for binding in service.bindings:
            yield _Operation("receive", service.name, naming.queue_arn(binding.queue.name), binding.contracts)


def _named(operations: Iterable[_Operation], channels: Mapping[str, str]) -> list[tuple[str, _Operation]]:
    names = make_unique({one: f"{one.service}.{one.action}.{channels[one.arn]}" for one in operations})
    return sorted((name, one) for one, name in names.items())


def _operation(one: _Operation, channels: Mapping[str, str], topology: Topology) -> dict[str, Any]:
    channel = f"#/channels/{channels[one.arn]}"
    verb = "publishes to" if kind_of(one.arn) is TOPIC else "sends to" if one.action == "send" else "handles"
    return {
        "action": one.action,
        "channel": {"$ref": channel},
        "title": f"{one.service} {verb} {name_in(one.arn)}",
        "tags": [{"name": one.service}],
        "messages": [{"$ref": f"{channel}/messages/{name}"} for name in sorted(map(_message_id, one.messages))],
        **_RENDERERS[kind_of(one.arn).name].operation(one.arn, topology),
    }


def _queue_operation(arn: str, topology: Topology) -> dict[str, Any]:
    target = dead_letter_of(topology.queues.get(arn, {}))
    queues = [{"name": name_in(one)} for one in (arn, target) if one]
    return {"bindings": {"sqs": {"queues": queues, **_SQS_BINDING}}}


def _topic_operation(arn: str, topology: Topology) -> dict[str, Any]:
    consumers = [
        _consumer(queue, attributes)
        for (topic, queue), attributes in sorted(topology.subscriptions.items(), key=lambda item: item[0])
        if topic == arn and attributes
    ]
    # The binding requires at least one consumer, and these services may have none.
    return (
        {"bindings": {"sns": {"topic": {"name": name_in(arn)}, "consumers": consumers, **_SNS_BINDING}}}
        if consumers
        else {}
    )


def _consumer(queue_arn: str, attributes: Attributes) -> dict[str, Any]:
    policy = attributes["FilterPolicy"]
    # The binding allows only lists of texts; a policy with operators of SNS goes into an extension.
    is_plain = all(isinstance(one, list) and all(isinstance(value, str) for value in one) for one in policy.values())
    target = dead_letter_of(attributes)
    redrive = {"redrivePolicy": {"deadLetterQueue": {"name": name_in(target)}}} if target else {}
    return {
        "protocol": "sqs",
        "endpoint": {"name": name_in(queue_arn)},
        "filterPolicy" if is_plain else "x-filter-policy": policy,
        "filterPolicyScope": attributes["FilterPolicyScope"],
        "rawMessageDelivery": convert("RawMessageDelivery", attributes["RawMessageDelivery"]),
        **redrive,
    }


def _message_id(message: _Message) -> str:
    """Return the key of the message among the components, where AsyncAPI allows letters, digits, ".", "-" and "_"."""
    contract, view = message
    type_ = re.sub(r"[^A-Za-z0-9._-]", lambda found: f"-{ord(found[0]):02X}-", contract.type)
    return f"{type_}.v{contract.major}{'.received' if view == 'reader' else ''}"


def _message(message: _Message) -> dict[str, Any]:
    contract = message.contract
    event = event_class(contract.type, contract.major)
    # SNS drops an event without this attribute, because each subscription selects its events by it.
    description = (
        "SNS delivers the event to the queues that subscribe to this type. Without it, SNS delivers it nowhere."
    )
    headers = {"type": {"type": "string", "const": contract.type, "description": description}}
    return {
        "name": contract.type,
        "title": f"{contract.type} {contract.version}",
        **({"description": event.__doc__.strip()} if event and event.__doc__ else {}),
        "contentType": CONTENT_TYPE,
        "headers": {"type": "object", "properties": headers, "required": ["type"]},
        "correlationId": {"location": "$message.payload#/correlationid"},
        "payload": {"$ref": f"#/components/schemas/{_message_id(message)}"},
    }


def _schemas(message: _Message) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schema of the envelope and the schemas that it refers to, each with its name."""
    event = event_class(message.contract.type, message.contract.major)
    name = _message_id(message)
    schema = event_schema(event, message.view) if event else envelope_schema()  # an older version, which upcasters read
    del schema["$schema"]
    definitions = schema.pop("$defs", {})
    yield name, _convert_schema(schema, name)
    for definition in sorted(definitions):
        yield f"{name}.{definition}", _convert_schema(definitions[definition], name)


def _convert_schema(value: Any, name: str) -> Any:
    """Convert a schema of JSON Schema 2020-12 to draft 07, with definitions among the components, for AsyncAPI."""
    if isinstance(value, list):
        return [_convert_schema(one, name) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: _convert_schema(one, name) for key, one in value.items()}
    if isinstance(found.get("$ref"), str):
        found["$ref"] = found["$ref"].replace("#/$defs/", f"#/components/schemas/{name}.")
    if isinstance(found.get("prefixItems"), list):
        rest = {"additionalItems": found.pop("items")} if "items" in found else {}
        found |= {"items": found.pop("prefixItems"), **rest}
    return found


class _Renderer(NamedTuple):
    """The bindings of one kind of resource, as a channel and in an operation."""

    protocol: str
    channel: Callable[[str, Topology], dict[str, Any]]
    operation: Callable[[str, Topology], dict[str, Any]]


_RENDERERS = {
    "topic": _Renderer("sns", _topic_channel, _topic_operation),
    "queue": _Renderer("sqs", _queue_channel, _queue_operation),
}
"""By the name of the kind."""
