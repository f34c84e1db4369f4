"""The base class of events, their contracts, and the registry of event classes."""

from __future__ import annotations

import re
from difflib import get_close_matches
from enum import Enum
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from smartpipe.errors import ConfigError
from smartpipe.event_fields import inspect_fields
from smartpipe.keys import compose
from smartpipe.topics import Topic
from smartpipe.upcasters import U, Upcaster, argument_errors, function_errors, gap_errors, make_upcaster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from smartpipe.topics import Queue

_TYPE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_:/-]|\.(?!\.|$)){0,254}")
_VERSION = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")


E = TypeVar("E", bound="Event")

_ARGUMENTS = ("topic", "type", "version", "key", "tenant")

Key: TypeAlias = "str | tuple[str, ...] | None"
"""The field of a key, or the fields of a composite key, of which there are at least two."""


class Contract(NamedTuple):
    """The declaration of an event class: its type, version, topic, and the fields of its key and tenant."""

    type: str
    version: str
    topic: Topic
    key: Key
    tenant: str | None = None

    @property
    def major(self) -> int:
        """The part of the version that changes if a change would break older consumers."""
        return int(self.version.partition(".")[0])


def parse_version(version: str) -> tuple[int, int]:
    """Return the major and the minor version as numbers, which have the order of the versions."""
    major, _, minor = version.partition(".")
    return int(major), int(minor)


class Shared(NamedTuple):
    """The arguments that an event class passes on to its subclasses."""

    topic: Topic | None = None
    key: Key = None
    tenant: str | None = None


class Event(BaseModel):
    """A fact, as an immutable Pydantic model. Subclass it, and declare its topic, type and version.

    ``class UserSignedUp(Event, topic=users, type="user.signed_up", version="1.0"): ...``

    A subclass without a type and a version is a base class for other events and cannot be published. Its topic, key and
    tenant, if it has them, are those of its subclasses that declare no others:
    ``class OrderEvent(Event, topic=orders): ...`` and then
    ``class OrderPlaced(OrderEvent, type="order.placed", version="1.0"): ...``.
    A model ignores fields that it does not declare, so a field that a newer producer added does not break an older
    consumer. The same holds for a misspelt argument of the constructor: a type checker with Pydantic's plugin finds
    it. Infinity and NaN are refused, because JSON has neither.

    Args:
        topic: The topic that the event is published to.
        type: CloudEvents ``type``: letters, digits, ``.``, ``_``, ``-``, ``/`` and ``:``.
        version: ``major.minor``. Raise the minor version for changes that do not break old consumers, such as a new
            optional field, and the major version for all others. Consumers subscribe to a major version.
        key: The field whose value orders deliveries. A FIFO topic requires it and uses it as the MessageGroupId.
            It is sent as CloudEvents ``partitionkey``. A tuple of fields, as in ``("tenant", "order_id")``, is a
            composite key: their values, each escaped, joined by ``/``. If one of them is empty, so is the key.
        tenant: For a standard topic: the field that names the tenant. The fair queues of SQS keep a tenant with many
            messages from delaying the messages of other tenants. It does not order messages.

    Raises:
        ConfigError: The declaration is wrong or incomplete, or another class has the same type and major version.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    __contract__: ClassVar[Contract | None] = None
    __upcasters__: ClassVar[dict[int, Upcaster]] = {}
    __shared__: ClassVar[Shared] = Shared()

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            topic: Topic | None = None,
            type: str | None = None,  # noqa: A002 - the name of the CloudEvents attribute
            version: str | None = None,
            key: str | tuple[str, ...] | None = None,
            tenant: str | None = None,
            **kwargs: Any,
        ) -> None: ...

    else:

        def __init_subclass__(cls, **kwargs: Any) -> None:
            """Leave our arguments to ``__pydantic_init_subclass__``, which runs after the fields are collected."""
            others = {name: value for name, value in kwargs.items() if name not in _ARGUMENTS}
            inherited = super().__init_subclass__
            if others and isinstance(inherited, BuiltinMethodType):  # that of object, which takes no arguments
                raise ConfigError([_describe_unknown_argument(cls, name) for name in others])
            inherited(**others)

        @classmethod
        def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
            """Create an event without validation. It is validated when it is published."""
            return _mark_unvalidated(super().model_construct(_fields_set, **values))

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        topic: Topic | None = None,
        type: str | None = None,  # noqa: A002 - the name of the CloudEvents attribute
        version: str | None = None,
        key: str | tuple[str, ...] | None = None,
        tenant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the declaration and add the class to the registry."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__contract__ = None  # a contract is not inherited: two classes would share one type
        cls.__upcasters__ = {}
        own = Shared(topic, key[0] if isinstance(key, tuple) and len(key) == 1 else key, tenant)
        errors = _argument_errors(own, type_=type, version=version)
        if not errors:
            cls.__shared__ = shared = _inherit(cls, own)
            if (type, version) == (None, None):
                return
            errors = _declaration_errors(cls, topic=shared.topic, type_=type, version=version)
            errors += _field_errors(cls, shared, own)
        if errors or shared.topic is None or type is None or version is None:
            raise ConfigError([f"event {_name(cls)}: {error}" for error in errors])
        cls.__contract__ = Contract(type, version, shared.topic, shared.key, shared.tenant)
        if cls.__pydantic_complete__:
            _refuse_unreadable_fields(cls)
        _register(cls, cls.__contract__)

    @classmethod
    def __pydantic_on_complete__(cls) -> None:
        """Check the fields of a class that refers to others which were defined after it."""
        super().__pydantic_on_complete__()
        if cls.__dict__.get("__contract__") is not None:
            _refuse_unreadable_fields(cls)

    @classmethod
    def upcast(
        cls, *, from_version: str, to_version: str | None = None, topic: Topic | None = None
    ) -> Callable[[U], U]:
        """Register the decorated function as the upcaster of data of an older major version.

        Write ``@OrderPlaced.upcast(from_version="1")`` above ``def _(data: dict[str, Any]) -> dict[str, Any]``. A
        handler of the class then also receives events of version 1.x. The function turns their data into data of
        version 2, and the upcaster from version 2, if the class is newer, continues. Only then is the data validated.

        The function is called with the ``data`` as parsed from JSON. It may change the dict, and must return one. It
        runs on the event loop, or in the thread that decodes large bodies, so it must be fast and without I/O. If it
        raises, or returns no dict, the message is dead-lettered as ``upcast-failed``. If a queue has a handler for a
        class of the older version itself, that handler receives the events, and they are not upcast.

        Args:
            from_version: The major version of the data that the function takes, such as ``"1"``.
            to_version: The major version of the data that it returns; by default the next one. Versions in between
                are skipped.
            topic: The topic that events of the older version are published to, if it is another than that of the
                class. ``topology`` then subscribes the queues of handlers to it, too.

        Raises:
            ConfigError: The class declares no type, the versions are wrong, another upcaster takes the same version,
                or the function has another signature or is async. When a service uses the class: an upcaster leads to
                a version that is neither that of the class nor taken by another upcaster.
        """
        errors = argument_errors(
            contract_of(cls).version, from_version=from_version, to_version=to_version, topic=topic
        )
        if errors:
            raise ConfigError([f"event {_name(cls)}: {error}" for error in errors])

        def register(function: U) -> U:
            errors = function_errors(function)
            if errors:
                raise ConfigError([f"event {_name(cls)}: {error}" for error in errors])
            upcaster = make_upcaster(function, from_version, to_version, topic)
            other = cls.__upcasters__.setdefault(upcaster.from_major, upcaster)
            if other is not upcaster and other.place != upcaster.place:
                raise ConfigError(f"event {_name(cls)}: {other} and {upcaster} take the same version; remove one")
            cls.__upcasters__[upcaster.from_major] = upcaster  # its definition has run again, as in a notebook cell
            return function

        return register

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the event without validation of *update*. A copy with an update is validated when it is published."""
        copy = super().model_copy(update=update, deep=deep)
        return _mark_unvalidated(copy) if update else copy


class _UnvalidatedFields(set[str]):
    """The names of the fields that were set in an event that has not been validated.

    Pydantic keeps this set in each model, and copies and pickles it with the model. In a validated one its type is set.
    """


def _mark_unvalidated(event: E) -> E:
    object.__setattr__(event, "__pydantic_fields_set__", _UnvalidatedFields(event.__pydantic_fields_set__))
    return event


def contract_of(event: type[Event]) -> Contract:
    """Return the contract that the class *event* declares.

    Raises:
        ConfigError: It is a base class, without a declaration.
    """
    contract = event.__contract__
    if contract is None:
        # A generic class with its parameters, such as Changed[int], is declared as a subclass.
        name, base = event.__name__, event.__bases__[0].__name__
        origin = event.__pydantic_generic_metadata__["origin"]
        inherited = [cls.__shared__ for cls in event.__bases__ if issubclass(cls, Event)]
        if origin is not None or event.__shared__ not in inherited:
            name, base = f"My{(origin or event).__name__}", name
        topic = "" if event.__shared__.topic else "topic=..., "
        msg = f'{_name(event)} does not declare a type; write class {name}({base}, {topic}type="...", version="1.0")'
        raise ConfigError(msg)
    return contract


def upcast_contracts(event: type[Event]) -> Iterator[Contract]:
    """Yield a contract for each older major version that the upcasters of the class *event* take.

    Raises:
        ConfigError: An upcaster leads to a version that is neither that of the class nor taken by another upcaster; or
            a class of the older version declares another topic.
    """
    contract = contract_of(event)
    errors = gap_errors(event.__upcasters__, contract.major)
    for major, upcaster in sorted(event.__upcasters__.items()):
        declared, topic = event_class(contract.type, major), upcaster.topic or contract.topic
        older = contract_of(declared) if declared else Contract(contract.type, f"{major}.0", topic, None)
        if declared and older.topic != topic:
            errors.append(
                f"{upcaster} is for events on topic {topic.name!r}, but {declared.__qualname__} declares version "
                f"{older.version} on topic {older.topic.name!r}: pass that topic as upcast(topic=...)"
            )
        yield older
    if errors:
        raise ConfigError([f"event {_name(event)}: {error}" for error in errors])


def list_contracts(events: Iterable[type[Event]], queue: Queue) -> tuple[Contract, ...]:
    """Return the contracts that *queue* takes if it has handlers of *events*: theirs, and those of older versions.

    A class takes older versions by its upcasters, except those that another class on the queue takes itself.

    Raises:
        ConfigError: Upcasters leave a gap, those of two classes take one version, or a topic does not fit the queue.
    """
    classes = dict.fromkeys(events)
    found = {(contract.type, contract.major): contract for contract in map(contract_of, classes)}
    owners: dict[tuple[str, int], type[Event]] = {}
    errors = []
    for event in classes:
        for contract in upcast_contracts(event):
            version = contract.type, contract.major
            if version in found and version not in owners:
                continue
            owner = owners.setdefault(version, event)
            if owner is not event:
                errors.append(
                    f"queue {queue.name!r}: {owner.__qualname__} and {event.__qualname__} both have an upcaster for "
                    f"version {contract.major} of {contract.type!r}: subscribe one of them on another queue, or "
                    "subscribe a class of that version as well"
                )
            if queue.fifo and not contract.topic.fifo:
                errors.append(
                    f"queue {queue.name!r} is FIFO, and topic {contract.topic.name!r}, from which {event.__qualname__} "
                    f"upcasts version {contract.major}, is not: handle the event on a standard queue"
                )
            found[version] = contract
    if errors:
        raise ConfigError(errors)
    return tuple(found.values())


def text_of(event: Event, key: Key) -> str | None:
    """Return the value of the *key*, or of a tenant, as text, of an enumeration its value; None if it has no value.

    A composite key has no value if one of its fields has none, or empty text.
    """
    if key.__class__ is tuple:
        texts = [text_of(event, field) for field in fields_of(key)]
        return compose(*filter(None, texts)) if all(texts) else None
    value = getattr(event, key) if key else None  # type: ignore[arg-type] # not a tuple
    if value is None:
        return None
    return str(value.value if isinstance(value, Enum) else value)


def fields_of(key: Key) -> tuple[str, ...]:
    """Return the fields of a key."""
    return key if isinstance(key, tuple) else (key,) if key else ()


def declared_events(event: type[Event]) -> tuple[type[Event], ...]:
    """Return *event*, or of a base class all its subclasses that declare a type, by type and major version.

    They are those whose modules have been imported until now.
    """
    if event.__contract__ is not None:
        return (event,)
    return tuple(cls for _, cls in sorted(_REGISTRY.items(), key=lambda item: item[0]) if issubclass(cls, event))


def event_class(type_: str, major: int) -> type[Event] | None:
    """Return the class registered for this type and major version, if its module has been imported."""
    return _REGISTRY.get((type_, major))


_REGISTRY: dict[tuple[str, int], type[Event]] = {}


def _register(cls: type[Event], contract: Contract) -> None:
    other = _REGISTRY.get((contract.type, contract.major))
    # A definition that runs again, as in a reloaded module or a notebook cell, replaces itself.
    if other is not None and _name(other) != _name(cls):
        if "__main__" in (other.__module__, cls.__module__) and other.__qualname__ == cls.__qualname__:
            msg = (
                f"{cls.__qualname__} exists twice, because its module runs as a script and is also imported; "
                "move its events to a separate module"
            )
            raise ConfigError(msg)
        msg = (
            f"{_name(cls)} and {_name(other)} both declare event type {contract.type!r}, major version "
            f"{contract.major}; give one of them another type or another major version"
        )
        raise ConfigError(msg)
    _REGISTRY[contract.type, contract.major] = cls


def _refuse_unreadable_fields(cls: type[Event]) -> None:
    errors = inspect_fields(cls.__pydantic_core_schema__).errors
    if errors:
        raise ConfigError([f"event {_name(cls)}: {error}" for error in errors])


def _describe_unknown_argument(cls: type[Event], name: str) -> str:
    close = get_close_matches(name, _ARGUMENTS, n=1)
    suggestion = f"did you mean {close[0]}=?" if close else f"its arguments are {', '.join(_ARGUMENTS)}"
    return f"event {_name(cls)}: unknown argument {name}=; {suggestion}"


def _inherit(cls: type[Event], own: Shared) -> Shared:
    """Return the arguments that *cls* shares with its subclasses: *own*, or else those of its bases, first to last."""
    bases = [base.__shared__ for base in cls.__bases__ if issubclass(base, Event)]
    topic, key, tenant = (
        next((one for one in found if one is not None), None) for found in zip(own, *bases, strict=True)
    )
    if own.tenant is None and topic is not None and topic.fifo:
        tenant = None  # a FIFO topic has none, and its base class is of a standard topic
    return Shared(topic, key, tenant)


def _argument_errors(shared: Shared, *, type_: str | None, version: str | None) -> list[str]:
    errors = [
        f"{name}={value!r} is a {type(value).__name__}, not a {expected.__name__}"
        for name, value, expected in (
            ("topic", shared.topic, Topic),
            ("type", type_, str),
            ("version", version, str),
            ("tenant", shared.tenant, str),
        )
        if value is not None and not isinstance(value, expected)
    ]
    if error := key_error("key", shared.key):
        errors.append(error)
    return errors


def key_error(label: str, key: Any) -> str | None:
    """Return an error if *key* is neither None, the name of a field, nor a tuple of different names."""
    if key is None or isinstance(key, str):
        return None
    if not isinstance(key, tuple) or not key or not all(isinstance(field, str) for field in key):
        return f'{label}={key!r} must be a field, or a tuple of fields, as in ("tenant", "order_id")'
    return f"{label}={key!r} names a field twice" if len(set(key)) < len(key) else None


def _declaration_errors(cls: type[Event], *, topic: Topic | None, type_: str | None, version: str | None) -> list[str]:
    declared = {"topic": topic, "type": type_, "version": version}
    missing = [f"{name}=" for name, value in declared.items() if value is None]
    errors = [f"lacks {', '.join(missing)}"] if missing else []
    if type_ is not None and not _TYPE.fullmatch(type_):
        errors.append(
            f"type {type_!r} is not valid: use at most 255 letters, digits, '.', '_', '-', '/' and ':', as in "
            "'user.signed_up'"
        )
    if version is not None and not _VERSION.fullmatch(version):
        errors.append(f"version {version!r} is not major.minor, as in '1.0'")
    if cls.model_config.get("extra") == "forbid":
        errors.append(
            'extra="forbid" makes consumers refuse each field that a newer producer adds: remove it, because unknown '
            "fields are ignored"
        )
    return errors


def _field_errors(cls: type[Event], shared: Shared, own: Shared) -> list[str]:
    has = ", ".join(cls.model_fields) or "it has none"
    errors = [
        f"{label} {field!r} is not one of its fields ({has}){'' if mine else f'; a base class declares this {label}'}"
        for label, key, mine in (("key", shared.key, own.key), ("tenant", shared.tenant, own.tenant))
        for field in fields_of(key)
        if field not in cls.model_fields
    ]
    topic = shared.topic
    if topic is not None and topic.fifo:
        if shared.key is None:
            errors.append(
                f'topic {topic.name!r} is FIFO and keeps events in order by their key: add key="a_field", or publish '
                "to a standard topic"
            )
        if own.tenant is not None:
            errors.append(f"tenant is for standard topics; on the FIFO topic {topic.name!r} the key is the group")
    return errors


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
