"""Writes the data of an event as JSON that its class can read."""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import (
    PydanticSerializationError,
    SchemaSerializer,
    core_schema,
    from_json,
    to_json,
)

from smartpipe.envelope.validators import transform
from smartpipe.event_fields import find_undeclared_class, inspect_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smartpipe.events import Event

MAX_ERRORS_SHOWN = 3

_CONFIGURED = frozenset({"model", "dataclass", "typed-dict"})


class UnreadableData(ValueError):
    """A consumer would refuse the data of an event, or read it changed."""


@lru_cache(maxsize=1024)
def get_serializer(cls: type[Event]) -> Serializer:
    """Return the serializer of *cls*, which must be complete, as every class with an instance is."""
    return Serializer(cls)


class Serializer:
    """Writes events of one class, and checks for those faults that its fields allow.

    Pydantic does not notice a change in a list or a model within the event. It writes infinity as null, the value of a
    Json field where it reads text, and only the fields of the declared class.

    Args:
        is_plain: Pydantic's own serializer writes every event that has been validated as it was validated.
    """

    def __init__(self, cls: type[Event]) -> None:
        report = inspect_fields(cls.__pydantic_core_schema__)
        self.is_plain = not any(report[1:])
        self._nested = report.nested
        self._own_serializers = report.own_serializers
        self._infinite = report.infinite
        self._anything = report.anything
        self._validate = cls.__pydantic_validator__.validate_json
        self._write = cls.__pydantic_serializer__.to_json
        if report.infinite or report.json_text:
            schema = transform(cls.__pydantic_core_schema__, _write_as_read)
            self._write = SchemaSerializer(schema, _use_prebuilt=False).to_json

    def serialize(self, event: Event) -> str:
        """Return the data of *event* as JSON, by alias.

        Raises:
            UnreadableData: A value does not fit its field, is infinity or NaN, or has a class that adds fields to the
                one that is declared.
            PydanticSerializationError, UnicodeError: JSON in UTF-8 cannot represent a value.
        """
        if self._nested:
            undeclared = find_undeclared_class(event, self._nested)
            if undeclared is not None:
                message = f"it contains {undeclared}; consumers do not get added fields: declare a union of both"
                raise UnreadableData(message)
        if self._own_serializers or type(event.__pydantic_fields_set__) is not set:  # see _mark_unvalidated
            data = self._write_validated(event)
        else:
            try:
                data = self._write(event, by_alias=True, warnings="error")
            except PydanticSerializationError:  # a value of another type, which consumers may be able to convert
                data = self._write_validated(event)
        infinite = self._infinite and (b"NaN" in data or b"Infinity" in data)
        if infinite or (self._anything and b"null" in data):
            _refuse_infinity(data, event.model_dump(by_alias=True, warnings=False))
        return data.decode()

    def _write_validated(self, event: Event) -> bytes:
        data = self._write(event, by_alias=True, warnings=False)
        try:
            self._validate(data)
        except ValidationError as error:
            raise UnreadableData(_describe(error)) from None
        except Exception as error:
            message = f"a validator of its class failed: {type(error).__name__}: {error}"
            raise UnreadableData(message) from error
        return data


def _write_as_read(schema: dict[str, Any]) -> dict[str, Any]:
    """Make Json fields write text, and classes write infinity and NaN by name, where Pydantic would write null."""
    if schema.get("type") == "json" and "serialization" not in schema:
        content = schema.get("schema", core_schema.any_schema())
        return schema | {"serialization": core_schema.wrap_serializer_function_ser_schema(_write_text, schema=content)}
    config = schema.get("config", {})
    if schema.get("type") not in _CONFIGURED or config.get("ser_json_inf_nan", "null") != "null":
        return schema
    return schema | {"config": {**config, "ser_json_inf_nan": "constants"}}


def _write_text(value: Any, serialize: Callable[[Any], Any]) -> str:
    content = serialize(value)  # values of JSON; Json within Json is text already
    data = to_json(content, inf_nan_mode="constants")
    _refuse_infinity(data, content)
    return data.decode()


def _refuse_infinity(data: bytes, values: Any) -> None:
    """Raise UnreadableData if one of *values*, which were written as *data*, is a number that is not finite.

    Text may contain the same words, and a serializer may have written something else.
    """
    path = _find_infinite(from_json(data), values)
    if path is not None:
        raise UnreadableData(f"{'.'.join(path)}: infinity and NaN do not exist in JSON")


def _find_infinite(written: Any, value: Any) -> list[str] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return [] if written is None or isinstance(written, float) else None
    members: Iterable[tuple[Any, Any, Any]] = ()
    if isinstance(value, dict) and isinstance(written, dict):
        members = ((name, written.get(name), member) for name, member in value.items())
    elif isinstance(value, (list, tuple, set, frozenset, deque)) and isinstance(written, list):
        members = ((index, *pair) for index, pair in enumerate(zip(written, value, strict=False)))
    for name, *pair in members:
        path = _find_infinite(*pair)
        if path is not None:
            return [str(name), *path]
    return None


def _describe(error: ValidationError) -> str:
    errors = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_ERRORS_SHOWN]
    more = error.error_count() - len(errors)
    shown = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'event'}: {one['msg']}" for one in errors)
    return f"its class would refuse it: {shown}{f'; and {more} more' if more else ''}"
