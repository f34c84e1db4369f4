"""From a message body to a typed event: raw or SNS-wrapped, by smartpipe or by anybody's CloudEvents."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NotRequired, TypeAlias, Union

from pydantic import AwareDatetime, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic_core import core_schema
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope.encode import MAX_ID_CHARACTERS, Envelope
from smartpipe.envelope.encoding import RESERVED_ATTRIBUTES
from smartpipe.envelope.structure import refuse_too_many_values
from smartpipe.envelope.traceparent import TRACEPARENT_PATTERNS
from smartpipe.envelope.unions import TooManyTries
from smartpipe.envelope.validators import (
    MAX_FORBIDDEN_FIELDS,
    TooManyForbiddenFields,
    bounded_validator,
    cooperative_explaining_validator,
    cooperative_validator,
    explaining_validator,
)
from smartpipe.errors import ConfigError, DecodeError, UnknownEventType
from smartpipe.events import contract_of
from smartpipe.message import Attribute, construct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from smartpipe.events import Contract, Event

DEFAULT_VERSION = "1.0"
"""The version of an event whose producer did not send ``dataversion``."""

MAX_TYPE_CHARACTERS = 255
MAX_ERRORS_READ = 1_000
"""Pydantic makes a dict of each error. Of a body with more errors only their number is reported."""
MAX_ERRORS_KEPT = 20
UNPARSED_CHARACTERS = 65_536
"""Whether a longer body is JSON is not looked for where it can be no object."""
MAX_ERROR_CHARACTERS = 500
MAX_NAME_CHARACTERS = 100

_Text = Annotated[str, StringConstraints(min_length=1, strict=True)]
_Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARACTERS, strict=True)]
_Type = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TYPE_CHARACTERS, strict=True)]
_VERSION = r"^[0-9]{1,9}\.[0-9]{1,9}$"
_JSON_MEDIA_TYPE = r"^[Aa]pplication/([A-Za-z0-9!#$&^_.+-]+\+)?[Jj][Ss][Oo][Nn](\s*;.*)?$"


class TextOrNone:
    """Marks a string that is read if it fits, and is None otherwise: never a reason to refuse an event."""

    def __init__(self, *patterns: str) -> None:
        self._form = core_schema.chain_schema(
            [core_schema.str_schema(strict=True, min_length=1, max_length=MAX_ID_CHARACTERS)]
            + [core_schema.str_schema(pattern=pattern) for pattern in patterns]
        )

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.with_default_schema(self._form, default=None, on_error="default")

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> dict[str, Any]:
        return {"type": "string"}


# A longer one is ignored, because it would go into every event that follows.
_HandedOn = Annotated[object, TextOrNone()]

# The context attributes of an envelope, whatever its type.
_CONTEXT: dict[str, Any] = {
    "specversion": Literal["1.0"],
    "id": _Id,
    "source": _Id,
    "type": _Type,
    "dataversion": NotRequired[Annotated[str, StringConstraints(pattern=_VERSION)]],
    "datacontenttype": NotRequired[Annotated[str, StringConstraints(pattern=_JSON_MEDIA_TYPE)] | None],
    "time": NotRequired[AwareDatetime | None],
    "partitionkey": NotRequired[_HandedOn],
    "traceparent": NotRequired[Annotated[object, TextOrNone(*TRACEPARENT_PATTERNS)]],
    "correlationid": NotRequired[_HandedOn],
    "causationid": NotRequired[_HandedOn],
}
_ABSENT = {"dataversion": DEFAULT_VERSION, "time": None}
_in_order = itemgetter(
    "id",
    "source",
    "type",
    "dataversion",
    "time",
    "data",
    "partitionkey",
    "traceparent",
    "correlationid",
    "causationid",
)


class _SnsAttribute(TypedDict):
    """A message attribute as SNS writes it into its envelope."""

    Type: _Text
    Value: _Text


class _OrNone:
    """Marks a value that is None where it does not fit."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_default_schema(handler(source), default=None, on_error="default")


# Only the attributes that say how to read the body: others could hold anything.
_Reserved: Any = TypedDict(  # type: ignore[misc] # made at run time
    "_Reserved", {name: NotRequired[Annotated[_SnsAttribute, _OrNone()]] for name in sorted(RESERVED_ATTRIBUTES)}
)


class _Notification(TypedDict, total=False):
    """What marks an SNS envelope; a domain object with a ``Type`` of its own lacks the rest.

    Nothing is required: Pydantic keeps a copy of the whole body with each field that it misses.
    """

    Type: Annotated[Literal["Notification"], _OrNone()]
    MessageId: Annotated[_Text, _OrNone()]
    TopicArn: Annotated[_Text, _OrNone()]
    Message: Annotated[str, _OrNone()]
    MessageAttributes: Annotated[_Reserved, _OrNone()]


class _Kind(TypedDict, total=False):
    """The two context attributes that say which class an event has."""

    type: Annotated[_Type, _OrNone()]
    dataversion: Annotated[str, StringConstraints(pattern=_VERSION), _OrNone()]


Context = TypedDict("Context", _CONTEXT)  # type: ignore[misc] # made at run time
_notification = bounded_validator(TypeAdapter(_Notification))
_kind = bounded_validator(TypeAdapter(_Kind))
_context = explaining_validator(TypeAdapter[Any](Context))
_context_of_large = cooperative_explaining_validator(TypeAdapter[Any](Context))


_Validate: TypeAlias = "Callable[[str], Any]"


class _Validators(NamedTuple):
    """Functions that parse and validate a body, and return None for one that does not fit.

    Args:
        any_type: For the types with one major version, told apart by ``type``; None where there are none.
        by_type: For each type and major version.
        context: For the context attributes alone; it raises ValidationError.
        explain: Returns a function for a type and major version that raises ValidationError.
    """

    any_type: _Validate | None
    by_type: Mapping[tuple[str, int], _Validate]
    context: _Validate
    explain: Callable[[TypeAdapter[Any]], _Validate]


class EncodedBody(Exception):
    """What SNS wrapped is no envelope yet: its attributes say that it is compressed, or waits in S3."""

    def __init__(self, body: str, attributes: Mapping[str, Attribute]) -> None:
        self.body = body
        self.attributes = attributes
        super().__init__("the message inside of SNS's envelope is packed")


class UndecidedUnions(DecodeError):
    """The data has unions of recursive classes that would have to be tried more often than there is time for."""


class Decoder:
    """Decodes bodies into the given event classes.

    The envelopes of all types that have one class are one Pydantic validator, told apart by ``type``: a
    good body of those is parsed once, without a dict in between. Any other body is looked at again: it may be
    SNS-wrapped, of a type with several major versions, or bad, and then the error says why.

    Args:
        events: At most one class for each type and major version.

    Raises:
        ConfigError: A class names a type that does not exist.
    """

    def __init__(self, events: Iterable[type[Event]]) -> None:
        forms = {
            (contract.type, contract.major): envelope_form(cls) for cls in events for contract in [contract_of(cls)]
        }
        self._adapters = {key: _adapter(form) for key, form in forms.items()}
        types = Counter(type_ for type_, _ in forms)
        self._told_apart = {key for key in forms if types[key[0]] == 1}
        single = [form for key, form in forms.items() if key in self._told_apart]
        form: Any = Union[tuple(single)] if single else None  # noqa: UP007 - built at run time
        if len(single) > 1:
            form = Annotated[form, Field(discriminator="type")]
        self._adapter = _adapter(form) if single else None
        self._small = self._validators(bounded_validator, _context, explaining_validator)

    @cached_property
    def _large(self) -> _Validators:
        return self._validators(cooperative_validator, _context_of_large, cooperative_explaining_validator)

    def _validators(
        self,
        build: Callable[[TypeAdapter[Any]], _Validate],
        context: _Validate,
        explain: Callable[[TypeAdapter[Any]], _Validate],
    ) -> _Validators:
        by_type = {key: build(adapter) for key, adapter in self._adapters.items()}
        any_type = None if self._adapter is None else build(self._adapter)
        return _Validators(any_type, by_type, context, lru_cache(maxsize=64)(explain))

    def decode(self, body: str) -> Envelope:
        """Return the envelope in *body*, its data validated.

        Raises:
            DecodeError: Not JSON, not a CloudEvent, or the data does not fit the event class.
            UnknownEventType: None of the event classes has this type and major version.
            UndecidedUnions: ``decode_large`` has the time for more tries.
            Packed: SNS wrapped it, and it has to be unpacked first.
        """
        return self._decode(body, self._small, math.inf)

    def decode_large(self, body: str, limit_objects: int) -> Envelope:
        """Do the same for a body of any size, in a thread: others run meanwhile.

        Raises:
            DecodeError: Also of the kind ``too-many-values``.
        """
        refuse_too_many_values(body, limit_objects)
        if len(body) > UNPARSED_CHARACTERS and not body.lstrip().startswith("{"):  # Pydantic would parse it in one go
            raise DecodeError("not-cloudevent", "the body is not a CloudEvent 1.0: it is not a JSON object")
        return self._decode(body, self._large, limit_objects)

    def _decode(self, body: str, validators: _Validators, limit_objects: float) -> Envelope:
        fields = _validated(validators.any_type, body) if validators.any_type else None
        if fields is None:
            inner = unwrap(body)
            if inner:
                refuse_too_many_values(inner, limit_objects)  # they were in a string before
                body = inner
            kind = _kind_of(body)
            again = inner or kind not in self._told_apart  # else it has been validated so
            validate = validators.by_type.get(kind) if again else None
            fields = _validated(validate, body) if validate else None
        return _envelope(self._examine(body, validators) if fields is None else fields)

    def _examine(self, body: str, validators: _Validators) -> dict[str, Any]:
        """Find out, step by step, why *body* was refused, and raise the error that says so."""
        context = _context_of(body, validators.context)
        type_, version = context["type"], context.get("dataversion", DEFAULT_VERSION)
        adapter = self._adapters.get(_key(type_, version))
        if adapter is None:
            known = ", ".join(sorted({f"{known} {major}.x" for known, major in self._adapters}))
            msg = f"no handler takes {type_!r} version {version}; this queue's handlers take {known}"
            raise UnknownEventType(msg)
        try:
            validators.explain(adapter)(body)
            # It found nothing wrong: Pydantic itself decides.
            fields: dict[str, Any] = adapter.validator.validate_json(body)
        except ValidationError as error:
            faults, summary = _reported(error)
        except TooManyForbiddenFields:
            faults, summary = [], f"it has more than {MAX_FORBIDDEN_FIELDS} fields that the event class forbids"
        except Exception as error:
            raise _broken_validator(error) from error
        else:
            return fields
        raise DecodeError("invalid-data", f"the data does not fit {type_} {version}: {summary}", faults)


def _validated(validate: _Validate, body: str) -> dict[str, Any] | None:
    try:
        fields: dict[str, Any] | None = validate(body)
    except ValidationError:  # not JSON
        return None
    except TooManyTries as error:
        raise UndecidedUnions("invalid-data", f"the data cannot be validated: {error}") from None
    except Exception as error:
        raise _broken_validator(error) from error
    return fields


def _kind_of(body: str) -> tuple[str, int]:
    try:
        found = _kind(body) or {}
    except ValidationError:  # not JSON
        found = {}
    return _key(found.get("type") or "", found.get("dataversion", DEFAULT_VERSION) or "0")


def _key(type_: str, version: str) -> tuple[str, int]:
    return type_, int(version.partition(".")[0])


def _context_of(body: str, validate: _Validate) -> dict[str, Any]:
    try:
        context: dict[str, Any] = validate(body)
    except ValidationError as error:
        faults, summary = _reported(error)
        if faults and faults[0]["type"] == "json_invalid":
            raise DecodeError("not-json", f"the body is not JSON: {summary.partition('JSON: ')[2]}") from None
        raise DecodeError("not-cloudevent", f"the body is not a CloudEvent 1.0: {summary}", faults) from None
    return context


def _adapter(form: Any) -> TypeAdapter[Any]:
    adapter = TypeAdapter[Any](form)
    try:
        adapter.rebuild()  # if a class names another that was not there yet
    except PydanticUndefinedAnnotation as error:
        msg = f"an event class, or a model in one, has a field of type {error.name!r}, which its module does not define"
        raise ConfigError(msg) from None
    return adapter


@lru_cache(maxsize=1024)
def decoder_of(events: frozenset[type[Event]]) -> Decoder:
    """Share validators between queues of the same events: each is built of Rust's objects, which crowd the cache."""
    return Decoder(events)


def _broken_validator(error: Exception) -> DecodeError:
    """Return the DecodeError for a validator of the event class that raised what Pydantic does not expect of one."""
    try:
        text = repr(error)[:MAX_ERROR_CHARACTERS]
    except Exception:  # noqa: BLE001 - a broken __repr__ must not keep a message from its dead-letter queue
        text = "(its text cannot be had)"
    return DecodeError("invalid-data", f"a validator of the event class failed: {type(error).__name__}: {text}")


def envelope_form(cls: type[Event]) -> Any:
    """Return the TypedDict of the whole envelope around *cls*, for one type and one major version."""
    contract = contract_of(cls)
    fields = dict(_CONTEXT)
    fields["type"] = Literal[contract.type]
    version = Annotated[str, StringConstraints(pattern=rf"^{contract.major}\.[0-9]{{1,9}}$")]
    # Without a dataversion an event is 1.0, so any other major version has to name itself.
    fields["dataversion"] = NotRequired[version] if _is_default(contract) else version
    fields["data"] = cls
    make: Any = TypedDict
    return make(f"{cls.__name__}Envelope", fields)


def _is_default(contract: Contract) -> bool:
    return contract.major == int(DEFAULT_VERSION.partition(".")[0])


def _envelope(fields: dict[str, Any]) -> Envelope:
    try:
        return construct(Envelope, _in_order(fields))
    except KeyError:  # of another producer
        return construct(Envelope, _in_order({**_ABSENT, **fields}))


def unwrap(body: str) -> str | None:
    """Return the message inside of an SNS envelope, or None when *body* is none.

    Raises:
        Packed: The attributes in SNS's envelope say that the message is compressed, or waits in S3.
    """
    try:
        notification = _notification(body)
    except ValidationError:  # not JSON
        return None
    if notification is None or None in map(notification.get, ("Type", "MessageId", "TopicArn", "Message")):
        return None
    message: str = notification["Message"]
    attributes = notification.get("MessageAttributes") or {}
    packing = {name: Attribute(fields["Type"], fields["Value"]) for name, fields in attributes.items() if fields}
    if packing:
        raise EncodedBody(message, packing)
    return message


def _reported(error: ValidationError) -> tuple[list[dict[str, Any]], str]:
    """Return the first of Pydantic's errors and a sentence about all of them, both bounded.

    The errors are without the input, which may be personal and is in the dead letter anyway.
    """
    count = error.error_count()
    if count > MAX_ERRORS_READ:
        return [], f"{count:,} errors"
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    faults: list[dict[str, Any]] = [
        {"type": one["type"], "loc": tuple(map(_short, one["loc"])), "msg": one["msg"][:MAX_ERROR_CHARACTERS]}
        for one in errors[:MAX_ERRORS_KEPT]
    ]
    first = [
        f"{'.'.join(map(str, fault['loc'])) or 'body'}: {re.sub(r'^Input ', 'input ', fault['msg'])}"
        for fault in faults[:3]
    ]
    more = f"; and {count - 3} more" if count > 3 else ""  # noqa: PLR2004
    return faults, "; ".join(first) + more


def _short(name: int | str) -> int | str:
    return name[:MAX_NAME_CHARACTERS] if isinstance(name, str) else name
