"""Reads CloudEvents that differ from ours: with data in ``data_base64``, without data, or in binary mode.

Source: CloudEvents 1.0.2, JSON format, section 3.1: SDKs write ``data_base64`` for any data that they hold as bytes. If
``datacontenttype`` is JSON or absent, those bytes are JSON.
"""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

from pydantic import Field, TypeAdapter
from pydantic_core import PydanticCustomError, core_schema, from_json
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope.fields import ValueOrNone
from smartpipe.envelope.structure import refuse_too_many_values
from smartpipe.envelope.validators import build_bounded_validator
from smartpipe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.errors import MessageError
    from smartpipe.events import Event
    from smartpipe.message import Attribute

_BINARY_PREFIXES = ("ce_", "ce-", "cloudevents:", "cloudevents_")
_HTTP_PREFIX = "ce-"
_CONTENT_TYPES = frozenset({"content-type", "content_type", "contenttype"})
_NOT_CONTEXT = frozenset({"data", "data_base64"})
_PRESENT = object()


class NullOrPresent:
    """Marks a value of which only its presence matters: None if it is null or missing, otherwise ``_PRESENT``."""

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        present = core_schema.with_default_schema(core_schema.none_schema(), default=_PRESENT, on_error="default")
        return core_schema.with_default_schema(present, default=None)


AnyData = Annotated[object, NullOrPresent()]


class _OtherData(TypedDict, total=False):
    data: AnyData
    data_base64: Annotated[str | None, Field(strict=True), ValueOrNone()]


class Base64Json:
    """Marks a type whose JSON is written as base64."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.chain_schema(
            [
                core_schema.no_info_after_validator_function(_decode_base64, core_schema.str_schema(strict=True)),
                core_schema.json_schema(handler(source)),
            ]
        )


_other_data = build_bounded_validator(TypeAdapter(_OtherData))


def find_other_data(body: str, limit_objects: float) -> str | None:
    """Return the base64 text of the data in *body*, "" if there is no data, or None if its data is in ``data``.

    Raises:
        DecodeError: The decoded data has too many values.
    """
    found = _other_data(body)
    if found is None or found["data"] is _PRESENT:
        return None
    text: str = found["data_base64"] or ""
    if text:
        try:
            decoded = b64decode(text).decode(errors="replace")
        except ValueError:
            return text  # the validator will say why
        refuse_too_many_values(decoded, limit_objects)
    return text


def make_empty(cls: type[Event]) -> Event | None:
    """Return an event without data; None if *cls* needs data."""
    if any(field.is_required() for field in cls.model_fields.values()):
        return None
    return cls.model_validate({})


def is_binary_mode(attributes: Mapping[str, Attribute]) -> bool:
    """Return whether message attributes hold a CloudEvent's context, as in its binary mode.

    No specification binds CloudEvents to SNS or SQS. SDKs use the prefixes of the bindings for HTTP, Kafka and AMQP.
    """
    names = [name.lower() for name in attributes]
    media_type = attributes.get("content-type", attributes.get("Content-Type"))
    structured = media_type is not None and str(media_type.value).lower().startswith("application/cloudevents")
    return not structured and any(name.startswith(_BINARY_PREFIXES) for name in names)


def read_binary_context(attributes: Mapping[str, Attribute]) -> dict[str, str]:
    """Return the context attributes of an event in binary mode, by their names without prefix."""
    context = {"specversion": "1.0"}
    for name, attribute in attributes.items():
        prefix = next((one for one in _BINARY_PREFIXES if name.lower().startswith(one)), None)
        key = "datacontenttype" if prefix is None else name[len(prefix) :].lower()
        if (prefix is None and name.lower() not in _CONTENT_TYPES) or key in _NOT_CONTEXT:
            continue
        value = attribute.value
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        context[key] = unquote(text) if prefix == _HTTP_PREFIX else text
    return context


def join_binary_mode(body: str, attributes: Mapping[str, Attribute], error: MessageError) -> str:
    """Return the CloudEvent in structured mode: with the context from *attributes*, and with *body* as its data.

    Source: CloudEvents 1.0.2, bindings for HTTP (section 3.1, also for percent-encoding), Kafka and AMQP.

    Args:
        error: Why the body is not a CloudEvent in structured mode.

    Raises:
        DecodeError: The context has no ``id``, ``source`` or ``type``, or the body is not JSON.
    """
    context = read_binary_context(attributes)
    missing = [name for name in ("id", "source", "type") if name not in context]
    if missing:
        detail = f"its attributes say that it is a CloudEvent in binary mode, but they have no {', '.join(missing)}"
        raise DecodeError("not-cloudevent", f"{error}; {detail}")
    try:
        from_json(body)  # first: the text is inserted, so it must be one value, and not the end of an object
    except ValueError as invalid:
        detail = f"the data of the CloudEvent in binary mode is not JSON: {invalid}"
        raise DecodeError("not-json", detail) from None
    return f'{json.dumps(context)[:-1]}, "data": {body}}}'


def refuse_batch(body: str) -> None:
    """Raise DecodeError if *body* is a JSON array, as in the batch mode of CloudEvents."""
    if body.lstrip().startswith("["):
        detail = (
            "the body is not a CloudEvent 1.0: it is not a JSON object but an array, as in the batch mode of "
            "CloudEvents; publish each event as one message, in structured mode"
        )
        raise DecodeError("not-cloudevent", detail)


def _decode_base64(text: str) -> str:
    try:
        return b64decode(text, validate=True).decode()
    except ValueError:
        raise PydanticCustomError("base64", "Input should be JSON in UTF-8, encoded in base64") from None
