"""The rates of ``[tool.smartpipe.doctor.costs]`` in pyproject.toml. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from smartpipe.doctor.costs.prices import PRICES, Prices, read_prices
from smartpipe.doctor.lookup import find
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

T = TypeVar("T")

TABLE = "[tool.smartpipe.doctor.costs]"
PRICES_TABLE = "[tool.smartpipe.doctor.costs.prices]"
EXAMPLE = 'messages_per_day = 100_000, or events."order.placed".messages_per_day = 100_000 below it'
MAX_NUMBER = 10**15


@dataclass(frozen=True)
class Rate:
    """The messages of one event type.

    Args:
        messages_per_day: The number of published messages.
        message_bytes: The size of a message: its body, which is the envelope with the data, and its attributes.
    """

    messages_per_day: float = 0.0
    message_bytes: int = 1_024


@dataclass(frozen=True)
class CostOptions:
    """The assumptions of an estimate that do not follow from declarations and settings.

    Args:
        rate: That of each event which *events* does not name.
        events: Rates by event type.
        tasks: The number of containers that run each service.
        messages_per_publish: The number of messages in a publish request, 1 to 10. ``publish_many`` and concurrent
            publishes fill requests.
    """

    rate: Rate = field(default_factory=Rate)
    events: Mapping[str, Rate] = field(default_factory=dict)
    tasks: int = 1
    messages_per_publish: float = 1.0
    prices: Prices = PRICES

    def rate_of(self, type_: str) -> Rate:
        """Return the rate of an event type."""
        return self.events.get(type_, self.rate)


def read_cost_options(pyproject: dict[str, Any], types: Iterable[str], messages_per_day: float | None) -> CostOptions:
    """Return the options of a parsed pyproject.toml.

    Args:
        types: The event types that services publish or handle.
        messages_per_day: The option of the command line, which wins over the common rate of the file.

    Raises:
        ConfigError: With a sentence for each wrong entry, or because no rate is known.
    """
    table = find(pyproject, "tool", "smartpipe", "doctor", "costs") or {}
    if not isinstance(table, dict):
        raise ConfigError(f"{TABLE} is not a table: write {EXAMPLE}")
    reader = _Reader()
    known = list(types)
    rate = Rate(**reader.read(table, TABLE, _RATE))
    events = table.get("events", {})
    rates = dict(reader.read_events(events, known, rate))
    options = CostOptions(
        rate=rate if messages_per_day is None else replace(rate, messages_per_day=messages_per_day),
        events=rates,
        prices=reader.attempt(lambda: read_prices(table.get("prices", {}), PRICES_TABLE), PRICES),
        **reader.read(table, TABLE, _COMMON),
    )
    reader.check_names(table, TABLE, [*_RATE, *_COMMON, "events", "prices"])
    if reader.errors:
        raise ConfigError(reader.errors)
    if messages_per_day is None and "messages_per_day" not in table and not rates:
        msg = "the rates of messages are unknown: pass --messages-per-day N, or write in pyproject.toml"
        raise ConfigError(f"{msg} {TABLE} {EXAMPLE}")
    return options


def read_own_prices(pyproject: dict[str, Any]) -> Prices:
    """Return the prices, with those that a parsed pyproject.toml changes.

    Raises:
        ConfigError: With a sentence for each wrong price.
    """
    return read_prices(find(pyproject, "tool", "smartpipe", "doctor", "costs", "prices") or {}, PRICES_TABLE)


_RATE: Mapping[str, tuple[type, float, float]] = {
    "messages_per_day": (float, 0, MAX_NUMBER),
    "message_bytes": (int, 1, 2_147_483_647),
}
_COMMON: Mapping[str, tuple[type, float, float]] = {
    "tasks": (int, 0, 1_000_000),
    "messages_per_publish": (float, 1, 10),
}
"""The type and the range of each option."""


class _Reader:
    """Reads tables, and collects a sentence for each wrong entry."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def read(
        self, table: dict[str, Any], where: str, options: Mapping[str, tuple[type, float, float]]
    ) -> dict[str, Any]:
        """Return the valid options in a table."""
        found = {}
        for name, (type_, least, most) in options.items():
            value = table.get(name)
            if value is None:
                continue
            allowed = (int, float) if type_ is float else int
            if isinstance(value, bool) or not isinstance(value, allowed) or not least <= value <= most:
                kind = "a number" if type_ is float else "a whole number"
                self.errors.append(f"{where} {name} = {value!r} is wrong: write {kind} from {least:,} to {most:,}")
            else:
                found[name] = value
        return found

    def read_events(self, events: Any, known: list[str], rate: Rate) -> Iterator[tuple[str, Rate]]:
        """Yield the rates by event type. An option that an event does not have is the common one."""
        where = f"{TABLE[:-1]}.events]"
        if not isinstance(events, dict):
            self.errors.append(f"{where} is not a table: write {EXAMPLE}")
            return
        for type_, table in events.items():
            if not isinstance(table, dict):
                self.errors.append(f'{where} "{type_}" is not a table: write {EXAMPLE}')
                continue
            if type_ not in known:
                close = get_close_matches(type_, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"they have {', '.join(sorted(known)) or 'no events'}"
                self.errors.append(f'{where} "{type_}": no examined service has this event; {hint}')
            own = f'{where[:-1]}."{type_}"]'
            self.check_names(table, own, list(_RATE))
            yield type_, replace(rate, **self.read(table, own, _RATE))

    def check_names(self, table: dict[str, Any], where: str, known: list[str]) -> None:
        """Collect a sentence for each option that does not exist."""
        for name in sorted(table.keys() - set(known)):
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
            self.errors.append(f"{where} {name} is not an option; {hint}")

    def attempt(self, read: Callable[[], T], default: T) -> T:
        """Return the result of *read*, or collect its errors."""
        try:
            return read()
        except ConfigError as error:
            self.errors += error.problems
            return default
