"""Makes example messages of an event. It needs the extra ``contracts``: Hypothesis and jsonschema."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from smartpipe.contracts.compare import Document
from smartpipe.contracts.examples import FORMATS, find_value
from smartpipe.contracts.fixtures import Fixture
from smartpipe.contracts.readable import ITEM, KEY, MEMBER, VALUE, Builder, Coverage, NoValueError, join
from smartpipe.contracts.strategies import UnknownFormat, values_of
from smartpipe.envelope.encode import encode, format_uuid, wrap
from smartpipe.errors import PublishError
from smartpipe.keys import compose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jsonschema.exceptions import ValidationError as SchemaError

    from smartpipe.contracts.files import Declaration, Described
    from smartpipe.contracts.readable import Path, Style
    from smartpipe.events import Event

SOURCE = "fixtures"
"""The CloudEvents ``source`` of all example messages."""
MAX_ATTEMPTS = 40
MAX_MESSAGES = 60
_TIME = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)


class Made(NamedTuple):
    """The messages of one version, and sentences about those that could not be made."""

    fixtures: list[Fixture]
    notes: list[str]


def make_messages(described: Described, event: type[Event] | None, count: int) -> Made:
    """Return example messages that fit the writer's schema and that consumers of the same version accept.

    The first has only the fields that every message has. The others have all fields, and together every member of each
    union and every value of each enumeration; then the smallest and the largest values; then random values.

    Args:
        event: The class, if this version is in code. It writes the messages. Otherwise the reader's schema judges them.
        count: The number of messages with random values.
    """
    return _Maker(described, event).make(count)


def find_wrong_messages(described: Described, fixtures: Iterable[Fixture]) -> list[str]:
    """Return a sentence for each message that does not fit the writer's schema."""
    validator = Draft202012Validator(described.writer, format_checker=FORMATS)
    wrong = []
    for one in fixtures:
        error = next(validator.iter_errors(one.message), None)
        if error is not None:
            place = ".".join(map(str, error.absolute_path)) or "the message"
            wrong.append(f"message {one.name!r} does not fit the schema of its version: {place}: {error.message}")
    return wrong


class _Refusal(NamedTuple):
    """The places of wrong values, and the first reason."""

    places: list[tuple[str | int, ...]]
    reason: str


class _Maker:
    def __init__(self, described: Described, event: type[Event] | None) -> None:
        self._declaration = described.declaration
        self._event = event
        self._data = Document.of_data(described.writer)
        self._writer = Draft202012Validator(described.writer, format_checker=FORMATS)
        self._reader = Draft202012Validator(described.reader, format_checker=FORMATS)
        self._coverage = Coverage()
        self._fixtures: list[Fixture] = []
        self._reason = ""

    def make(self, count: int) -> Made:
        notes = []
        if not self._add("minimal", "minimal", 0) and not self._search("minimal"):
            notes.append(self._describe_failure("minimal"))
        if not self._add("full", "full", 0):
            notes.append(self._describe_failure("full"))
        self._cover()
        self._add("smallest", "smallest", 0)
        self._add("largest", "largest", 0)
        for index, data in enumerate(self._examples()):
            self._accept(f"example-{index + 1}", data)
        for index in range(count):
            self._add(f"random-{index + 1}", "random", index)
        notes += [
            f"{self._name}: no message has every value of field {join(path)!r}" for path in self._coverage.missing
        ]
        return Made(self._fixtures, notes)

    @property
    def _name(self) -> str:
        return f"{self._declaration.type} {self._declaration.version}"

    def _describe_failure(self, name: str) -> str:
        return f"{self._name}: no message {name!r} was accepted: {self._reason}"

    def _cover(self) -> None:
        """Add messages until each option of each place is in one, and stop when more messages have no new ones."""
        idle, number = 0, 1
        while idle <= self._coverage.widest and len(self._fixtures) < MAX_MESSAGES and self._coverage.missing:
            before = len(self._coverage)
            self._add(f"full-{number + 1 - idle}", "full", number, only_new=True)
            idle = 0 if len(self._coverage) > before else idle + 1
            number += 1

    def _examples(self) -> Iterator[Any]:
        """Yield the examples of the class itself."""
        examples = self._data.resolve(self._data.schema).get("examples")
        yield from (one for one in examples or () if isinstance(one, dict))

    def _add(self, name: str, style: Style, number: int, *, only_new: bool = False) -> bool:
        """Build a message; replace the values that are refused by others; return whether one was accepted."""
        attempts: dict[Path, int] = {}
        for _ in range(MAX_ATTEMPTS):
            coverage = self._coverage.copy()
            builder = Builder(self._data, style, coverage=coverage, attempts=attempts, number=number, search=find_texts)
            try:
                data = builder.build()
            except NoValueError as error:
                self._reason = self._reason or f"{join(error.path)}: no value for it is known"
                return False
            if only_new and len(coverage) == len(self._coverage):
                return False
            refusal = self._accept(name, data)
            if refusal is None:
                self._coverage, self._reason = coverage, ""
                return True
            self._reason = refusal.reason
            wrong = {path for place in refusal.places for path in _find_paths(place, builder.paths)}
            if not wrong:
                return False
            for path in wrong:
                attempts[path] = attempts.get(path, 0) + 1
        return False

    def _search(self, name: str) -> bool:
        """Search a small message that the class accepts, and return whether there is one."""
        try:
            data = find_value(values_of(self._data), lambda value: not isinstance(self._write(name, value), _Refusal))
        except UnknownFormat:
            return False
        return data is not None and self._accept(name, data) is None

    def _accept(self, name: str, data: Any) -> _Refusal | None:
        """Add a message with the data, unless it is refused, or another one has the same data."""
        message = self._write(name, data)
        if isinstance(message, _Refusal):
            return message
        if all(other.message["data"] != message["data"] for other in self._fixtures):
            self._fixtures.append(Fixture(name=name, message=message))
        return None

    def _write(self, name: str, data: Any) -> dict[str, Any] | _Refusal:
        """Return the message as a producer writes it, or the reasons why the contract refuses it."""
        validators = [self._writer]
        if self._event is None:
            message: dict[str, Any] = _build_message(self._declaration, name, data)
            validators.append(self._reader)
        else:
            try:
                message = _encode(self._event.model_validate_json(json.dumps(data)), self._declaration, name)
                message["data"] = _restore_order(message["data"], data)
                self._event.model_validate_json(json.dumps(message["data"]))
            except ValidationError as error:
                errors = error.errors(include_url=False, include_input=False)
                reason = f"{'.'.join(map(str, errors[0]['loc'])) or 'the event'}: {errors[0]['msg']}"
                return _Refusal([one["loc"] for one in errors], reason)
            except PublishError as error:
                return _Refusal([], str(error))
            except Exception as error:  # noqa: BLE001 - a validator of the class
                return _Refusal([], f"{type(error).__name__}: {error}")
        found = [error for validator in validators for error in validator.iter_errors(message)]
        if not found:
            return message
        return _Refusal(list(_places_of(found)), found[0].message)


def _build_message(declaration: Declaration, name: str, data: Any) -> dict[str, Any]:
    """Return an envelope with the attributes, and in the order, of those that producers write."""
    event_id, traceparent = _ids_of(declaration, name)
    message = {
        "specversion": "1.0",
        "type": declaration.type,
        "dataversion": declaration.version,
        "datacontenttype": "application/json",
        "source": SOURCE,
        "id": event_id,
        "time": _TIME.isoformat().replace("+00:00", "Z"),
    }
    values = [data.get(field) for field in declaration.key] if isinstance(data, dict) else []
    texts = [str(one) for one in values if one is not None]
    if texts and len(texts) == len(values):
        message["partitionkey"] = texts[0] if len(texts) == 1 else compose(*texts)
    return {**message, "traceparent": traceparent, "correlationid": event_id, "data": data}


def _encode(event: Event, declaration: Declaration, name: str) -> dict[str, Any]:
    event_id, traceparent = _ids_of(declaration, name)
    envelope = wrap(event, source=SOURCE, event_id=event_id)
    body = encode(envelope._replace(time=_TIME, traceparent=traceparent, correlation_id=event_id, causation_id=None))
    return json.loads(body)  # type: ignore[no-any-return] # an object


def _restore_order(written: Any, given: Any) -> Any:
    """Return what was written, with the items of sets in the order in which they were given: a set has none."""
    if isinstance(written, dict) and isinstance(given, dict):
        return {key: _restore_order(value, given.get(key)) for key, value in written.items()}
    if not isinstance(written, list) or not isinstance(given, list):
        return written
    if sorted(map(json.dumps, written)) == sorted(map(json.dumps, given)):
        return given
    return (
        [_restore_order(*pair) for pair in zip(written, given, strict=True)] if len(written) == len(given) else written
    )


def _ids_of(declaration: Declaration, name: str) -> tuple[str, str]:
    """Return the event's id, a UUID version 7, and a traceparent that is not sampled: always the same for one name."""
    digits = sha256(f"{declaration.type} {declaration.version} {name}".encode()).hexdigest()
    moment = f"{int(_TIME.timestamp() * 1000):012x}"
    return format_uuid("7", moment, digits), f"00-{digits[:32]}-{digits[32:48]}-00"


def _places_of(errors: Iterable[SchemaError]) -> Iterator[tuple[str | int, ...]]:
    """Yield the places in the data of errors, and of those of a union's members."""
    waiting = list(errors)
    while waiting:
        error = waiting.pop()
        place = tuple(error.absolute_path)
        if place[:1] == ("data",):
            yield place[1:]
        waiting += error.context or ()


def _find_paths(place: tuple[str | int, ...], paths: Sequence[Path]) -> list[Path]:
    """Return the longest of *paths* that lead to a place. Pydantic names the members of unions in its places."""
    is_key = "[key]" in place
    fitting = [path for path in dict.fromkeys(paths) if path and _leads_to(path, place) and (KEY in path) == is_key]
    longest = max(map(len, fitting), default=0)
    return [path for path in fitting if len(path) == longest]


def _leads_to(path: Path, place: tuple[str | int, ...]) -> bool:
    parts = iter(place)
    return all(any(_is_part(one, part) for part in parts) for one in path if not one.startswith(MEMBER))


def _is_part(one: str, part: str | int) -> bool:
    if one == KEY:
        return part == "[key]"
    return one in {part, VALUE} or (isinstance(part, int) and one in {ITEM, f"[{part}]"})


@lru_cache(maxsize=256)
def find_texts(pattern: str, least: float, most: float) -> tuple[str, ...]:
    """Return a short text of this length that matches a pattern; none if no text was found."""
    printable = st.characters(min_codepoint=32, max_codepoint=126)
    for options in ({"fullmatch": True, "alphabet": printable}, {}):
        try:
            found = find_value(st.from_regex(pattern, **options), lambda text: least <= len(text) <= most)  # type: ignore[call-overload]
        except (InvalidArgument, ValueError, re.error):  # not a pattern of Python, or these characters do not match
            continue
        if found is not None:
            return (found,)
    return ()
