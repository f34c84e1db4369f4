"""The fields of an envelope, as types that Pydantic validates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import AwareDatetime, StringConstraints
from pydantic_core import core_schema
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope.encode import MAX_ID_CHARACTERS
from smartpipe.envelope.traceparent import TRACEPARENT_PATTERNS
from smartpipe.events import contract_of

if TYPE_CHECKING:
    from smartpipe.events import Event

DEFAULT_VERSION = "1.0"
"""The version of an event whose producer did not send ``dataversion``."""
MAX_TYPE_CHARACTERS = 255

_Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARACTERS, strict=True)]
_Type = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TYPE_CHARACTERS, strict=True)]
_VERSION = r"^[0-9]{1,9}\.[0-9]{1,9}$"
_JSON_MEDIA_TYPE = r"^[A-Za-z0-9!#$&^_.+-]+/([A-Za-z0-9!#$&^_.+-]+\+)?[Jj][Ss][Oo][Nn](\s*;.*)?$"
"""Any media type whose subtype is ``json`` or ends in ``+json``, in any case (CloudEvents JSON format, section 3.1)."""


class TextOrNone:
    """Marks a string that is None if it is invalid, so that it is never a reason to refuse an event."""

    def __init__(self, *patterns: str) -> None:
        self._schema = core_schema.chain_schema(
            [core_schema.str_schema(strict=True, min_length=1, max_length=MAX_ID_CHARACTERS)]
            + [core_schema.str_schema(pattern=pattern) for pattern in patterns]
        )

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.with_default_schema(self._schema, default=None, on_error="default")

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> dict[str, Any]:
        return {"type": "string"}


class ValueOrNone:
    """Marks a value of any type that is None if it is invalid."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_default_schema(handler(source), default=None, on_error="default")


class NullOrVersion:
    """Marks a version that is ``DEFAULT_VERSION`` if it is null (CloudEvents JSON format, section 2.2)."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        null = core_schema.no_info_after_validator_function(lambda _: DEFAULT_VERSION, core_schema.none_schema())
        return core_schema.union_schema(
            [handler(source), null],
            mode="left_to_right",
            custom_error_type="dataversion",
            custom_error_message="Input should be a version as text, major.minor, such as 1.0",
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return handler(schema["choices"][0])  # producers leave the attribute out instead


class JsonMediaType:
    """Marks a string that is a media type of JSON."""

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.custom_error_schema(
            core_schema.str_schema(pattern=_JSON_MEDIA_TYPE),
            custom_error_type="media_type",
            custom_error_message="Input should be a media type of JSON, such as application/json",
        )


# Events that a handler publishes inherit these, so a value that is too long must not spread.
_Inherited = Annotated[object, TextOrNone()]

_CONTEXT: dict[str, Any] = {
    "specversion": Literal["1.0"],
    "id": _Id,
    "source": _Id,
    "type": _Type,
    "dataversion": NotRequired[Annotated[str, StringConstraints(pattern=_VERSION), NullOrVersion()]],
    "datacontenttype": NotRequired[Annotated[str, JsonMediaType()] | None],
    "time": NotRequired[AwareDatetime | None],
    "partitionkey": NotRequired[_Inherited],
    "traceparent": NotRequired[Annotated[object, TextOrNone(*TRACEPARENT_PATTERNS)]],
    "correlationid": NotRequired[_Inherited],
    "causationid": NotRequired[_Inherited],
}

CONTEXT_NAMES = frozenset(_CONTEXT)
"""The names of the context attributes that an envelope has."""

Context = TypedDict("Context", _CONTEXT)  # type: ignore[misc] # made at run time
"""The context attributes of an envelope of any type."""


class TypeAndVersion(TypedDict, total=False):
    """The two context attributes that select the class of an event."""

    type: Annotated[_Type, ValueOrNone()]
    dataversion: Annotated[str, StringConstraints(pattern=_VERSION), NullOrVersion(), ValueOrNone()]


def envelope_fields(cls: type[Event], data_field: str = "data", data_type: Any = None) -> Any:
    """Return the TypedDict of an envelope around *cls*, for its type and major version.

    Args:
        data_field: The field that has the data.
        data_type: The type of that field, by default *cls*.
    """
    contract = contract_of(cls)
    fields = {**context_fields(contract.major), "type": Literal[contract.type]}
    fields[data_field] = data_type or cls
    make: Any = TypedDict
    return make(f"{cls.__name__}Envelope", fields)


def context_fields(major: int) -> dict[str, Any]:
    """Return the fields of the context attributes of events of one major version, of any type."""
    version = Annotated[str, StringConstraints(pattern=rf"^{major}\.[0-9]{{1,9}}$")]
    # An event without a dataversion has version 1.0, so events of other major versions must have one.
    optional = major == int(DEFAULT_VERSION.partition(".")[0])
    return {**_CONTEXT, "dataversion": NotRequired[Annotated[version, NullOrVersion()]] if optional else version}
