"""Reads the data of events from ``--data``, and validates them against the event class."""

from __future__ import annotations

import json
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, ValidationError

from smartpipe.errors import ConfigError
from smartpipe.escaping import shorten_text
from smartpipe.events import contract_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic.fields import FieldInfo

    from smartpipe.events import Event
    from smartpipe.message import NewAttribute

MAX_ERRORS = 10
MAX_VALUE_CHARACTERS = 100
_LINE_END = re.compile(r"\r\n|\n|\r")
"""Not ``str.splitlines``: JSON may have other line ends, such as U+2028, within its texts."""


class Document(NamedTuple):
    """The JSON text of one event, and the place that it was read from, for error messages."""

    text: str
    place: str


def read_documents(data: str) -> list[Document]:
    """Return the events in the argument of ``--data``: one JSON object, or one on each line.

    Args:
        data: The JSON itself, ``@`` and the path of a file, or ``-`` for standard input.

    Raises:
        ConfigError: It cannot be read, or is not JSON.
    """
    text, place = _read(data)
    error = _find_json_error(text)
    if error is None:
        return [Document(text, place)]
    lines = [(number, line) for number, line in enumerate(_LINE_END.split(text), 1) if line.strip()]
    if not lines:
        raise ConfigError(f'{place} is empty: pass the event as a JSON object, as in --data \'{{"name": "Ada"}}\'')
    if not error.startswith("Extra data") or len(lines) == 1:
        raise ConfigError(f"{place} is not JSON: {error}")
    documents = [Document(line, f"{place}, line {number}") for number, line in lines]
    errors = [(one.place, _find_json_error(one.text)) for one in documents]
    problems = [f"{where} is not JSON: {error}" for where, error in errors if error is not None]
    if problems:
        raise ConfigError(_shorten_list(problems))
    return documents


def validate_documents(event: type[Event], documents: Sequence[Document]) -> list[Event]:
    """Return the events. All of them are validated before any is published.

    A field that the class does not declare is an error here, although consumers ignore it: it is probably misspelt.

    Raises:
        ConfigError: One sentence for each wrong field, with its value unless that is a secret.
    """
    events: list[Event] = []
    problems: list[str] = []
    for document in documents:
        validated, errors = _validate(event, document)
        events += [] if validated is None else [validated]
        problems += errors
    if problems:
        raise ConfigError(_shorten_list(problems))
    return events


def read_attributes(pairs: Iterable[str]) -> dict[str, NewAttribute]:
    """Return the message attributes of ``--attributes``: ``NAME=TEXT``, or ``NAME:=JSON`` for numbers and lists.

    Raises:
        ConfigError: One has no ``=``, two have one name, or a value is not JSON.
    """
    attributes: dict[str, NewAttribute] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        is_json, name = name.endswith(":"), name.removesuffix(":")
        if not (name and equals):
            raise ConfigError(f"--attributes {pair!r} is not NAME=VALUE, as in --attributes tenant=acme")
        if name in attributes:
            raise ConfigError(f"--attributes {name}=... is set twice")
        attributes[name] = _read_attribute(name, value) if is_json else value
    return attributes


def _read_attribute(name: str, value: str) -> NewAttribute:
    hint = "write a number or a list, as in --attributes 'amount:=12.5' 'tags:=[\"a\"]'"
    try:
        found = json.loads(value)
    except ValueError:
        raise ConfigError(f"--attributes {name}:={value} is not JSON: {hint}") from None
    if isinstance(found, bool) or not isinstance(found, (int, float, list)):
        raise ConfigError(f"--attributes {name}:={value} is neither a number nor a list: {hint}")
    return found


def _read(data: str) -> tuple[str, str]:
    if data != "-" and not data.startswith("@"):
        return data, "--data"
    place = f"--data {data}"
    try:
        content = sys.stdin.buffer.read() if data == "-" else Path(data[1:]).read_bytes()
        return content.decode("utf-8-sig"), place
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} is not UTF-8: {error.reason} at byte {error.start:,}") from None


def _find_json_error(text: str) -> str | None:
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return f"{error.msg} (line {error.lineno}, column {error.colno})"
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a value of JSON")


def _validate(event: type[Event], document: Document) -> tuple[Event | None, list[str]]:
    """Return the event, or the errors in it."""
    for extra in ("forbid", None):  # the second time if a model of the event allows the fields that it does not declare
        try:
            return event.model_validate_json(document.text, extra=extra), []
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
            problems = [_describe(event, one) for one in found if not _is_allowed(event, one)]
            if problems:
                return None, [f"{document.place}: {problem}" for problem in problems]
    return None, []


def _is_allowed(event: type[Event], error: Any) -> bool:
    owners = _find_place(event, error["loc"]).owners
    return error["type"] == "extra_forbidden" and any(one.model_config.get("extra") == "allow" for one in owners)


def _describe(event: type[Event], error: Any) -> str:
    """Return the sentence for one of Pydantic's errors."""
    loc, kind = error["loc"], error["type"]
    place = _find_place(event, loc)
    path = ".".join(map(str, loc))
    if not loc:
        if kind in ("model_type", "model_attributes_type"):
            fields = ", ".join(_names_of(event)) or "it has none"
            return f"it must be a JSON object with the fields of {contract_of(event).type} ({fields})"
        return _clean(error["msg"])
    if kind == "missing":
        return f"field {path!r} is missing: add it"
    if kind == "extra_forbidden":
        names = list(dict.fromkeys(name for owner in place.owners for name in _names_of(owner)))
        close = get_close_matches(str(loc[-1]), names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the fields are {', '.join(names) or 'none'}"
        return f"field {path!r} is not declared: {hint}"
    value = error["input"]
    shown = "" if place.secret or isinstance(value, (dict, list)) else f"; the value is {_show(value)}"
    return f"field {path!r}: {_clean(error['msg'])}{shown}"


def _clean(message: str) -> str:
    return re.sub(r"^(Input |Value error, |Assertion failed, )", lambda found: _BEGINNINGS[found[1]], message)


_BEGINNINGS = {"Input ": "input ", "Value error, ": "", "Assertion failed, ": ""}


def _show(value: object) -> str:
    return shorten_text(json.dumps(value, ensure_ascii=False, default=str), MAX_VALUE_CHARACTERS)


def _shorten_list(problems: list[str]) -> list[str]:
    left = len(problems) - MAX_ERRORS
    return problems if left <= 0 else [*problems[:MAX_ERRORS], f"and {left:,} more errors"]


class _Place(NamedTuple):
    """The models that the last name of a path may belong to, and whether a value on the path is a secret."""

    owners: list[type[BaseModel]]
    secret: bool


def _find_place(event: type[BaseModel], loc: Sequence[int | str]) -> _Place:
    models, owners, secret = [event], [event], bool(event.model_config.get("hide_input_in_errors"))
    for name in loc:
        owners = models
        fields = [field for model in models for field in _fields_of(model, name)]
        secret |= any(not field.repr or _is_secret(field.annotation) for field in fields)
        if fields:  # otherwise an index, the key of a dict, or the name of a union's member
            models = [model for field in fields for model in _list_models(field.annotation)]
            secret |= any(model.model_config.get("hide_input_in_errors") for model in models)
    return _Place(owners, secret)


def _fields_of(model: type[BaseModel], name: int | str) -> Iterator[FieldInfo]:
    for own_name, field in model.model_fields.items():
        if name in (own_name, field.alias, field.validation_alias):
            yield field


def _names_of(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name


def _list_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _list_models(inner)


def _is_secret(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, (Secret, SecretStr, SecretBytes)):
        return True
    return any(map(_is_secret, get_args(annotation)))
