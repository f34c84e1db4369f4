"""Messages that are not events of smartpipe: matchers, the types that raw handlers take, and the reader of bodies.

Each raw handler takes a RawType: a model, and a matcher that selects its messages. ``smartpipe.external`` has
ready-made models and matchers.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import from_json

from smartpipe.envelope.decode import build_adapter
from smartpipe.envelope.decode_errors import describe_failure, summarize_errors
from smartpipe.envelope.encode import MAX_ID_CHARACTERS, Envelope
from smartpipe.envelope.fields import DEFAULT_VERSION
from smartpipe.envelope.validators import (
    TooManyForbiddenFields,
    build_cooperative_explaining_validator,
    build_explaining_validator,
)
from smartpipe.errors import ConfigError, DecodeError, IgnoredMessage, MessageError, UnknownEventType
from smartpipe.events import Event
from smartpipe.names import name_of, without_partials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from smartpipe.message import Attribute, Message

    Match: TypeAlias = "Matcher | Callable[[RawMessage], bool]"

UNTYPED = (dict, str)
"""The types of raw handlers that are not models: a JSON object, and the text of the body."""


class RawMessage:
    """A message as matchers see it: decompressed, fetched from S3, and outside of its SNS notification.

    Args:
        body: The text of the body.
        attributes: The message attributes, as in a raw delivery.
    """

    def __init__(self, body: str, attributes: Mapping[str, Attribute]) -> None:
        self.body = body
        self.attributes = attributes

    @cached_property
    def json(self) -> Any:
        """The body as parsed JSON, or None if it is not JSON."""
        try:
            return from_json(self.body)
        except ValueError:
            return None


class Matcher:
    """Selects messages. Combine matchers with ``&``, ``|`` and ``~``. Subclasses define ``__call__``."""

    __slots__ = ()

    def __call__(self, message: RawMessage) -> bool:
        """Return whether the matcher selects *message*."""
        raise NotImplementedError

    def __and__(self, other: Match) -> Matcher:
        """Select the messages that both select."""
        return _Both(self, to_matcher(other))

    def __or__(self, other: Match) -> Matcher:
        """Select the messages that one of them selects."""
        return _Either(self, to_matcher(other))

    def __invert__(self) -> Matcher:
        """Select all other messages."""
        return _Not(self)


@dataclass(frozen=True, slots=True)
class Where(Matcher):
    """Selects the messages for which a function returns true."""

    function: Callable[[RawMessage], bool]

    def __post_init__(self) -> None:
        """Check the function. The result of one that is async would always be true."""
        function: Any = self.function
        if not callable(function):
            raise ConfigError(f"where({function!r}): write a function that takes the RawMessage and returns a bool")
        inner: Any = without_partials(function)
        if any(map(inspect.iscoroutinefunction, (inner, type(inner).__call__))):
            raise ConfigError(
                f"matcher {name_of(function)} is async, and matchers run without I/O while a message is read: "
                "write a def function"
            )

    def __call__(self, message: RawMessage) -> bool:
        """Return the result of the function."""
        return bool(self.function(message))


@dataclass(frozen=True, slots=True)
class _Both(Matcher):
    one: Matcher
    other: Matcher

    def __call__(self, message: RawMessage) -> bool:
        return self.one(message) and self.other(message)


@dataclass(frozen=True, slots=True)
class _Either(Matcher):
    one: Matcher
    other: Matcher

    def __call__(self, message: RawMessage) -> bool:
        return self.one(message) or self.other(message)


@dataclass(frozen=True, slots=True)
class _Not(Matcher):
    one: Matcher

    def __call__(self, message: RawMessage) -> bool:
        return not self.one(message)


def to_matcher(match: Match) -> Matcher:
    """Return a matcher unchanged, and a function as a matcher.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(match, Matcher):
        return match
    if not callable(match):
        msg = (
            f'match={match!r} is neither a matcher nor a function: write match=field("kind", "order"), with field '
            "from smartpipe.external, or a function that takes the RawMessage"
        )
        raise ConfigError(msg)
    return Where(match)


@dataclass(frozen=True, slots=True)
class RawContext:
    """The context of an external message, as far as its body has one: for logs, claims, metrics and caused events.

    Args:
        id: The same for each copy of the message, and for no other of its source. By default the id of the SQS message.
        source: The system that sent it. By default the name of the model.
        time: When it happened. By default, and without a time zone, when SQS got the message.
    """

    id: str | None = None
    source: str | None = None
    time: datetime | None = None


class ExternalModel(BaseModel):
    """Base of models of external messages that select their messages themselves and know their context.

    Fields are read by their names in camel case, as in JSON of AWS. Unknown fields are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True)

    @classmethod
    def get_matcher(cls) -> Matcher | None:
        """Return the matcher that applies in addition to that of the handler."""
        return None

    @classmethod
    def is_test(cls, message: RawMessage) -> bool:  # noqa: ARG003 - for subclasses
        """Return whether *message* only tests the connection. It is deleted, and no handler is called.

        Args:
            message: The message, before any matcher is asked.
        """
        return False

    def get_context(self) -> RawContext:
        """Return the id, the source and the time of the message, as far as it has them."""
        return RawContext()


@dataclass(frozen=True, eq=False)
class RawType:
    """The type of the messages of raw handlers that share a model and a matcher on one queue.

    Args:
        name: The name in logs and metrics, unique on its queue. Types of one model are numbered, as in ``Row#2``.
        model: A subclass of BaseModel, ``dict`` or ``str``.
        match: The matcher of the declaration, without that of the model. None selects every message.
    """

    name: str
    model: type[Any]
    match: Matcher | None

    @cached_property
    def matcher(self) -> Matcher | None:
        """The matcher of the declaration, combined with that of the model.

        Raises:
            ConfigError: The matcher of the model is not a matcher.
        """
        own = self.model.get_matcher() if issubclass(self.model, ExternalModel) else None
        if own is not None and not isinstance(own, Matcher):
            msg = f"get_matcher() of {self.name} returned {own!r:.100}, which is neither a matcher nor None"
            raise ConfigError(msg)
        return own & self.match if own and self.match else own or self.match

    @cached_property
    def validators(self) -> tuple[TypeAdapter[Any], Callable[[str], Any], Callable[[str], Any]]:
        """Validate a body: Pydantic's own validator, and one each for small and large bodies that bounds errors.

        Raises:
            ConfigError: The model refers to a type that does not exist.
        """
        adapter = build_adapter(self.model)
        return adapter, build_explaining_validator(adapter), build_cooperative_explaining_validator(adapter)

    @property
    def field_names(self) -> tuple[str, ...]:
        """The names of the fields by which an idempotent handler may claim."""
        return tuple(self.model.model_fields) if issubclass(self.model, BaseModel) else ()

    @property
    def knows_context(self) -> bool:
        """Whether the model may know the id of a message."""
        return issubclass(self.model, ExternalModel) and self.model.get_context is not ExternalModel.get_context

    def is_test(self, message: RawMessage) -> bool:
        """Return whether *message* only tests the connection."""
        return issubclass(self.model, ExternalModel) and self.model.is_test(message)


def is_model(model: Any) -> TypeGuard[type[Any]]:
    """Return whether *model* is one of ``UNTYPED``, or a class of Pydantic."""
    return isinstance(model, type) and (model in UNTYPED or issubclass(model, BaseModel))


def validate_model(model: Any) -> None:
    """Raise ConfigError if raw handlers cannot take *model*."""
    hint = "write @service.subscribe_raw(Model, match=...), with a Pydantic model, dict or str"
    if not is_model(model) or model is BaseModel:
        raise ConfigError(f"subscribe_raw({model!r}): {hint}")
    if issubclass(model, Event):
        msg = (
            f"subscribe_raw({model.__qualname__}): it is an event, which subscribe() takes. For JSON of another form, "
            f"{hint}"
        )
        raise ConfigError(msg)


class RawReader:
    """Reads the messages of one queue that are not events of its handlers.

    Raises:
        ConfigError: A model refers to a type that does not exist.
    """

    def __init__(self, types: Sequence[RawType]) -> None:
        self._types = types
        for one in types:
            _ = one.validators

    def read(self, message: Message, body: str, error: MessageError, *, large: bool) -> Envelope:
        """Return an envelope around the data for the first type whose matcher selects the message.

        Args:
            message: With the attributes that it has in a raw delivery.
            body: The text of its body, decompressed and unwrapped.
            error: Why the message is not an event.
            large: Whether the body is large. It is then read in a thread.

        Raises:
            DecodeError: The body does not fit the model.
            IgnoredMessage: It only tests the connection.
            UnknownEventType: No matcher selects it.
        """
        raw = RawMessage(body, message.attributes)
        for one in self._types:
            if _is_test(one, raw):
                raise IgnoredMessage(f"the message only tests the connection, for {one.name}")
        found = next((one for one in self._types if _selects(one, raw)), None)
        if found is None:
            names = ", ".join(one.name for one in self._types)
            raise UnknownEventType(f"no raw handler of this queue ({names}) matches the message; as an event: {error}")
        return _wrap(found, message, _read_data(found, raw, large=large))


# An error of a model's own function must not count as an error of smartpipe, which would be retried.


def _is_test(one: RawType, raw: RawMessage) -> bool:
    try:
        return one.is_test(raw)
    except Exception as error:
        msg = f"is_test() of {one.name} failed: {describe_failure(error)}"
        raise DecodeError("invalid-data", msg) from error


def _selects(one: RawType, raw: RawMessage) -> bool:
    try:
        return one.matcher is None or one.matcher(raw)
    except Exception as error:
        msg = f"the matcher of {one.name} failed: {describe_failure(error)}"
        raise DecodeError("invalid-data", msg) from error


def _read_data(one: RawType, raw: RawMessage, *, large: bool) -> Any:
    if one.model is str:
        return raw.body
    if one.model is dict:
        if not isinstance(raw.json, dict):
            raise DecodeError("invalid-data", f"the body does not fit {one.name}: it is not a JSON object")
        return raw.json
    adapter, explain, explain_large = one.validators
    try:
        if not large:
            return explain(raw.body)
        explain_large(raw.body)  # its result is not the validated value
        return adapter.validate_json(raw.body)
    except ValidationError as error:
        errors, summary = summarize_errors(error)
    except TooManyForbiddenFields:
        errors, summary = [], "it has too many fields that the model forbids"
    except Exception as error:
        msg = f"a validator of {one.name} failed: {type(error).__name__}"
        raise DecodeError("invalid-data", msg) from error
    raise DecodeError("invalid-data", f"the body does not fit {one.name}: {summary}", errors)


def _wrap(one: RawType, message: Message, data: Any) -> Envelope:
    """Return *data* in an envelope. The values of the message replace those that are missing, or that do not fit.

    An id or a source may be too long, and a time may have no time zone.
    """
    context = _read_context(one, data)
    sent_at = None if message.sent_at is None else datetime.fromtimestamp(message.sent_at, UTC)
    event_id, source, time = context.id, context.source, context.time
    return Envelope(
        id=event_id if event_id and len(event_id) <= MAX_ID_CHARACTERS else message.message_id,
        source=source if source and len(source) <= MAX_ID_CHARACTERS else one.model.__name__,
        type=one.name,
        version=DEFAULT_VERSION,
        time=time if time is not None and time.utcoffset() is not None else sent_at,
        data=data,
    )


def _read_context(one: RawType, data: Any) -> RawContext:
    """Return the context that the model of *data* knows.

    Raises:
        DecodeError: ``get_context`` raised, or returned something else than a RawContext with values of its types.
    """
    if not isinstance(data, ExternalModel):
        return RawContext()
    try:
        context: object = data.get_context()
    except Exception as error:
        msg = f"get_context() of {one.name} failed: {describe_failure(error)}"
        raise DecodeError("invalid-data", msg) from error
    if not isinstance(context, RawContext):
        msg = f"get_context() of {one.name} returned a {type(context).__name__}, not a RawContext"
        raise DecodeError("invalid-data", msg)
    for name, value, expected in (
        ("id", context.id, str),
        ("source", context.source, str),
        ("time", context.time, datetime),
    ):
        if not (value is None or isinstance(value, expected)):
            msg = f"get_context() of {one.name} returned {name}={value!r:.100}, which is not a {expected.__name__}"
            raise DecodeError("invalid-data", msg)
    return context
