"""From a message body to a typed event: raw or SNS-wrapped, by smartpipe or by anybody's CloudEvents."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Union

from pydantic import AwareDatetime, Field, StringConstraints, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import from_json
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope import Envelope
from smartpipe.errors import DecodeError, UnknownEventType
from smartpipe.events import contract_of
from smartpipe.telemetry import valid_traceparent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.events import Contract, Event

DEFAULT_VERSION = "1.0"
"""The version of an event whose producer did not send ``dataversion``."""

_Text = Annotated[str, StringConstraints(min_length=1, strict=True)]
_JSON_MEDIA_TYPE = r"^application/([A-Za-z0-9!#$&^_.+-]+\+)?json(\s*;.*)?$"
# Read if it is a string, and never a reason to refuse an event.
_OptionalText = Annotated[object, WithJsonSchema({"type": "string"})]


# The context attributes of an envelope, whatever its type.
_CONTEXT: dict[str, Any] = {
    "specversion": Literal["1.0"],
    "id": _Text,
    "source": _Text,
    "type": _Text,
    "dataversion": NotRequired[Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+$")]],
    "datacontenttype": NotRequired[Annotated[str, StringConstraints(pattern=_JSON_MEDIA_TYPE)] | None],
    "time": NotRequired[AwareDatetime | None],
    "partitionkey": NotRequired[_OptionalText],
    "traceparent": NotRequired[_OptionalText],
    "correlationid": NotRequired[_OptionalText],
    "causationid": NotRequired[_OptionalText],
}


class _Notification(TypedDict):
    """What marks an SNS envelope; a domain object with a ``Type`` of its own lacks the rest."""

    Type: Literal["Notification"]
    MessageId: _Text
    TopicArn: _Text
    Message: str


Context = TypedDict("Context", _CONTEXT)  # type: ignore[misc] # made at run time
_context = TypeAdapter[Any](Context)
_notification = TypeAdapter(_Notification)


class Decoder:
    """Decodes bodies into the given event classes.

    All of their envelopes are one Pydantic validator, told apart by ``type``: a good body is parsed
    once, without a dict in between. A bad one is looked at again to say what is wrong with it.

    Args:
        events: At most one class for each type and major version.
    """

    def __init__(self, events: Iterable[type[Event]]) -> None:
        self._classes = {(contract.type, contract.major): cls for cls in events for contract in [contract_of(cls)]}
        by_type: dict[str, list[type[Event]]] = {}
        for (type_, _), cls in sorted(self._classes.items()):
            by_type.setdefault(type_, []).append(cls)
        forms = [Union[tuple(map(envelope_form, classes))] for classes in by_type.values()]  # noqa: UP007 - built at run time
        form: Any = Annotated[Union[tuple(forms)], Field(discriminator="type")] if len(forms) > 1 else forms[0]  # noqa: UP007
        self._validate = TypeAdapter[dict[str, Any]](form).validator.validate_json

    def decode(self, body: str) -> Envelope:
        """Return the envelope in *body*, its data validated.

        Raises:
            DecodeError: Not JSON, not a CloudEvent, or the data does not fit the event class.
            UnknownEventType: None of the event classes has this type and major version.
        """
        try:
            return _envelope(self._validate(body))
        except ValidationError as error:
            inner = _unwrapped(body)
            if inner is None:
                raise self._explain(body, error) from None
        try:
            return _envelope(self._validate(inner))
        except ValidationError as error:
            raise self._explain(inner, error) from None

    def _explain(self, body: str, error: ValidationError) -> DecodeError | UnknownEventType:
        try:
            value = from_json(body)
        except ValueError as not_json:
            return DecodeError("not-json", f"the body is not JSON: {not_json}")
        try:
            context = _context.validate_python(value)
        except ValidationError as not_cloudevent:
            faults = _faults(not_cloudevent)
            return DecodeError("not-cloudevent", f"the body is not a CloudEvent 1.0: {_summary(faults)}", faults)
        type_, version = context["type"], context.get("dataversion", DEFAULT_VERSION)
        cls = self._classes.get((type_, int(version.partition(".")[0])))
        if cls is None:
            known = ", ".join(sorted({f"{known} {major}.x" for known, major in self._classes}))
            return UnknownEventType(f"no handler takes {type_!r} version {version}; this queue's handlers take {known}")
        try:
            TypeAdapter(envelope_form(cls)).validate_json(body)
        except ValidationError as invalid:
            error = invalid  # of this class alone, not of the whole union
        faults = _faults(error)
        return DecodeError("invalid-data", f"the data does not fit {cls.__name__}: {_summary(faults)}", faults)


def envelope_form(cls: type[Event]) -> Any:
    """Return the TypedDict of the whole envelope around *cls*, for one type and one major version."""
    contract = contract_of(cls)
    fields = dict(_CONTEXT)
    fields["type"] = Literal[contract.type]
    version = Annotated[str, StringConstraints(pattern=rf"^{contract.major}\.[0-9]+$")]
    # Without a dataversion an event is 1.0, so any other major version has to name itself.
    fields["dataversion"] = NotRequired[version] if _is_default(contract) else version
    fields["data"] = cls
    make: Any = TypedDict
    return make(f"{cls.__name__}Envelope", fields)


def _is_default(contract: Contract) -> bool:
    return contract.major == int(DEFAULT_VERSION.partition(".")[0])


def _envelope(fields: dict[str, Any]) -> Envelope:
    get = fields.get
    return Envelope(
        fields["id"],
        fields["source"],
        fields["type"],
        get("dataversion", DEFAULT_VERSION),
        get("time"),
        fields["data"],
        _text(get("partitionkey")),
        valid_traceparent(get("traceparent")),
        _text(get("correlationid")),
        _text(get("causationid")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _unwrapped(body: str) -> str | None:
    """Return the message inside of an SNS envelope, or None when *body* is none."""
    try:
        return _notification.validate_json(body)["Message"]
    except ValidationError:
        return None


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
