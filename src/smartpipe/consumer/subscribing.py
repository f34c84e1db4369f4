"""What ``subscribe`` returns, for type checkers: the decorated function has to take the event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, ParamSpec, Protocol, TypeVar

from smartpipe.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Concatenate

E = TypeVar("E", bound=Event)
P = ParamSpec("P")
R = TypeVar("R")


class Subscribe(Protocol, Generic[E]):
    """The decorator that ``subscribe`` returns: the function's first parameter must take the event."""

    def __call__(self, function: Callable[Concatenate[E, P], R], /) -> Callable[Concatenate[E, P], R]:
        """Register *function* and return it unchanged."""


class SubscribeBatch(Protocol, Generic[E]):
    """The decorator that ``subscribe`` returns with ``batch``: the first parameter must take the list of events."""

    def __call__(self, function: Callable[Concatenate[list[E], P], R], /) -> Callable[Concatenate[list[E], P], R]:
        """Register *function* and return it unchanged."""
