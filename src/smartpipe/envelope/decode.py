"""Decodes messages: from a body to a typed event. The body may be from any producer, raw or in an SNS notification."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cached_property, lru_cache, partial
from operator import itemgetter
from os import register_at_fork
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, TypeAlias, TypeVar, Union

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation

from smartpipe.envelope.body_encoding import RESERVED_ATTRIBUTES, decompress_body
from smartpipe.envelope.compression import ENCODING_ATTRIBUTE
from smartpipe.envelope.decode_errors import NoEventType, describe_broken_validator, summarize_errors
from smartpipe.envelope.encode import Envelope
from smartpipe.envelope.extensions import read_extensions
from smartpipe.envelope.fields import DEFAULT_VERSION, Context, TypeAndVersion, envelope_fields
from smartpipe.envelope.notification import EncodedBody, WrappedBody, keep_wrapped, refuse_wrapped, unwrap
from smartpipe.envelope.other_data import (
    Base64Json,
    find_other_data,
    is_binary_mode,
    join_binary_mode,
    make_empty,
    refuse_batch,
)
from smartpipe.envelope.pointer import is_pointer
from smartpipe.envelope.structure import has_few_objects, refuse_too_many_values
from smartpipe.envelope.unions import TooManyTries
from smartpipe.envelope.upcast import upcast_body
from smartpipe.envelope.validators import (
    MAX_FORBIDDEN_FIELDS,
    TooManyForbiddenFields,
    build_bounded_validator,
    build_cooperative_explaining_validator,
    build_cooperative_validator,
    build_explaining_validator,
)
from smartpipe.errors import ConfigError, DecodeError, MessageError, UnknownEventType
from smartpipe.events import contract_of
from smartpipe.message import construct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from smartpipe.events import Event
    from smartpipe.message import Attribute, Message
    from smartpipe.payload_offload import PayloadOffload

T = TypeVar("T")

_NOT_STRUCTURED = frozenset({"not-json", "not-cloudevent"})
_NOT_OURS = frozenset({*_NOT_STRUCTURED, "unknown-event-type"})
"""The kinds of errors of messages that are no events of the queue, but may be in binary mode or for a raw handler."""

SMALL_CHARACTERS = 4_096
INLINE_CHARACTERS = 65_536
INLINE_OBJECTS = 1_000
"""A thread decodes longer bodies, and bodies above 4,096 characters with more objects and arrays. A model with Python
validators takes 16 µs, so decoding on the event loop blocks it for at most about 20 ms."""
UNPARSED_CHARACTERS = 65_536
"""A longer body is not parsed if it cannot be a JSON object."""

_OPTIONAL_FIELDS = {"dataversion": DEFAULT_VERSION, "time": None}
_envelope_values = itemgetter(
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
_type_and_version = build_bounded_validator(TypeAdapter(TypeAndVersion))
_context = build_explaining_validator(TypeAdapter[Any](Context))
_context_of_large = build_cooperative_explaining_validator(TypeAdapter[Any](Context))

_Validate: TypeAlias = "Callable[[str], Any]"
_Unwrap: TypeAlias = "Callable[[str], str | None]"
"""Returns the message in an SNS notification, or None if a body is not one; or raises WrappedBody."""


class UndecidedUnions(DecodeError):
    """The data has unions of recursive classes that need more tries than the event loop has time for."""


class ReadsOthers(Protocol):
    """Reads the messages that are not events of a queue: ``raw_messages.RawReader``."""

    def read(self, message: Message, body: str, error: MessageError, *, large: bool) -> Envelope:
        """Return the envelope around the data in *body*, or raise a MessageError."""


class MessageReader:
    """Reads the messages of one queue.

    A large or compressed body is decoded in a thread, so that heartbeats continue. A process decodes one such body at
    a time, which bounds the memory for it.

    Args:
        events: At most one class for each type and major version.
        others: Reads the messages that are not events of the queue; None: they are refused.
    """

    def __init__(
        self, events: Iterable[type[Event]], payloads: PayloadOffload, others: ReadsOthers | None = None
    ) -> None:
        self._decoder = get_decoder(frozenset(events))
        self._others = others
        self._payloads = payloads
        self._limit_objects = payloads.encoding.limit_objects

    async def read(self, message: Message) -> Envelope:
        """Return the envelope in *message*. Raises the errors of ``unwrap_and_read``."""
        return (await self.unwrap_and_read(message))[0]

    async def unwrap_and_read(self, message: Message) -> tuple[Envelope, Message]:
        """Return the envelope in *message*, and *message* with the attributes that it has in a raw delivery.

        Raw deliveries have all attributes of the message. SNS puts them into the body where raw delivery is off. An
        attribute that the SQS message has as well is kept. If it is cancelled, a thread that is decoding the body runs
        to its end.

        Raises:
            DecodeError, UnknownEventType: As in ``Decoder.decode``. Also if the body is not encoded as its attributes
                say, or has too many values.
            IgnoredMessage: The message only tests the connection.
            PayloadError: The payload does not exist, or no decoder for its encoding is installed.
            TransportError: S3 is unreachable at present.
        """
        body, attributes = message.body, message.attributes
        try:
            if RESERVED_ATTRIBUTES.isdisjoint(attributes):
                try:
                    return await self._decode(body, refuse_wrapped), message
                except WrappedBody as inner:
                    body, attributes = inner.body, {**inner.attributes, **attributes}
                    message = message._replace(attributes=attributes)
                if RESERVED_ATTRIBUTES.isdisjoint(attributes):
                    return await self._decode(body, keep_wrapped), message
            return await self._decode_encoded(body, message._replace(attributes=attributes))
        except NoEventType as error:
            return await self._read_other(message, body, error), message
        except (DecodeError, UnknownEventType) as error:
            if error.kind not in _NOT_OURS:
                raise
            return await self._read_other(message, body, error), message

    async def _read_other(self, message: Message, body: str, error: MessageError) -> Envelope:
        """Read a message that is not an event in structured mode: one in binary mode, or one for a raw handler.

        Raises:
            MessageError: It is neither. Without raw handlers, this is *error*.
        """
        binary = is_binary_mode(message.attributes) and error.kind in _NOT_STRUCTURED
        if not binary and self._others is None:
            raise error.reason if isinstance(error, NoEventType) else error
        body = await self._decode_text(body, message.attributes)
        large = not _is_small(body)
        if binary:
            try:
                join = partial(join_binary_mode, body, message.attributes, error)
                return await self._decode(await _run_in_thread(join) if large else join(), keep_wrapped)
            except (DecodeError, UnknownEventType) as refused:
                if self._others is None or refused.kind not in _NOT_OURS:
                    raise
                error = refused
        read = partial(self._others.read, message, body, error, large=large)  # type: ignore[union-attr]
        return await _run_in_thread(read) if large else read()

    async def _decode_text(self, body: str, attributes: Mapping[str, Attribute]) -> str:
        """Return *body*, fetched from S3 and decompressed if the attributes say that it is encoded."""
        if RESERVED_ATTRIBUTES.isdisjoint(attributes):
            return body
        fetched, limit_bytes = await self._payloads.fetch(body, attributes)
        if ENCODING_ATTRIBUTE not in attributes:
            return fetched
        # The number of its values was checked when it was decoded as an event in structured mode.
        return await _run_in_thread(partial(decompress_body, fetched, attributes, limit_bytes))

    async def _decode_encoded(self, body: str, message: Message) -> tuple[Envelope, Message]:
        attributes = message.attributes
        fetched, limit_bytes = await self._payloads.fetch(body, attributes)
        try:
            if not is_pointer(attributes):
                decompress = partial(decompress_body, fetched, attributes, limit_bytes)
                decode = self._decoder.decode_large
                return await _run_in_thread(lambda: decode(decompress(), self._limit_objects)), message
            # Nobody could read the extensions later, without the body.
            if ENCODING_ATTRIBUTE not in attributes and _is_small(fetched):
                return await self._decode(fetched), message._replace(extensions=read_extensions(fetched))
            read = partial(self._read_fetched, fetched, attributes, limit_bytes)
            envelope, extensions = await _run_in_thread(read)
            return envelope, message._replace(extensions=extensions)
        except EncodedBody:
            raise DecodeError("not-compressed", "the decoded body says that it is encoded once more") from None

    def _read_fetched(
        self, fetched: str, attributes: Mapping[str, Attribute], limit_bytes: int
    ) -> tuple[Envelope, Mapping[str, Any]]:
        """Return the event in a body from S3, and its extensions."""
        text = decompress_body(fetched, attributes, limit_bytes)
        return self._decoder.decode_large(text, self._limit_objects), read_extensions(text)

    async def _decode(self, body: str, unwrap: _Unwrap = unwrap) -> Envelope:
        if len(body) <= SMALL_CHARACTERS or _is_small(body):
            try:
                return self._decoder.decode(body, unwrap)
            except UndecidedUnions:
                pass  # a thread has more time
        return await _run_in_thread(lambda: self._decoder.decode_large(body, self._limit_objects, unwrap))


class _Validators(NamedTuple):
    """Functions that parse and validate a body. All but *context* and *explain* return None for an invalid one.

    Args:
        any_type: For the types with one major version, selected by ``type``; None if there are none.
        by_type: For each type and major version.
        context: For the context attributes alone; raises ValidationError.
        explain: Returns a function for one type and major version that raises ValidationError.
    """

    any_type: _Validate | None
    by_type: Mapping[tuple[str, int], _Validate]
    context: _Validate
    explain: Callable[[TypeAdapter[Any]], _Validate]


class Decoder:
    """Decodes bodies into event classes.

    The envelopes of all types with one class are combined into one Pydantic validator, which selects by ``type``. It
    parses a valid body once, without a dict in between. Any other body is examined again. It may be an SNS
    notification, have a type with several major versions, or be invalid; if it is invalid, the error says why.

    Args:
        events: At most one class for each type and major version.

    Raises:
        ConfigError: A class refers to a type that does not exist.
    """

    def __init__(self, events: Iterable[type[Event]]) -> None:
        self._classes = {(contract.type, contract.major): cls for cls in events for contract in [contract_of(cls)]}
        fields = {key: envelope_fields(cls) for key, cls in self._classes.items()}
        self._adapters = {key: build_adapter(envelope) for key, envelope in fields.items()}
        self._base64_adapters: dict[tuple[str, int], TypeAdapter[Any]] = {}
        types = Counter(type_ for type_, _ in fields)
        self._selected_by_type = {key for key in fields if types[key[0]] == 1}
        single = [envelope for key, envelope in fields.items() if key in self._selected_by_type]
        union: Any = Union[tuple(single)] if single else None  # noqa: UP007 - built at run time
        if len(single) > 1:
            union = Annotated[union, Field(discriminator="type")]
        self._adapter = build_adapter(union) if single else None
        self._small = self._validators(build_bounded_validator, _context, build_explaining_validator)

    @cached_property
    def _large(self) -> _Validators:
        return self._validators(build_cooperative_validator, _context_of_large, build_cooperative_explaining_validator)

    def _validators(
        self,
        build: Callable[[TypeAdapter[Any]], _Validate],
        context: _Validate,
        explain: Callable[[TypeAdapter[Any]], _Validate],
    ) -> _Validators:
        by_type = {key: build(adapter) for key, adapter in self._adapters.items()}
        any_type = None if self._adapter is None else build(self._adapter)
        return _Validators(any_type, by_type, context, lru_cache(maxsize=64)(explain))

    def decode(self, body: str, unwrap: _Unwrap = unwrap) -> Envelope:
        """Return the envelope in *body*, with validated data.

        Raises:
            DecodeError: The body is not JSON or not a CloudEvent, or the data does not fit the event class.
            UnknownEventType: None of the event classes has this type and major version.
            UndecidedUnions: The data needs more tries; ``decode_large`` has the time for them.
            EncodedBody: The message in an SNS notification must be decompressed or fetched first.
        """
        return self._decode(body, self._small, math.inf, unwrap)

    def decode_large(self, body: str, limit_objects: int, unwrap: _Unwrap = unwrap) -> Envelope:
        """Decode a body of any size. To be called in a thread: it lets other threads run meanwhile.

        Raises:
            DecodeError: As in ``decode``, and of the kind ``too-many-values``.
        """
        refuse_too_many_values(body, limit_objects)
        if len(body) > UNPARSED_CHARACTERS and not body.lstrip().startswith("{"):  # Pydantic would not let others run
            refuse_batch(body)
            raise DecodeError("not-cloudevent", "the body is not a CloudEvent 1.0: it is not a JSON object")
        return self._decode(body, self._large, limit_objects, unwrap)

    def _decode(self, body: str, validators: _Validators, limit_objects: float, unwrap: _Unwrap) -> Envelope:
        fields = _validate(validators.any_type, body) if validators.any_type else None
        if fields is None:
            inner = unwrap(body)
            if inner:
                refuse_too_many_values(inner, limit_objects)  # until here they were inside a string
                body = inner
            key = _read_type(body)
            validate_again = inner or key not in self._selected_by_type  # otherwise this validator has refused it
            validate = validators.by_type.get(key) if validate_again else None
            fields = _validate(validate, body) if validate else None
            if not key[0] and validators is self._small:
                raise NoEventType(partial(self._explain, body, validators, limit_objects))
        return _build_envelope(self._explain(body, validators, limit_objects) if fields is None else fields)

    def _explain(self, body: str, validators: _Validators, limit_objects: float) -> dict[str, Any]:
        """Find out, step by step, why *body* was refused, and raise an error with the reason.

        Return the fields of a body whose data is in another place.
        """
        context = _validate_context(body, validators.context)
        type_, version = context["type"], context.get("dataversion", DEFAULT_VERSION)
        key = _type_key(type_, version)
        adapter = self._adapters.get(key)
        if adapter is None:
            return {**context, "data": self._upcast(body, context, validators, limit_objects)}
        other = find_other_data(body, limit_objects)

        def validate() -> dict[str, Any]:
            if other is not None:
                empty = None if other else make_empty(self._classes[key])
                if empty is not None:
                    return {**context, "data": empty}
            found = _explain_with(validators, self._base64_adapter(key) if other else adapter, body)
            return {**found, "data": found["data_base64"]} if other else found

        sentence = f"the data does not fit {type_} {version}"
        return _raise_decode_error(validate, sentence)

    def _upcast(self, body: str, context: dict[str, Any], validators: _Validators, limit_objects: float) -> Event:
        """Return the event in *body*, which has another major version than its class, if that has upcasters for it."""
        large = validators is not self._small
        key, body = upcast_body(body, context, self._classes, limit_objects, large=large)
        fields = _validate(validators.by_type[key], body)
        if fields is None:
            old, new = context.get("dataversion", DEFAULT_VERSION), contract_of(self._classes[key]).version
            sentence = f"the data, upcast from version {old}, does not fit {key[0]} {new}"
            validate = partial(_explain_with, validators, self._adapters[key], body)
            fields = _raise_decode_error(validate, sentence)
        event: Event = fields["data"]
        return event

    def _base64_adapter(self, key: tuple[str, int]) -> TypeAdapter[Any]:
        if key not in self._base64_adapters:
            cls = self._classes[key]
            self._base64_adapters[key] = build_adapter(
                envelope_fields(cls, "data_base64", Annotated[cls, Base64Json()])
            )
        return self._base64_adapters[key]


@lru_cache(maxsize=1024)
def get_decoder(events: frozenset[type[Event]]) -> Decoder:
    """Return one decoder for all queues with the same events: its validators take much of the CPU's cache."""
    return Decoder(events)


def _is_small(body: str) -> bool:
    """Return whether the event loop has the time to decode *body*."""
    few = len(body) <= INLINE_CHARACTERS and has_few_objects(body, INLINE_OBJECTS)
    return few or len(body) <= SMALL_CHARACTERS


def _validate(validate: _Validate, body: str) -> dict[str, Any] | None:
    try:
        fields: dict[str, Any] | None = validate(body)
    except ValidationError:  # not JSON
        return None
    except TooManyTries as error:
        raise UndecidedUnions("invalid-data", f"the data cannot be validated: {error}") from None
    except Exception as error:
        raise describe_broken_validator(error) from error
    return fields


def _explain_with(validators: _Validators, adapter: TypeAdapter[Any], body: str) -> dict[str, Any]:
    validators.explain(adapter)(body)
    # If it finds no error, Pydantic's own validator decides.
    fields: dict[str, Any] = adapter.validator.validate_json(body)
    return fields


def _raise_decode_error(validate: Callable[[], dict[str, Any]], sentence: str) -> dict[str, Any]:
    """Return the result of *validate*. If it raises, raise a DecodeError instead: *sentence*, with the reason."""
    try:
        return validate()
    except ValidationError as error:
        errors, summary = summarize_errors(error)
    except TooManyForbiddenFields:
        errors, summary = [], f"it has more than {MAX_FORBIDDEN_FIELDS} fields that the event class forbids"
    except Exception as error:
        raise describe_broken_validator(error) from error
    raise DecodeError("invalid-data", f"{sentence}: {summary}", errors)


def _read_type(body: str) -> tuple[str, int]:
    try:
        found = _type_and_version(body) or {}
    except ValidationError:  # not JSON
        found = {}
    return _type_key(found.get("type") or "", found.get("dataversion", DEFAULT_VERSION) or "0")


def _type_key(type_: str, version: str) -> tuple[str, int]:
    return type_, int(version.partition(".")[0])


def _validate_context(body: str, validate: _Validate) -> dict[str, Any]:
    try:
        context: dict[str, Any] = validate(body)
    except ValidationError as error:
        errors, summary = summarize_errors(error)
        if errors and errors[0]["type"] == "json_invalid":
            raise DecodeError("not-json", f"the body is not JSON: {summary.partition('JSON: ')[2]}") from None
        refuse_batch(body)
        raise DecodeError("not-cloudevent", f"the body is not a CloudEvent 1.0: {summary}", errors) from None
    return context


def build_adapter(fields: Any) -> TypeAdapter[Any]:
    """Return an adapter. Raises ConfigError if a class refers to a type that does not exist."""
    adapter = TypeAdapter[Any](fields)
    try:
        adapter.rebuild()  # a class may refer to another that was defined after it
    except PydanticUndefinedAnnotation as error:
        msg = f"an event class or a model has a field of type {error.name!r}, which its module does not define"
        raise ConfigError(msg) from None
    return adapter


def _build_envelope(fields: dict[str, Any]) -> Envelope:
    try:
        return construct(Envelope, _envelope_values(fields))
    except KeyError:  # another producer may omit these
        return construct(Envelope, _envelope_values({**_OPTIONAL_FIELDS, **fields}))


async def _run_in_thread(function: Callable[[], T]) -> T:
    """Run *function* in the thread for large bodies, with the caller's context variables."""
    return await asyncio.get_running_loop().run_in_executor(_thread(), copy_context().run, function)


@lru_cache(maxsize=1)
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="smartpipe-decoder")


register_at_fork(after_in_child=_thread.cache_clear)  # threads do not survive a fork
