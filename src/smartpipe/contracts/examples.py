"""Finds messages that a change would break. It needs the extra ``contracts``: Hypothesis and jsonschema."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import re
import uuid
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, Verbosity, find, settings
from hypothesis.errors import HypothesisException
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import TypeAdapter, ValidationError

from smartpipe.contracts.compare import Document
from smartpipe.contracts.findings import Example
from smartpipe.contracts.strategies import Hints, UnknownFormat, values_of
from smartpipe.envelope.serialize import get_serializer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jsonschema.exceptions import ValidationError as SchemaError

    from smartpipe.contracts.compare import Break
    from smartpipe.contracts.files import Described
    from smartpipe.contracts.findings import Direction, Finding
    from smartpipe.events import Event

MAX_TRIES = 300
MAX_BREAKS = 4
"""Of one finding. They are mostly the same break for several versions."""
MAX_REASON_CHARACTERS = 200
_OF_THE_PARENT = frozenset({"required", "additionalProperties", "propertyNames"})
"""Keywords whose errors are at the object around a field."""
_SETTINGS = settings(
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=MAX_TRIES,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,
)


def find_example(
    finding: Finding, event: type[Event], new: Described, older: Mapping[str, Described]
) -> Example | None:
    """Return a small message that the change behind *finding* breaks, or None if none was found.

    Args:
        event: The class in code.
        new: Its contract.
        older: The contracts of older versions, by version.
    """
    second: Example | None = None
    for direction, version, one in finding.breaks[:MAX_BREAKS]:
        search = _Search(event, direction, one, new, older[version])
        try:
            example = search.run()
        except UnknownFormat:
            continue
        if example is not None and example.proof == "class":
            return example
        second = second or example
    return second


class _Search:
    """A search for a value of the writer that the reader refuses because of one break."""

    def __init__(self, event: type[Event], direction: Direction, one: Break, new: Described, old: Described) -> None:
        writer, reader = (new.writer, old.reader) if direction == "forward" else (old.writer, new.reader)
        self._event = event
        self._direction = direction
        self._break = one
        self._writer = Document.of_data(writer)
        data = Document.of_data(reader)
        self._hints = Hints([data.root])
        schema = {"$defs": data.root.get("$defs", {}), **data.schema}
        self._validator = Draft202012Validator(schema, format_checker=FORMATS)
        self._path = _compile(one.path)

    def run(self) -> Example | None:
        values = values_of(self._writer, self._hints)
        for accepts, proof in ((self._is_refused_by_class, "class"), (self._is_refused_by_schema, "schema")):
            data = find_value(values, accepts)
            if data is not None:
                written = self._write(data) if proof == "class" and self._direction == "forward" else data
                return Example(written, self._explain(written, proof), proof)  # type: ignore[arg-type] # one of two
        return None

    def _is_refused_by_schema(self, data: Any) -> bool:
        return next(self._errors(data), None) is not None

    def _is_refused_by_class(self, data: Any) -> bool:
        """Ask the class of this version: it refuses an older message, or writes one that an older schema refuses."""
        if not self._is_refused_by_schema(data):
            return False
        if self._direction == "backward":
            return self._refusal(data) is not None
        written = self._write(data)
        return written is not None and self._is_refused_by_schema(written)

    def _refusal(self, data: Any) -> str | None:
        try:
            self._event.model_validate_json(json.dumps(data))
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            here = [one for one in errors if self._path.fullmatch(_join(one["loc"]))]
            first = (here or errors)[0]
            return f"{_join(first['loc'])}: {first['msg']}"
        except Exception as error:  # noqa: BLE001 - a validator of the class
            return f"{type(error).__name__}: {error}"
        return None

    def _write(self, data: Any) -> Any:
        try:
            event = self._event.model_validate_json(json.dumps(data))
            return json.loads(get_serializer(self._event).serialize(event))
        except Exception:  # noqa: BLE001 - the class cannot make such an event
            return None

    def _explain(self, data: Any, proof: str) -> str:
        if proof == "class" and self._direction == "backward":
            return (self._refusal(data) or "")[:MAX_REASON_CHARACTERS]
        error = next(self._errors(data))
        return f"{_join(error.absolute_path)}: {error.message}"[:MAX_REASON_CHARACTERS]

    def _errors(self, data: Any) -> Iterator[SchemaError]:
        """Yield the errors at the place of the break. Errors of a union's members are inside the error of the union."""
        waiting = list(self._validator.iter_errors(data))
        while waiting:
            error = waiting.pop()
            if self._is_here(error):
                yield error
            waiting += error.context or ()

    def _is_here(self, error: SchemaError) -> bool:
        place = _join(error.absolute_path)
        if error.validator in _OF_THE_PARENT:
            parent, _, name = self._break.path.rpartition(".")
            named = name.removesuffix("{}").removesuffix("{key}")
            return _compile(parent).fullmatch(place) is not None and (not named or repr(named) in error.message)
        return self._path.fullmatch(place) is not None


def find_value(values: Any, accepts: Callable[[Any], bool]) -> Any:
    """Return a small value that is accepted, or None if none was found. It is the same one each time."""
    try:
        return find(values, accepts, settings=_SETTINGS)
    except HypothesisException:  # none, or too few values could be made
        return None


def _join(path: Iterable[str | int]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def _compile(path: str) -> re.Pattern[str]:
    """Return an expression for the places that a path stands for: any item, and any key of a map."""
    text = re.escape(path).replace(r"\[\]", r"\[\d+\]").replace(r"\{key\}", "")
    return re.compile(text.replace(r"\{\}", r"\.?.+?"))


def _make_formats() -> FormatChecker:
    """Return a checker of the formats that Pydantic enforces, by Pydantic's own types."""
    checker = FormatChecker(())
    types = {
        "date-time": dt.datetime,
        "date": dt.date,
        "time": dt.time,
        "duration": dt.timedelta,
        "uuid": uuid.UUID,
        "ipv4": ipaddress.IPv4Address,
        "ipv6": ipaddress.IPv6Address,
    }
    for name, type_ in types.items():
        adapter = TypeAdapter[Any](type_)

        def fits(value: object, adapter: TypeAdapter[Any] = adapter) -> bool:
            if isinstance(value, str):
                adapter.validate_python(value)
            return True

        checker.checks(name, raises=ValidationError)(fits)
    checker.checks("email")(lambda value: not isinstance(value, str) or "@" in value)
    checker.checks("uri")(lambda value: not isinstance(value, str) or ":" in value)
    return checker


FORMATS = _make_formats()
"""Formats by which jsonschema judges. It checks none by default."""
