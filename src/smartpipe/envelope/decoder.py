"""From a message body to a typed event: raw or SNS-wrapped, by smartpipe or by anybody's CloudEvents."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Union

from pydantic import AwareDatetime, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic_core import SchemaValidator, core_schema, from_json
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope import Envelope
from smartpipe.errors import ConfigError, DecodeError, UnknownEventType
from smartpipe.events import contract_of
from smartpipe.message import Attribute, made
from smartpipe.payloads.packing import RESERVED_ATTRIBUTES
from smartpipe.telemetry import TRACEPARENT_PATTERNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from smartpipe.events import Contract, Event

DEFAULT_VERSION = "1.0"
"""The version of an event whose producer did not send ``dataversion``."""

MAX_ID_CHARACTERS = 256
"""Of a correlation or causation id. A longer one is ignored: it would go into every event that follows."""

_Text = Annotated[str, StringConstraints(min_length=1, strict=True)]
_JSON_MEDIA_TYPE = r"^[Aa]pplication/([A-Za-z0-9!#$&^_.+-]+\+)?[Jj][Ss][Oo][Nn](\s*;.*)?$"


class _Ignored:
    """Marks what is read if it is a string that fits, and otherwise is None: never a reason to refuse an event."""

    def __init__(self, *patterns: str, max_length: int | None = None) -> None:
        self._form = core_schema.chain_schema(
            [core_schema.str_schema(strict=True, min_length=1, max_length=max_length)]
            + [core_schema.str_schema(pattern=pattern) for pattern in patterns]
        )

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.with_default_schema(self._form, default=None, on_error="default")

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> dict[str, Any]:
        return {"type": "string"}


_HandedOn = Annotated[object, _Ignored(max_length=MAX_ID_CHARACTERS)]

# The context attributes of an envelope, whatever its type.
_CONTEXT: dict[str, Any] = {
    "specversion": Literal["1.0"],
    "id": _Text,
    "source": _Text,
    "type": _Text,
    "dataversion": NotRequired[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}\.[0-9]{1,9}$")]],
    "datacontenttype": NotRequired[Annotated[str, StringConstraints(pattern=_JSON_MEDIA_TYPE)] | None],
    "time": NotRequired[AwareDatetime | None],
    "partitionkey": NotRequired[Annotated[object, _Ignored()]],
    "traceparent": NotRequired[Annotated[object, _Ignored(*TRACEPARENT_PATTERNS)]],
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


class _Notification(TypedDict):
    """What marks an SNS envelope; a domain object with a ``Type`` of its own lacks the rest."""

    Type: Literal["Notification"]
    MessageId: _Text
    TopicArn: _Text
    Message: str
    MessageAttributes: NotRequired[object]


Context = TypedDict("Context", _CONTEXT)  # type: ignore[misc] # made at run time
_context = TypeAdapter[Any](Context)
_notification = TypeAdapter(_Notification)


class Packed(Exception):
    """What SNS wrapped is no envelope yet: its attributes say that it is compressed, or waits in S3."""

    def __init__(self, body: str, attributes: Mapping[str, Attribute]) -> None:
        self.body = body
        self.attributes = attributes
        super().__init__("the message inside of SNS's envelope is packed")


class Decoder:
    """Decodes bodies into the given event classes.

    The envelopes of all types that have one class are one Pydantic validator, told apart by ``type``: a
    good body of those is parsed once, without a dict in between. Any other body is looked at again:
    it may be SNS-wrapped, of a type with several major versions, or bad, and then is told why.

    Args:
        events: At most one class for each type and major version.

    Raises:
        ConfigError: A class names a type that is nowhere.
    """

    def __init__(self, events: Iterable[type[Event]]) -> None:
        forms = {
            (contract.type, contract.major): envelope_form(cls) for cls in events for contract in [contract_of(cls)]
        }
        self._forms = {key: _adapter(form) for key, form in forms.items()}
        types = Counter(type_ for type_, _ in forms)
        single = [form for (type_, _), form in forms.items() if types[type_] == 1]
        form: Any = Union[tuple(single)] if single else None  # noqa: UP007 - built at run time
        if len(single) > 1:
            form = Annotated[form, Field(discriminator="type")]
        self._validate = _validator(form) if single else None

    def decode(self, body: str) -> Envelope:
        """Return the envelope in *body*, its data validated.

        Raises:
            DecodeError: Not JSON, not a CloudEvent, or the data does not fit the event class.
            UnknownEventType: None of the event classes has this type and major version.
            Packed: SNS wrapped it, and it has to be unpacked first.
        """
        try:
            if self._validate is not None:
                return _envelope(self._validate(body))
        except ValidationError:
            pass  # looked at step by step below, which says why
        except Exception as error:
            raise _broken_validator(error) from error
        return self._decode_slowly(unwrapped(body) or body)

    def _decode_slowly(self, body: str) -> Envelope:
        """Decode step by step, so that each has its own error."""
        try:
            value = from_json(body)
        except ValueError as error:
            raise DecodeError("not-json", f"the body is not JSON: {error}") from None
        try:
            context = _context.validate_python(value)
        except ValidationError as error:
            faults = _faults(error)
            detail = f"the body is not a CloudEvent 1.0: {_summary(faults)}"
            raise DecodeError("not-cloudevent", detail, faults) from None
        type_, version = context["type"], context.get("dataversion", DEFAULT_VERSION)
        form = self._forms.get((type_, int(version.partition(".")[0])))
        if form is None:
            known = ", ".join(sorted({f"{known} {major}.x" for known, major in self._forms}))
            msg = f"no handler takes {type_!r} version {version}; this queue's handlers take {known}"
            raise UnknownEventType(msg)
        try:
            return _envelope(form.validate_json(body))
        except ValidationError as error:
            faults = _faults(error)
            detail = f"the data does not fit {type_} {version}: {_summary(faults)}"
            raise DecodeError("invalid-data", detail, faults) from None
        except Exception as error:
            raise _broken_validator(error) from error


def _validator(form: Any) -> Callable[[str], Any]:
    """Return what reads and validates a body; of the strings in it, ids for example, only names are worth a cache."""
    adapter = _adapter(form)
    if type(adapter.validator) is not SchemaValidator:  # a plugin of Pydantic's wants to be told
        return adapter.validator.validate_json
    return SchemaValidator(adapter.core_schema, {"cache_strings": "keys"}).validate_json


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
    """Say that a validator of the event class raised what Pydantic does not expect of one."""
    return DecodeError("invalid-data", f"a validator of the event class failed: {type(error).__name__}: {error!r}")


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
        return made(Envelope, _in_order(fields))
    except KeyError:  # of another producer
        return made(Envelope, _in_order({**_ABSENT, **fields}))


def unwrapped(body: str) -> str | None:
    """Return the message inside of an SNS envelope, or None when *body* is none."""
    try:
        notification = _notification.validate_json(body)
    except ValidationError:
        return None
    attributes = notification.get("MessageAttributes")
    packing = {
        name: Attribute(str(fields.get("Type")), str(fields.get("Value")))
        for name, fields in (attributes.items() if isinstance(attributes, dict) else ())
        if name in RESERVED_ATTRIBUTES and isinstance(fields, dict)
    }
    if packing:
        raise Packed(notification["Message"], packing)
    return notification["Message"]


def _faults(error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's error list without the input, which may be personal and is in the dead letter anyway."""
    return [dict(fault) for fault in error.errors(include_url=False, include_context=False, include_input=False)]


def _summary(faults: list[dict[str, Any]]) -> str:
    """Name the first few faults by their place."""
    shown = [
        f"{'.'.join(map(str, fault['loc'])) or 'body'}: {re.sub(r'^Input ', 'input ', fault['msg'])}"
        for fault in faults[:3]
    ]
    return "; ".join(shown) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")  # noqa: PLR2004
