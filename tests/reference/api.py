"""The page of the classes and functions: signatures, parameters, methods and attributes, from the code itself."""

from __future__ import annotations

import inspect
import typing
from functools import cached_property
from importlib import import_module
from typing import Any

from smartpipe import options
from tests.reference import docstrings
from tests.reference.tables import code, default_of, table, type_of, unit_of

MODULES = (
    *("smartpipe", "smartpipe.blocking", "smartpipe.outbox", "smartpipe.middleware"),
    *("smartpipe.envelope", "smartpipe.external", "smartpipe.log_fields", "smartpipe.testing"),
)
NAMES = {
    "smartpipe.blocking": ["Publisher"],
    "smartpipe.envelope": ["encode", "read_traceparent", "wrap"],
    "smartpipe.log_fields": ["DeliveryFilter", "add_delivery_fields"],
    "smartpipe.middleware": ["Logging", "Timeout"],
}
"""The public names of modules that have others, too."""
STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
UNDESCRIBED = "TODO"
"""The description of a parameter without one, for which the test of this page fails."""
OPTIONS = {name: cls for name, cls in vars(options).items() if typing.is_typeddict(cls)}
NOT_CONSTRUCTED = {
    *("EventBridgeEvent", "ExternalModel", "Matcher", "RawMessage", "S3Detail", "S3EventBridgeEvent", "S3Notification"),
    *("S3Record", "DeliveryFilter", "Delivery", "BatchDelivery", "PublishReport", "Transport"),
}
"""Classes whose objects you receive from smartpipe, or create without arguments."""
INTERNAL = {
    *("BatchDelivery.derive_ids", "Delivery.derive_ids", "Delivery.log_message", "EmbeddedBroker.last_output"),
    *("Event.model_construct", "Event.model_copy", "FilterPolicy.policy", "Idempotency.key_of", "Publisher.transport"),
    *("RetryPolicy.seconds_until_retry", "Service.open", "Service.handlers_on", "Service.slots", "Service.bindings"),
    *("Service.published", "Service.sends_to", "Relay.publish_batch", "Relay.backlog", "Service.handlers"),
    *(
        "DeliveryFilter.filter",
        *(
            f"{model}.{name}"
            for model in ("EventBridgeEvent", "S3EventBridgeEvent", "S3Notification")
            for name in ("get_matcher", "get_context", "is_test")
        ),
        "Service.idempotent",
        "CircuitBreaker.longest_reset_seconds",
        "Worker.transport_counts",
        "Worker.report",
    ),
}
"""Methods and attributes that smartpipe's own modules use. They may change."""
TRANSPORT_CALLS = ("receive", "delete", "change_visibility", "send")
ASSERTIONS = (
    *("published", "handled", "retried", "dead_lettered"),
    *("assert_published", "assert_handled", "assert_dead_lettered"),
)
PURPOSES = {
    "smartpipe": "Declare, publish, consume: the names that `import smartpipe` offers.",
    "smartpipe.blocking": "Publish from code without an event loop.",
    "smartpipe.outbox": "Publish in a database transaction ([how](../outbox.md)).",
    "smartpipe.middleware": "Wrap deliveries and publications ([how](../reference.md#middleware)).",
    "smartpipe.envelope": "Read the trace context of a request, and build message bodies in tests.",
    "smartpipe.external": "Handle messages of other systems ([how](../howto/external-messages.md)).",
    "smartpipe.log_fields": "Name the delivery in log lines ([how](../howto/logging.md)).",
    "smartpipe.testing": "Test your services ([how](../howto/testing.md)).",
}
INTRODUCTION = """\
# Classes and functions

Every public class and function, with its parameters: type, default and unit. `make reference` writes this page from the
code. [Reference](../reference.md) explains the names in the order in which you need them.

Durations are in seconds and sizes in bytes, as the names say. Parameters after `*` can only be passed by name. A
default of `...` means the value of the service.

"""


def page() -> str:
    """Return the page."""
    sections = [INTRODUCTION]
    for module_name in MODULES:
        module = import_module(module_name)
        names = NAMES.get(module_name) or sorted(set(module.__all__) - {"__version__"})
        sections.append(f"## {code(module_name)}\n\n{PURPOSES[module_name]}\n\n")
        sections += [_class_section(module_name, getattr(module, name)) for name in names]
    return "".join(sections).rstrip("\n") + "\n"


def _class_section(module: str, thing: Any) -> str:
    name = thing.__name__
    heading = name if module == "smartpipe" else f"{module}.{name}"
    if not isinstance(thing, type):
        return f"### {code(heading)}\n\n" + _callable_section(name, thing)
    found = docstrings.read(thing)
    text = f"### {code(heading)}\n\n"
    signature = _constructor(thing)
    if signature is not None:
        text += _code_block(_spell(f"class {name}" if name == "Event" else name, signature))
    text += _paragraphs(found.paragraphs)
    described = {name: text for cls in reversed(thing.__mro__) for name, text in _own_arguments(cls).items()}
    if signature is not None:
        text += _parameters(name, signature, described)
    text += _raises({**found.raises})
    text += _attributes(thing, signature)
    for method_name, method in _methods(thing):
        text += f"#### {code(f'{heading}.{method_name}')}\n\n" + _callable_section(f"{name}.{method_name}", method)
    return text


def _own_arguments(thing: type) -> dict[str, str]:
    return docstrings.read(thing).arguments if thing.__module__.startswith("smartpipe") else {}


def _callable_section(name: str, function: Any) -> str:
    found = docstrings.read(function)
    signature = inspect.signature(function)
    text = _code_block(_call(name, function, signature))
    text += _paragraphs(found.paragraphs)
    return text + _parameters(name, signature, found.arguments) + _raises(found.raises)


def _call(name: str, function: Any, signature: inspect.Signature) -> str:
    """Return the signature as a call, with its result."""
    spelled, inner = _spell(name, signature), inspect.unwrap(function)
    returned = type_of(signature.return_annotation).strip("`").replace("\\|", "|")
    if inspect.isgeneratorfunction(inner) or returned.startswith("AbstractContextManager"):
        return f"with {spelled}"
    if inspect.isasyncgenfunction(inner) or returned.startswith("AbstractAsyncContextManager"):
        return f"async with {spelled}"
    result = "" if returned in ("", "None") else f" -> {returned}"
    return ("await " if inspect.iscoroutinefunction(inner) else "") + spelled + result


def _constructor(thing: type) -> inspect.Signature | None:
    if thing.__name__ in NOT_CONSTRUCTED:
        return None
    if thing.__name__ == "Event":
        declare = thing.__dict__["__pydantic_init_subclass__"].__func__
        parameters = [
            one for one in inspect.signature(declare).parameters.values() if one.name not in ("cls", "kwargs")
        ]
        return inspect.Signature(parameters)
    if issubclass(thing, Exception) and not any("__init__" in vars(cls) for cls in thing.__mro__[:-4]):
        return None  # that of Exception
    signature = inspect.signature(thing)
    return signature.replace(return_annotation=inspect.Signature.empty)


def _methods(thing: type) -> list[tuple[str, Any]]:
    found = []
    for name, member in vars(thing).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if not name.startswith("_") and inspect.isfunction(function) and f"{thing.__name__}.{name}" not in INTERNAL:
            found.append((name, function))
    return found


def _spell(name: str, signature: inspect.Signature) -> str:
    """Return the signature in one line, with the options of ``**options`` and without types."""
    parts: list[str] = []
    parameters = signature.parameters.values()
    positional = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
    keyword_only = False
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        taken = _options(parameter)
        if (taken or parameter.kind is parameter.KEYWORD_ONLY) and not keyword_only:
            parts.append("*")
            keyword_only = True
        if taken:
            parts += [f"{key}={_option_default(key)}" for key in taken.__annotations__]
            continue
        star = STARS.get(parameter.kind, "")
        keyword_only = keyword_only or star == "*"
        default = default_of(parameter.default).strip("`").replace("\\|", "|")
        parts.append(f"{star}{parameter.name}" + (f"={default}" if default else ""))
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.name == positional[-1]:
            parts.append("/")
    if name.startswith("class "):
        return f"{name.replace('Event', 'MyEvent')}(Event, {', '.join(part for part in parts if part != '*')})"
    return f"{name}({', '.join(parts)})"


def _options(parameter: inspect.Parameter) -> Any:
    annotation = str(parameter.annotation)
    return next((cls for name, cls in OPTIONS.items() if annotation == f"Unpack[{name}]"), None)


def _option_default(key: str) -> str:
    return {"idempotent": "False", "timeout_seconds": "..."}.get(key, "None")


def _parameters(owner: str, signature: inspect.Signature, described: dict[str, str]) -> str:
    rows = []
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls") or parameter.name.startswith("_"):
            continue
        taken = _options(parameter)
        if taken:
            described_options = _described_options(taken)
            rows += [
                _row(owner, key, str(_forward(annotation)), code(_option_default(key)), described_options)
                for key, annotation in taken.__annotations__.items()
            ]
        else:
            rows.append(_row(owner, parameter.name, parameter.annotation, default_of(parameter.default), described))
    return table(("parameter", "type", "default", "unit", ""), rows)


def _described_options(taken: Any) -> dict[str, str]:
    """Return the descriptions of a TypedDict's keys, with those of the TypedDicts that it extends."""
    keys = taken.__annotations__.keys()
    bases = [one for one in OPTIONS.values() if one.__annotations__.keys() <= keys]  # Python 3.11 keeps no bases
    return {key: text for one in bases for key, text in docstrings.read(one).arguments.items()}


def _forward(annotation: Any) -> Any:
    return annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation


def _row(owner: str, name: str, annotation: Any, default: str, described: dict[str, str]) -> tuple[str, ...]:
    text = described.get(name) or OTHER.get(f"{owner}.{name}") or OTHER.get(name) or UNDESCRIBED
    return (code(name), type_of(annotation), default, unit_of(name), text.replace("|", "\\|"))


def _attributes(thing: type, signature: inspect.Signature | None) -> str:
    """Return the table of properties and other attributes that are not parameters as well."""
    rows: list[tuple[str, ...]] = []
    for name, text in ATTRIBUTES.get(thing.__name__, {}).items():
        rows.append((code(name), "", text))
    for name, member in vars(thing).items():
        getter = (
            member.fget
            if isinstance(member, property)
            else member.func
            if isinstance(member, cached_property)
            else None
        )
        if getter is None or name.startswith("_") or f"{thing.__name__}.{name}" in INTERNAL:
            continue
        text = " ".join(docstrings.read(getter).paragraphs)
        returned = inspect.signature(getter).return_annotation
        rows.append((code(name), type_of(returned), text.replace("|", "\\|")))
    return table(("attribute", "type", ""), rows)


def _raises(raises: dict[str, str]) -> str:
    return table(("raises", ""), [(", ".join(map(code, names.split(", "))), text) for names, text in raises.items()])


def _paragraphs(paragraphs: list[str]) -> str:
    return "".join(f"{paragraph}\n\n" for paragraph in paragraphs)


def _code_block(text: str) -> str:
    return f"```python\n{text}\n```\n\n"


_EVENT = "The event."
_TESTED = "The event class; by default every class."
_FIELDS = "Only events whose fields have these values."
_QUEUE = "The queue's name, as in its declaration; None for all queues."
_PAUSED = "The queue's name, as in its declaration."
_SERVICES = "The services whose topology counts."
OTHER = {
    "event": _EVENT,
    "events": "The events: any iterable, also a generator.",
    "event_id": "The envelope's id.",
    "code": "The error code of the service, such as `Throttling`, or the name of the connection error.",
    "detail": "The sentence that says what failed, and what to do.",
    "retryable": "Whether the same call can succeed later.",
    "reason": "The cause, for the log line.",
    "problems": "One sentence for each problem.",
    "BatchDelivery.fail.index": "The item's index, from 0.",
    "BatchDelivery.failure.index": "The item's index, from 0.",
    "BatchDelivery.fail.error": "The exception that the item failed with.",
    "EmbeddedBroker.wait.timeout_seconds": "The maximum time to wait; None for no limit.",
    "EventTooLarge.size_bytes": "The size of the message with its attributes, as SNS and SQS count it.",
    "EventTooLarge.limit_bytes": "The limit of the topic or queue.",
    "FilterPolicy.scope": '`"MessageAttributes"`, or `"MessageBody"` for fields of the envelope.',
    "PublishError.failures": "One entry for each event that was not published.",
    "PublishFailure.event": "The event that was not published.",
    "Service.subscribe.event": "The event class to handle.",
    "Transport.publish.topic": "The topic's name, without the environment's prefix.",
    "Transport.publish.messages": "1 to 10 messages, within the topic's limit of bytes.",
    "Transport.send.messages": "1 to 10 messages.",
    "Transport.receive.max_messages": "The maximum number of messages: 1 to 10.",
    "Transport.receive.wait_seconds": "The time to wait for the first message: 0 to 20.",
    "Transport.receive.visibility_timeout_seconds": "The time for which nothing else receives the messages.",
    "Transport.delete.receipts": "The receipts of 1 to 10 received messages.",
    "Transport.change_visibility.leases": "1 to 10 receipts, each with its new visibility timeout in seconds.",
    **{f"Transport.{name}.queue": "The queue's name, without the environment's prefix." for name in TRANSPORT_CALLS},
    "Worker.service": "The service to run.",
    "Worker.transport": "The transport to receive and publish with. The caller closes it.",
    "Worker.settings": "The settings, from `WorkerSettings.load()`.",
    "Worker.pause.queue": _QUEUE,
    "Worker.resume.queue": _QUEUE,
    "Outbox.publish_blocking.connection": "A Connection or Session of SQLAlchemy, or a Connection of psycopg.",
    "Outbox.publish_blocking.autocommit": "As for `publish`.",
    "Relay.url": "The URL of the PostgreSQL database, as in `SMARTPIPE_OUTBOX_URL`.",
    "Relay.options": "By default `RelayOptions()`.",
    "Timeout.seconds": "The maximum duration of a call: above 0.",
    "queue": "The queue's name.",
    "error": "The text of the error.",
    "attributes": "The message attributes.",
    "destination": "The name of the topic or queue.",
    "group_id": "The MessageGroupId; None on a standard topic or queue.",
    "delay_seconds": "The delay that was asked for.",
    "after_seconds": "The time until the next delivery.",
    "MemoryBroker.services": "The services to run.",
    "MemoryBroker.drain.limit_seconds": "The time after which it gives up. Its error lists the remaining work.",
    "MemoryBroker.pause.queue": _PAUSED,
    "MemoryBroker.resume.queue": _PAUSED,
    **{f"MemoryBroker.{name}.event": _TESTED for name in ASSERTIONS},
    "fields": _FIELDS,
    "by": "The handler's function; by default any handler.",
    "encode.envelope": "The envelope, from `wrap`.",
    "read_traceparent.header": "The header `traceparent` of a request, or None.",
    "wrap.source": "CloudEvents `source`: the component that publishes.",
    "include_object.name": "The name of the object.",
    "include_object.type_": 'Its kind, such as `"table"`.',
    "times": "The exact number; by default at least one.",
    "kind": "The [kind of the reason](../reference.md#the-dead-letter); by default any.",
    "planned.services": _SERVICES,
    "provision.services": _SERVICES,
    "working.service": "The service that the worker runs.",
}
"""Descriptions of parameters that their docstring does not describe, because the sentence above them does."""
ATTRIBUTES = {
    "EventBridgeEvent": {
        "id": "The id of the event.",
        "detail_type": "The `detail-type`, such as `Object Created`.",
        "source": "The system that sent it, such as `aws.s3`.",
        "account": "The account, twelve digits.",
        "time": "When it happened.",
        "region": "The region.",
        "resources": "The ARNs of the resources that it is about.",
        "detail": "The detail, validated with the type in brackets.",
        "replay_name": "The name of the replay that sent it; None if it was not replayed.",
    },
    "RawMessage": {"body": "The text of the body.", "attributes": "The message attributes, as in a raw delivery."},
    "S3Detail": {
        "bucket": "The bucket: `name`.",
        "object": "The object: `key`, `size`, `etag`, `version_id`, `sequencer`.",
        "reason": "The API call, such as `PutObject`; None for other causes.",
        "request_id, requester, source_ip_address, deletion_type": "As S3 documents them; None if one is missing.",
    },
    "S3Notification": {"records": "The events: a tuple of `S3Record`."},
    "S3Record": {
        "event_name": "Such as `ObjectCreated:Put`.",
        "event_time": "When it happened.",
        "event_source, event_version, aws_region": "`aws:s3`, the version of the form, and the region.",
        "s3": "The rule `configuration_id`, the `bucket` (`name`, `arn`), and the `object` (`key`, `size`, `e_tag`, "
        "`version_id`, `sequencer`).",
        "user_identity, request_parameters, response_elements": "Further objects of S3, as dictionaries.",
    },
    "BatchDelivery": {"deliveries": "One `Delivery` for each event, in the order of the events."},
    "Delivery": {
        "handler": "The handler's module and name.",
        "service": "The name of the service.",
        "queue": "The name of the queue, as in its declaration.",
        "envelope": "The envelope: the CloudEvents attributes, and the event as `data`.",
        "message": "The SQS message: `body`, `attributes`, `message_id`, `receive_count`.",
        "state": "The value that the service's `lifespan` yielded; None without a lifespan.",
    },
    "PublishReport": {"event_ids": "The envelope ids of all events, in their order."},
}
"""Attributes that are neither a parameter nor a property."""
