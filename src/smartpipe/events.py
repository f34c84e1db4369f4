"""Events: the typed facts that producers and consumers agree on."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from smartpipe.errors import ConfigError
from smartpipe.topics import Topic

_TYPE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.|$)){0,254}")
_VERSION = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")


class Contract(NamedTuple):
    """What an event class declares about itself."""

    type: str
    version: str
    topic: Topic
    key: str | None
    tenant: str | None = None

    @property
    def major(self) -> int:
        """The part of the version that changes when older consumers would break."""
        return int(self.version.partition(".")[0])


class Event(BaseModel):
    """A fact that happened, as an immutable Pydantic model. Subclass it with what the contract needs.

    ``class UserSignedUp(Event, topic=users, type="user.signed_up", version="1.0"): ...``

    A subclass without any of these arguments is a base for other events and cannot be published.
    Fields that a newer producer added are ignored, so that it does not break an older consumer; so is
    a misspelt argument of the constructor, which a type checker with Pydantic's plugin finds. Infinity
    and NaN are refused, as JSON has neither.

    Args:
        topic: The topic it is published to.
        type: CloudEvents ``type``: letters, digits, ``.``, ``_`` and ``-``.
        version: ``major.minor``. Raise the minor for changes that old consumers survive (a new
            optional field), the major for the others; consumers subscribe to a major version.
        key: The field whose value orders deliveries: on a FIFO topic, which needs one, it is the
            MessageGroupId. Travels as CloudEvents ``partitionkey``.
        tenant: The field that names whose event it is, on a standard topic: SQS's fair queues keep a
            tenant with many messages from delaying those of the others. It gives no order.

    Raises:
        ConfigError: A faulty or incomplete declaration, or another class that claims the same type
            and major version.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    __contract__: ClassVar[Contract | None] = None

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            topic: Topic | None = None,
            type: str | None = None,  # noqa: A002 - CloudEvents' own word
            version: str | None = None,
            key: str | None = None,
            tenant: str | None = None,
            **kwargs: Any,
        ) -> None: ...

    else:

        def __init_subclass__(cls, **kwargs: Any) -> None:
            """Leave the arguments to __pydantic_init_subclass__, which runs when the fields are known."""

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        topic: Topic | None = None,
        type: str | None = None,  # noqa: A002 - CloudEvents' own word
        version: str | None = None,
        key: str | None = None,
        tenant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the declaration and enter the class in the registry."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__contract__ = None  # a contract is never inherited: two classes would share one type
        if (topic, type, version, key, tenant) == (None, None, None, None, None):
            return
        problems = _problems(cls, topic=topic, type_=type, version=version)
        problems += _field_problems(cls, topic=topic, key=key, tenant=tenant)
        if problems or topic is None or type is None or version is None:
            raise ConfigError(problems)
        cls.__contract__ = Contract(type, version, topic, key, tenant)
        _register(cls, cls.__contract__)


def contract_of(event: type[Event]) -> Contract:
    """Return what *event* declared.

    Raises:
        ConfigError: It is a base class without a declaration of its own.
    """
    contract = event.__contract__
    if contract is None:
        msg = (
            f"{_name(event)} declares no type of its own; "
            f'write class {event.__name__}({event.__bases__[0].__name__}, topic=..., type="...", version="1.0")'
        )
        raise ConfigError(msg)
    return contract


def text_of(event: Event, field: str | None) -> str | None:
    """Return the value of a key or tenant *field* as text, an enumeration's by its value; None where there is none."""
    value = getattr(event, field) if field else None
    if value is None:
        return None
    return str(value.value if isinstance(value, Enum) else value)


def event_class(type_: str, major: int) -> type[Event] | None:
    """Return the class registered for this type and major version, if its module has been imported."""
    return _REGISTRY.get((type_, major))


_REGISTRY: dict[tuple[str, int], type[Event]] = {}


def _register(cls: type[Event], contract: Contract) -> None:
    other = _REGISTRY.get((contract.type, contract.major))
    # The same definition run again (a reloaded module, a notebook cell) takes its own place.
    if other is not None and _name(other) != _name(cls):
        if "__main__" in (other.__module__, cls.__module__) and other.__qualname__ == cls.__qualname__:
            msg = (
                f"{cls.__qualname__} exists twice, because its module runs as a script and is imported too; "
                "move its events to a module of their own"
            )
            raise ConfigError(msg)
        msg = (
            f"{_name(cls)} and {_name(other)} both claim event type {contract.type!r}, major version "
            f"{contract.major}; give one of them another type or another major version"
        )
        raise ConfigError(msg)
    _REGISTRY[contract.type, contract.major] = cls


def _problems(cls: type[Event], *, topic: Topic | None, type_: str | None, version: str | None) -> list[str]:
    wrong = [
        f"{name}={value!r} is a {type(value).__name__}, not a {expected.__name__}"
        for name, value, expected in (("topic", topic, Topic), ("type", type_, str), ("version", version, str))
        if value is not None and not isinstance(value, expected)
    ]
    if wrong:
        return [f"event {_name(cls)}: {problem}" for problem in wrong]
    declared = {"topic": topic, "type": type_, "version": version}
    missing = [f"{name}=" for name, value in declared.items() if value is None]
    problems = [f"lacks {', '.join(missing)}"] if missing else []
    if type_ is not None and not _TYPE.fullmatch(type_):
        problems.append(
            f"type {type_!r} may have letters, digits, '.', '_' and '-', 255 at most, as in 'user.signed_up'"
        )
    if version is not None and not _VERSION.fullmatch(version):
        problems.append(f"version {version!r} is not major.minor, as in '1.0'")
    return [f"event {_name(cls)}: {problem}" for problem in problems]


def _field_problems(cls: type[Event], *, topic: Topic | None, key: str | None, tenant: str | None) -> list[str]:
    problems = [
        f"{label} {field!r} is none of its fields ({', '.join(cls.model_fields) or 'it has none'})"
        for label, field in (("key", key), ("tenant", tenant))
        if field is not None and field not in cls.model_fields
    ]
    if isinstance(topic, Topic) and topic.fifo:
        if key is None:
            problems.append(
                f'topic {topic.name!r} is FIFO and needs to know whose order to keep: add key="a_field", or publish '
                "to a standard topic"
            )
        if tenant is not None:
            problems.append(f"tenant is for standard topics; on the FIFO topic {topic.name!r} the key is the group")
    return [f"event {_name(cls)}: {problem}" for problem in problems]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
