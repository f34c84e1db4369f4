"""Handlers: functions with a checked signature, and what to do when they fail."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_type_hints

from smartpipe.delivery import Delivery
from smartpipe.errors import ConfigError
from smartpipe.events import Event, contract_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.retry import RetryPolicy
    from smartpipe.topology.model import Queue

MAX_TIMEOUT_SECONDS = 43_200


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered handler.

    Args:
        name: The function's module and qualified name.
        parameters: ``"event"`` and ``"delivery"`` in the order in which the function takes them.
        timeout_seconds: After so long it is cancelled, which counts as a failure. None: when the
            lease cannot be extended any more, 12 hours after the delivery.
    """

    name: str
    function: Callable[..., Any]
    event: type[Event]
    queue: Queue
    retry: RetryPolicy
    timeout_seconds: float | None
    parameters: tuple[str, ...]
    is_async: bool

    def arguments(self, event: Event, delivery: Delivery) -> list[Any]:
        """Return what to call the function with."""
        return [event if parameter == "event" else delivery for parameter in self.parameters]


def make_handler(
    function: Callable[..., Any],
    event: type[Event],
    *,
    queue: Queue,
    retry: RetryPolicy,
    timeout_seconds: float | None,
) -> Handler:
    """Check *function* and make it a handler of *event*.

    Raises:
        ConfigError: Naming the handler, and all that is wrong with it.
    """
    name = _name(function)
    contract_of(event)
    problems: list[str] = []
    if timeout_seconds is not None and not 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS:
        problems.append(f"handler {name}: timeout_seconds={timeout_seconds} is outside of 0 to 43,200")
    parameters, faults = _bind(function, event)
    problems += [f"handler {name}: {fault}" for fault in faults]
    if problems:
        raise ConfigError(problems)
    is_async = inspect.iscoroutinefunction(_innermost(function))
    return Handler(name, function, event, queue, retry, timeout_seconds, parameters, is_async)


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function behind partials and callable objects, but not behind a decorator's wrapper."""
    function = _without_partials(function)
    return function if inspect.isroutine(function) else type(function).__call__


def _without_partials(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, partial):
        function = function.func
    return function


def _name(function: Callable[..., Any]) -> str:
    function = _without_partials(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _bind(function: Callable[..., Any], event: type[Event]) -> tuple[tuple[str, ...], list[str]]:
    """Find out what each parameter wants: by its annotation, else by its place."""
    if not callable(function):
        return (), ["is not callable"]
    inner = _innermost(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        return (), ["is a generator: it would be called and never run; take the yield out"]
    hints = _hints(function)
    bound: list[str] = []
    faults: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if (
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            or parameter.default is not parameter.empty
        ):
            continue
        wanted, fault = _wanted(parameter.name, hints.get(parameter.name, Any), event, taken=bound)
        if fault or parameter.kind is parameter.KEYWORD_ONLY:
            faults.append(fault or f"parameter {parameter.name!r} is keyword-only; handlers are called by position")
        elif wanted in bound:
            faults.append(f"parameter {parameter.name!r} asks for the {wanted} a second time")
        else:
            bound.append(wanted)
    if not faults and "event" not in bound:
        faults.append(
            f"takes no event; write (event: {event.__name__}) or (event: {event.__name__}, delivery: Delivery)"
        )
    return tuple(bound), faults


def _wanted(name: str, annotation: Any, event: type[Event], *, taken: list[str]) -> tuple[str, str | None]:
    if annotation is Delivery:
        return "delivery", None
    if isinstance(annotation, type) and issubclass(annotation, Event):
        if issubclass(event, annotation):
            return "event", None
        return "event", f"parameter {name!r} wants {annotation.__name__}, but it is subscribed to {event.__name__}"
    if annotation is Any or annotation is object:
        return ("delivery" if "event" in taken else "event"), None
    shown = getattr(annotation, "__name__", annotation)
    return "event", f"parameter {name!r}: {shown} is neither the event nor a Delivery, which is all a handler is given"


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations, or none where their names exist for type checkers only: then the place decides."""
    try:
        return get_type_hints(_innermost(function))
    except (NameError, TypeError):
        return {}
