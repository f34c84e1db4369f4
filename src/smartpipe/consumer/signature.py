"""What a handler's parameters want: the event or events, the delivery, or something that the lifespan provides."""

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
        wants: ``"event"``, ``"delivery"``, or ``"state"``: what the lifespan provides.
        type: Of the state: which type.
    """

    name: str
    wants: str
    type: type | UnionType | None = None


class Signature(NamedTuple):
    """The parameters of a handler in their order, or what is wrong with them."""

    parameters: tuple[Parameter, ...]
    faults: list[str]
    is_async: bool


def read_signature(function: Callable[..., Any], event: type[Event], *, batch: bool, state: bool) -> Signature:
    """Find out what each parameter wants: by its annotation, else by its place.

    Args:
        batch: Whether the handler takes lists of events.
        state: Whether there is a lifespan that may provide what is neither event nor delivery.
    """
    if not callable(function):
        return Signature((), ["is not callable"], is_async=False)
    inner = _innermost(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        return Signature((), ["is a generator: it would be called and never run; take the yield out"], is_async=False)
    hints = _hints(function)
    bound: list[Parameter] = []
    faults: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if (
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            or parameter.default is not parameter.empty
        ):
            continue
        taken = {one.wants for one in bound}
        annotation = hints.get(parameter.name, Any)
        wanted, fault = _wanted(parameter.name, annotation, event, taken=taken, batch=batch, state=state)
        if fault or parameter.kind is parameter.KEYWORD_ONLY:
            faults.append(fault or f"parameter {parameter.name!r} is keyword-only; handlers are called by position")
        elif wanted.wants in taken and wanted.wants != "state":
            faults.append(f"parameter {parameter.name!r} asks for the {wanted.wants} a second time")
        else:
            bound.append(wanted)
    if not faults and "event" not in {one.wants for one in bound}:
        shown = f"events: list[{event.__name__}]" if batch else f"event: {event.__name__}"
        context = "batch: BatchDelivery" if batch else "delivery: Delivery"
        faults.append(f"takes no event; write ({shown}) or ({shown}, {context})")
    return Signature(tuple(bound), faults, inspect.iscoroutinefunction(inner))


def find_dependency(state: Any, parameter: Parameter) -> tuple[Any, str | None]:
    """Return what *state* has for *parameter*, or what is wrong: itself, or the value in it of that type.

    Of several values of the type, the one that has the parameter's name is meant.
    """
    wanted = parameter.type or object
    try:
        if isinstance(state, wanted):
            return state, None
    except TypeError as error:  # as of a Protocol
        return None, f"parameter {parameter.name!r}: {error}"
    values = _values(state)
    found = {name: value for name, value in values.items() if isinstance(value, wanted)}
    if parameter.name in found:
        return found[parameter.name], None
    if len(found) == 1:
        return next(iter(found.values())), None
    has = ", ".join(f"{name}: {type(value).__name__}" for name, value in values.items()) or type(state).__name__
    how = f"{len(found)} of them are, and none is called so" if found else "none is"
    shown = getattr(wanted, "__name__", wanted)
    return None, f"parameter {parameter.name!r} wants a {shown}; of what the lifespan yields ({has}) {how}"


def _values(state: Any) -> Mapping[str, Any]:
    if isinstance(state, Mapping):
        return {str(name): value for name, value in state.items()}
    if isinstance(state, tuple):
        return {name: getattr(state, name) for name in getattr(state, "_fields", ())} or {
            str(index): value for index, value in enumerate(state)
        }
    slots = [name for cls in type(state).__mro__ for name in getattr(cls, "__slots__", ())]
    return {**{name: getattr(state, name) for name in slots if hasattr(state, name)}, **getattr(state, "__dict__", {})}


def _wanted(
    name: str, annotation: Any, event: type[Event], *, taken: set[str], batch: bool, state: bool
) -> tuple[Parameter, str | None]:
    deliveries = BatchDelivery if batch else Delivery
    if annotation is deliveries:
        return Parameter(name, "delivery"), None
    if annotation in (Delivery, BatchDelivery):
        other = "a batch handler is given a BatchDelivery" if batch else "only a batch handler is given a BatchDelivery"
        return Parameter(name, "delivery"), f"parameter {name!r}: {other}"
    taken_event = _event_in(annotation, batch=batch)
    if taken_event is not None:
        fits = issubclass(event, taken_event)
        fault = f"parameter {name!r} wants {taken_event.__name__}, but it is subscribed to {event.__name__}"
        return Parameter(name, "event"), None if fits else fault
    if isinstance(annotation, ForwardRef) and not (state and taken):
        annotation = Any  # its place decides
    if annotation is Any or annotation is object:
        return Parameter(name, "delivery" if "event" in taken else "event"), None
    shown = getattr(annotation, "__name__", annotation)
    if isinstance(annotation, type) and issubclass(annotation, Event):
        fault = f"parameter {name!r}: a batch handler is given a list of events; write list[{shown}]"
        return Parameter(name, "event"), fault
    if get_origin(annotation) in _LISTS or annotation in _LISTS:
        mend = f"write list[{event.__name__}]" if batch else "subscribe it with batch=Batch(...)"
        return Parameter(name, "event"), f"parameter {name!r}: lists of events are for batch handlers; {mend}"
    if isinstance(annotation, ForwardRef):
        if annotation.__forward_arg__.rpartition(".")[2] == deliveries.__name__:
            return Parameter(name, "delivery"), None
        shown = annotation.__forward_arg__
        mend = f"import {shown} at run time, not only for type checkers, so that it can be told what is wanted"
        return Parameter(name, "state"), f"parameter {name!r}: {mend}"
    if state:
        return Parameter(name, "state", _plain(annotation)), None
    fault = (
        f"parameter {name!r}: {shown} is neither the event nor a {deliveries.__name__}, which is all that a handler is "
        "given by a service without a lifespan that provides more"
    )
    return Parameter(name, "event"), fault


def _plain(annotation: Any) -> Any:
    """Return what isinstance takes: a class, the class behind a generic, or a union."""
    if isinstance(annotation, (type, UnionType)):
        return annotation
    return get_origin(annotation) or object


def _event_in(annotation: Any, *, batch: bool) -> type[Event] | None:
    """Return the event class that the annotation names: itself, or as the items of a list."""
    if batch:
        if get_origin(annotation) not in _LISTS:
            return None
        [annotation, *_] = get_args(annotation) or (None,)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Event) else None


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function behind partials and callable objects, but not behind a decorator's wrapper."""
    function = without_partials(function)
    return function if inspect.isroutine(function) else type(function).__call__


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations; one whose names exist for type checkers only stays a ForwardRef."""
    inner = _innermost(function)
    found: dict[str, Any] = {}
    for name, annotation in getattr(inner, "__annotations__", {}).items():
        alone = type("Alone", (), {"__annotations__": {name: annotation}})
        try:
            found[name] = _plainer(get_type_hints(alone, globalns=getattr(inner, "__globals__", {}))[name])
        except (NameError, TypeError, AttributeError, SyntaxError):
            found[name] = ForwardRef(annotation) if isinstance(annotation, str) else Any
    return found


def _plainer(annotation: Any) -> Any:
    """Return X of ``X | None`` and of a NewType."""
    annotation = getattr(annotation, "__supertype__", annotation)
    if get_origin(annotation) in (Union, UnionType):
        others = [one for one in get_args(annotation) if one is not type(None)]
        return others[0] if len(others) == 1 else reduce(or_, others)
    return annotation
