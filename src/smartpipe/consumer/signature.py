"""Reads a handler's signature: which parameters take the event, the delivery, or a value from the lifespan."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, ForwardRef, NamedTuple, Union, get_args, get_origin, get_type_hints

from smartpipe.batch import BatchDelivery
from smartpipe.delivery import Delivery
from smartpipe.events import Event
from smartpipe.names import without_partials

_LISTS = (list, Sequence)


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


def read_signature(function: Callable[..., Any], event: type[Event], *, batch: bool, state: bool) -> Signature:
    """Find the kind of each parameter: by its annotation, otherwise by its position.

    Args:
        batch: Whether the handler takes lists of events.
        state: Whether there is a lifespan that may provide other values.
    """
    if not callable(function):
        return Signature((), ["is not callable"], is_async=False)
    inner = _unwrap_callable(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        return Signature((), ["is a generator, which would never be iterated; remove the yield"], is_async=False)
    annotations = _read_annotations(function)
    bound: list[Parameter] = []
    errors: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if (
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            or parameter.default is not parameter.empty
        ):
            continue
        taken = {one.kind for one in bound}
        annotation = annotations.get(parameter.name, Any)
        read, error = _read_parameter(parameter.name, annotation, event, taken=taken, batch=batch, state=state)
        if error or parameter.kind is parameter.KEYWORD_ONLY:
            errors.append(error or f"parameter {parameter.name!r} is keyword-only; handlers are called by position")
        elif read.kind in taken and read.kind != "state":
            errors.append(f"parameter {parameter.name!r} asks for the {read.kind} a second time")
        else:
            bound.append(read)
    if not errors and "event" not in {one.kind for one in bound}:
        shown = f"events: list[{event.__name__}]" if batch else f"event: {event.__name__}"
        context = "batch: BatchDelivery" if batch else "delivery: Delivery"
        errors.append(f"takes no event; write ({shown}) or ({shown}, {context})")
    return Signature(tuple(bound), errors, inspect.iscoroutinefunction(inner))


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
    name: str, annotation: Any, event: type[Event], *, taken: set[str], batch: bool, state: bool
) -> tuple[Parameter, str | None]:
    deliveries = BatchDelivery if batch else Delivery
    if get_origin(annotation) in (Delivery, BatchDelivery):  # Delivery[State], where State is for type checkers
        annotation = get_origin(annotation)
    if annotation is deliveries:
        return Parameter(name, "delivery"), None
    if annotation in (Delivery, BatchDelivery):
        other = "a batch handler takes a BatchDelivery" if batch else "only a batch handler takes a BatchDelivery"
        return Parameter(name, "delivery"), f"parameter {name!r}: {other}"
    taken_event = _find_event(annotation, batch=batch)
    if taken_event is not None:
        fits = issubclass(event, taken_event)
        error = f"parameter {name!r} takes {taken_event.__name__}, but the handler is subscribed to {event.__name__}"
        return Parameter(name, "event"), None if fits else error
    if isinstance(annotation, ForwardRef) and not (state and taken):
        annotation = Any  # its position decides
    if annotation is Any or annotation is object:
        return Parameter(name, "delivery" if "event" in taken else "event"), None
    shown = getattr(annotation, "__name__", annotation)
    if isinstance(annotation, type) and issubclass(annotation, Event):
        error = f"parameter {name!r}: a batch handler takes a list of events; write list[{shown}]"
        return Parameter(name, "event"), error
    if get_origin(annotation) in _LISTS or annotation in _LISTS:
        fix = f"write list[{event.__name__}]" if batch else "subscribe it with batch=Batch(...)"
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


def _strip_generic(annotation: Any) -> Any:
    """Return a type that isinstance accepts: a class, the class of a generic, or a union."""
    if isinstance(annotation, (type, UnionType)):
        return annotation
    return get_origin(annotation) or object


def _find_event(annotation: Any, *, batch: bool) -> type[Event] | None:
    """Return the event class that the annotation names, itself or as the item of a list."""
    if batch:
        if get_origin(annotation) not in _LISTS:
            return None
        [annotation, *_] = get_args(annotation) or (None,)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Event) else None


def _unwrap_callable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function behind partials and callable objects, but not behind a decorator's wrapper."""
    function = without_partials(function)
    return function if inspect.isroutine(function) else type(function).__call__


def _read_annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations; one whose names exist only for type checkers stays a ForwardRef."""
    inner = _unwrap_callable(function)
    found: dict[str, Any] = {}
    for name, annotation in getattr(inner, "__annotations__", {}).items():
        alone = type("Alone", (), {"__annotations__": {name: annotation}})
        try:
            found[name] = _strip_optional(get_type_hints(alone, globalns=getattr(inner, "__globals__", {}))[name])
        except (NameError, TypeError, AttributeError, SyntaxError):
            found[name] = ForwardRef(annotation) if isinstance(annotation, str) else Any
    return found


def _strip_optional(annotation: Any) -> Any:
    """Return X for ``X | None``, and the supertype of a NewType."""
    annotation = getattr(annotation, "__supertype__", annotation)
    if get_origin(annotation) in (Union, UnionType):
        others = [one for one in get_args(annotation) if one is not type(None)]
        return others[0] if len(others) == 1 else reduce(or_, others)
    return annotation
