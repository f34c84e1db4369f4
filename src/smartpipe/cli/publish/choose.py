"""Chooses the class of the event that ``smartpipe publish`` publishes. Pure."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from smartpipe.errors import ConfigError
from smartpipe.events import contract_of, parse_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.events import Event


def choose_event(events: Sequence[type[Event]], type_: str, version: str | None) -> type[Event]:
    """Return the class of *type_* among *events*.

    Args:
        version: The major version, or the whole version. It is necessary only if there are several major versions.

    Raises:
        ConfigError: There is no such class, or more than one.
    """
    found = {contract_of(event).version: event for event in events if contract_of(event).type == type_}
    if not found:
        raise ConfigError(_describe_unknown_type(events, type_))
    declared = _join_words(sorted(found, key=parse_version))
    matching = [event for full, event in found.items() if version in (None, full, full.partition(".")[0])]
    if not matching:
        are = "its versions are" if len(found) > 1 else "its version is"
        raise ConfigError(f"{type_} has no version {version}: {are} {declared}")
    if len(matching) > 1:
        raise ConfigError(
            f"{type_} has the versions {declared}: choose one, as in --version {max(found, key=parse_version)}"
        )
    return matching[0]


def _describe_unknown_type(events: Sequence[type[Event]], type_: str) -> str:
    types = {contract_of(event).type: event.__name__ for event in events}
    if not types:
        return (
            f"no event of the TARGETs has the type {type_!r}, because they have no events: name the class, as in "
            "shop.events:OrderPlaced, or a service that handles or publishes it"
        )
    by_name = [one for one, name in types.items() if name == type_]
    close = by_name or get_close_matches(type_, types, n=1)
    hint = f"did you mean {close[0]}?" if close else f"their types are {_join_words(sorted(types))}"
    return f"no event of the TARGETs has the type {type_!r}: {hint}"


def _join_words(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
