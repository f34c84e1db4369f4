"""Reads a handler's signature: which parameters take the event, the delivery, or a value from the lifespan."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, ForwardRef, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from smartpipe.batch import BatchDelivery
from smartpipe.delivery import Delivery
from smartpipe.events import Event
from smartpipe.names import without_partials

_LISTS = (list, Sequence, Collection, Iterable)


class Parameter(NamedTuple):
    """One parameter of a handler.

    Args:
        kind: ``"event"``, ``"delivery"``, or ``"state"`` for a value that the lifespan provides.
        type: The type of that value.
    """

    name: str
    kind: str
    type: type | UnionType | None = None


class Signature(NamedTuple):
    """The parameters of a handler in their order, or the errors in them."""

    parameters: tuple[Parameter, ...]
    errors: list[str]
    is_async: bool


def read_signature(
    function: Callable[..., Any], events: tuple[type[Event], ...], *, batch: bool, state: bool
) -> Signature:
    """Find the kind of each parameter: by its annotation, otherwise by its position.

    Args:
        events: The classes that the function is subscribed to. One of its parameters must take all of them.
        batch: Whether the handler takes lists of events.
        state: Whether there is a lifespan that may provide other values.
    """
    if not callable(function):
        return Signature((), ["is not callable"], is_async=False)
    inner = _unwrap_callable(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        return Signature((), ["is a generator, which would never be iterated; remove the yield"], is_async=False)
    parameters = _read_parameters(function)
    event_is_named = any(_names_event(parameter.annotation, batch=batch) for parameter in parameters)
    bound: list[Parameter] = []
    errors: list[str] = []
    for parameter in parameters:
        if (
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            or parameter.default is not parameter.empty
        ):
            continue
        taken = {one.kind for one in bound}
        annotation = parameter.annotation
        if state and (event_is_named or "event" in taken) and not _names_event(annotation, batch=batch):
            taken.add("named event")  # a base class, such as BaseModel, is then the type of a value of the lifespan
        read, error = _read_parameter(parameter.name, annotation, events, taken=taken, batch=batch, state=state)
        if error or parameter.kind is parameter.KEYWORD_ONLY:
            errors.append(error or f"parameter {parameter.name!r} is keyword-only; handlers are called by position")
        elif read.kind in taken and read.kind != "state":
            errors.append(f"parameter {parameter.name!r} asks for the {read.kind} a second time")
        else:
            bound.append(read)
    if not errors and "event" not in {one.kind for one in bound}:
        shown = f"events: list[{name_classes(events)}]" if batch else f"event: {name_classes(events)}"
        context = "batch: BatchDelivery" if batch else "delivery: Delivery"
        errors.append(f"takes no event; write ({shown}) or ({shown}, {context})")
    return Signature(tuple(bound), errors, inspect.iscoroutinefunction(inner))


def name_classes(events: tuple[type[Event], ...]) -> str:
    """Return the names of the classes, as an annotation."""
    return " | ".join(event.__name__ for event in events)


def find_dependency(state: Any, parameter: Parameter) -> tuple[Any, str | None]:
    """Return the value of *parameter* from *state*, or an error: *state* itself, or a value in it of the right type.

    If several values have the type, the one with the parameter's name is taken.
    """
    wanted = parameter.type or object
    try:
        if isinstance(state, wanted):
            return state, None
    except TypeError as error:  # such as from a Protocol that is not runtime-checkable
        return None, f"parameter {parameter.name!r}: {error}"
    values = _list_values(state)
    found = {name: value for name, value in values.items() if isinstance(value, wanted)}
    if parameter.name in found:
        return found[parameter.name], None
    if len(found) == 1:
        return next(iter(found.values())), None
    has = ", ".join(f"{name}: {type(value).__name__}" for name, value in values.items()) or type(state).__name__
    how = f"{len(found)} of them have that type, and none has that name" if found else "none of them has that type"
    shown = getattr(wanted, "__name__", wanted)
    return None, f"parameter {parameter.name!r} needs a {shown}. The lifespan yields {has}: {how}"


def _list_values(state: Any) -> Mapping[str, Any]:
    if isinstance(state, Mapping):
        return {str(name): value for name, value in state.items()}
    if isinstance(state, tuple):
        return {name: getattr(state, name) for name in getattr(state, "_fields", ())} or {
            str(index): value for index, value in enumerate(state)
        }
    slots = [name for cls in type(state).__mro__ for name in getattr(cls, "__slots__", ())]
    return {**{name: getattr(state, name) for name in slots if hasattr(state, name)}, **getattr(state, "__dict__", {})}


def _read_parameter(
    name: str, annotation: Any, events: tuple[type[Event], ...], *, taken: set[str], batch: bool, state: bool
) -> tuple[Parameter, str | None]:
    deliveries = BatchDelivery if batch else Delivery
    if get_origin(annotation) in (Delivery, BatchDelivery):  # Delivery[State], where State is for type checkers
        annotation = get_origin(annotation)
    if annotation is deliveries:
        return Parameter(name, "delivery"), None
    if annotation in (Delivery, BatchDelivery):
        other = "a batch handler takes a BatchDelivery" if batch else "only a batch handler takes a BatchDelivery"
        return Parameter(name, "delivery"), f"parameter {name!r}: {other}"
    item = _find_item(annotation, batch=batch)
    fits = None if "named event" in taken else _takes_events(item, events)
    if fits is not None:
        error = f"parameter {name!r} takes {_show(item)}, but the handler is subscribed to {name_classes(events)}"
        return Parameter(name, "event"), None if fits else error
    if isinstance(annotation, ForwardRef) and not (state and taken):
        annotation = Any  # its position decides
    if annotation is Any or annotation is object:
        return Parameter(name, "delivery" if "event" in taken else "event"), None
    shown = _show(annotation)
    if _names_event(annotation, batch=False):
        error = f"parameter {name!r}: a batch handler takes a list of events; write list[{shown}]"
        return Parameter(name, "event"), error
    if get_origin(annotation) in _LISTS or annotation in _LISTS:
        fix = f"write list[{name_classes(events)}]" if batch else "subscribe it with batch=Batch(...)"
        return Parameter(name, "event"), f"parameter {name!r}: lists of events are for batch handlers; {fix}"
    if isinstance(annotation, ForwardRef):
        if annotation.__forward_arg__.partition("[")[0].rpartition(".")[2] == deliveries.__name__:
            return Parameter(name, "delivery"), None
        shown = annotation.__forward_arg__
        fix = f"import {shown} at run time, not only for type checkers, so that the worker knows its type"
        return Parameter(name, "state"), f"parameter {name!r}: {fix}"
    if state:
        return Parameter(name, "state", _strip_generic(annotation)), None
    error = (
        f"parameter {name!r}: {shown} is neither the event nor a {deliveries.__name__}; only a service with a lifespan "
        "can provide other values"
    )
    return Parameter(name, "event"), error


def _show(annotation: Any) -> str:
    """Return the annotation as a user writes it: classes without their modules."""
    if get_args(annotation):
        return re.sub(r"(?:\w+\.)+(?=\w)|<locals>\.", "", str(annotation))
    return str(getattr(annotation, "__name__", annotation))


def _strip_generic(annotation: Any) -> Any:
    """Return a type that isinstance accepts: a class, the class of a generic, or a union."""
    if isinstance(annotation, (type, UnionType)):
        return annotation
    return get_origin(annotation) or object


def _find_item(annotation: Any, *, batch: bool) -> Any:
    """Return the annotation of one event: *annotation*, or in a batch handler that of the items of a list."""
    if not batch:
        return annotation
    return get_args(annotation)[0] if get_origin(annotation) in _LISTS else None


def _takes_events(annotation: Any, events: tuple[type[Event], ...]) -> bool | None:
    """Return whether a parameter with this annotation can take each of *events*; None if it is for another value."""
    found = {_takes_event(annotation, event) for event in events}
    return found.pop() if len(found) == 1 else False


def _takes_event(annotation: Any, event: type[Event]) -> bool | None:
    """Return whether a parameter with this annotation can take *event*; None if the annotation is for another value.

    A class takes the events that are instances of it. It may also be a mixin. A union or a type variable takes an event
    that one of its classes takes.
    """
    annotation = _strip_optional(getattr(annotation, "__value__", annotation))  # of a type alias
    choices: tuple[Any, ...] = (annotation,)
    if isinstance(annotation, TypeVar):
        choices = annotation.__constraints__ or (annotation.__bound__ or object,)
    elif get_origin(annotation) in (Union, UnionType):
        choices = get_args(annotation)
    if choices != (annotation,):
        found = [_takes_event(one, event) for one in choices]
        return True if True in found else False if False in found else None
    cls = _strip_parameters(get_origin(annotation) or annotation)
    if not isinstance(cls, type) or cls is object:
        return None
    try:
        if issubclass(event, cls):
            return True
    except TypeError:  # such as from a Protocol that is not runtime-checkable
        return None
    return False if issubclass(cls, Event) else None


def _strip_parameters(cls: Any) -> Any:
    """Return the generic event of ``Changed[Any]``. Pydantic makes a class of it that other events do not extend."""
    generic = getattr(cls, "__pydantic_generic_metadata__", None)
    if generic is None or generic["origin"] is None:
        return cls
    return generic["origin"] if all(one is Any or isinstance(one, TypeVar) for one in generic["args"]) else cls


def _names_event(annotation: Any, *, batch: bool) -> bool:
    """Return whether the annotation is an event class or a union of them, or in a batch handler a list of these."""
    item = _find_item(annotation, batch=batch)
    choices = get_args(item) if get_origin(item) in (Union, UnionType) else (item,)
    return any(isinstance(one, type) and issubclass(one, Event) for one in choices)


def _unwrap_callable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function behind partials and callable objects, but not behind a decorator's wrapper."""
    function = without_partials(function)
    call: Callable[..., Any] = function if inspect.isroutine(function) else type(function).__call__
    return call


def _find_annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function whose parameters ``inspect.signature`` reports, behind the wrappers of all decorators."""
    inner = _unwrap_callable(function)
    while True:
        unwrapped: Callable[..., Any] = inspect.unwrap(inner, stop=lambda one: hasattr(one, "__signature__"))
        if unwrapped is inner:
            return inner
        inner = _unwrap_callable(unwrapped)


def _read_parameters(function: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    """Return the parameters, each with its annotation; one whose names exist only for type checkers is a ForwardRef.

    A decorator with ``functools.wraps`` may be in another module than the function, and the annotations of the
    function may be text. Its own module defines the names in them.
    """
    module_names = getattr(_find_annotated(function), "__globals__", {})
    return [
        parameter.replace(annotation=_resolve(parameter.annotation, module_names))
        for parameter in _read_signature(function).parameters.values()
    ]


def _read_signature(function: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # annotations are evaluated when they are read, also those for type checkers only
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


def _resolve(annotation: Any, module_names: Mapping[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if isinstance(annotation, ForwardRef):
        return annotation
    alone = type("Alone", (), {"__annotations__": {"it": annotation}})
    try:
        return _strip_optional(get_type_hints(alone, globalns=dict(module_names))["it"])
    except (NameError, TypeError, AttributeError, SyntaxError):
        return ForwardRef(annotation) if isinstance(annotation, str) else Any


def _strip_optional(annotation: Any) -> Any:
    """Return X for ``X | None``, and the supertype of a NewType."""
    annotation = getattr(annotation, "__supertype__", annotation)
    if get_origin(annotation) in (Union, UnionType):
        others = [one for one in get_args(annotation) if one is not type(None)]
        return others[0] if len(others) == 1 else reduce(or_, others)
    return annotation
