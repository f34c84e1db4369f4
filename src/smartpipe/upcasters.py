"""Upcasters: functions that turn the data of an older major version of an event into data of a newer one. Pure."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, get_origin, get_type_hints

from smartpipe.names import name_of, without_partials
from smartpipe.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterator

Upcast: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
U = TypeVar("U", bound=Upcast)

_MAJOR = re.compile(r"0|[1-9][0-9]{0,8}")
_USAGE = "write def _(data: dict[str, Any]) -> dict[str, Any]"


class Upcaster(NamedTuple):
    """A registered upcaster.

    Args:
        from_major: The major version of the data that it takes.
        to_major: The major version of the data that it returns; always higher.
        topic: The topic that events of the older version are published to; None: that of the class.
    """

    from_major: int
    to_major: int
    function: Upcast
    topic: Topic | None = None

    @property
    def place(self) -> tuple[str, int]:
        """The file and line of the function. Upcasters may all have the name ``_``."""
        code = getattr(inspect.unwrap(without_partials(self.function)), "__code__", None)
        return (code.co_filename, code.co_firstlineno) if code else (name_of(self.function), 0)

    def __str__(self) -> str:
        """Its versions, and the module and line of the function."""
        line = self.place[1]
        where = f"{name_of(self.function)}, line {line}" if line else name_of(self.function)
        return f"the upcaster from version {self.from_major} to {self.to_major} ({where})"


def argument_errors(version: str, *, from_version: Any, to_version: Any, topic: Any) -> list[str]:
    """Return the errors in the arguments of ``Event.upcast`` for a class of this *version*."""
    errors = [
        f"{name}={value!r} is not a major version as text, as in {name}='1'"
        for name, value in (("from_version", from_version), ("to_version", to_version))
        if not (isinstance(value, str) and _MAJOR.fullmatch(value)) and not (name == "to_version" and value is None)
    ]
    if topic is not None and not isinstance(topic, Topic):
        errors.append(f"topic={topic!r} is a {type(topic).__name__}, not a Topic")
    if errors:
        return errors
    major, from_major, to_major = int(version.partition(".")[0]), *_majors(from_version, to_version)
    owner = f"the class has version {version}"
    if from_major >= major:
        return [f"an upcaster from version {from_major} would never run, because {owner}: lower from_version"]
    if to_major <= from_major:
        return [f"an upcaster from version {from_major} to {to_major} leads back: raise to_version above from_version"]
    if to_major > major:
        return [f"an upcaster leads to version {to_major}, but {owner}: lower to_version"]
    return []


def function_errors(function: Any) -> list[str]:
    """Return the errors in the signature of an upcaster."""
    if not callable(function) or isinstance(function, type):
        return [f"upcaster {function!r} is not a function: {_USAGE}"]
    name, inner = name_of(function), without_partials(function)
    called = inner if inspect.isroutine(inner) else type(inner).__call__
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        return [f"upcaster {name} is async, and it runs while a message is decoded, without I/O: {_USAGE}"]
    if inspect.isgeneratorfunction(called):
        return [f"upcaster {name} is a generator, so none of it would run: {_USAGE}"]
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        return [f"upcaster {name} cannot be called with the data: {error}; {_USAGE}"]
    except ValueError:  # a built-in function has no signature
        return []
    return [
        f"upcaster {name} {verb} {getattr(annotation, '__name__', annotation)}, but upcasters work with the data as a "
        f"dict, before it is validated: {_USAGE}"
        for verb, annotation in _annotations(function)
        if not _may_be_dict(annotation)
    ]


def make_upcaster(function: Upcast, from_version: str, to_version: str | None, topic: Topic | None) -> Upcaster:
    """Return *function* as an upcaster. By default it leads to the next major version."""
    return Upcaster(*_majors(from_version, to_version), function, topic)


def find_chain(upcasters: Mapping[int, Upcaster], from_major: int, to_major: int) -> tuple[Upcaster, ...]:
    """Return the upcasters that lead from one major version to another, in their order; none if there is a gap."""
    chain: list[Upcaster] = []
    while from_major != to_major:
        one = upcasters.get(from_major)
        if one is None:
            return ()
        chain.append(one)
        from_major = one.to_major
    return tuple(chain)


def gap_errors(upcasters: Mapping[int, Upcaster], major: int) -> list[str]:
    """Return an error for each upcaster that leads to a version from which none leads on to *major*."""
    return [
        f"{one} leads nowhere, because no upcaster takes version {one.to_major}: add upcast(from_version="
        f"'{one.to_major}'), or to_version='{major}' to this one if it returns data of version {major}"
        for one in upcasters.values()
        if one.to_major != major and one.to_major not in upcasters
    ]


def _majors(from_version: str, to_version: str | None) -> tuple[int, int]:
    from_major = int(from_version)
    return from_major, from_major + 1 if to_version is None else int(to_version)


def _annotations(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yield the annotations of the first parameter and of the result, if they have some and it can be evaluated."""
    try:
        hints = get_type_hints(function)
    except Exception:  # noqa: BLE001 - annotations are for type checkers, and may name types that exist only there
        return
    first = next(iter(inspect.signature(function).parameters), "")
    yield from ((verb, hints[name]) for verb, name in (("takes", first), ("returns", "return")) if name in hints)


def _may_be_dict(annotation: Any) -> bool:
    cls = get_origin(annotation) or annotation
    return not isinstance(cls, type) or cls in (Any, object, UnionType) or issubclass(cls, Mapping)
