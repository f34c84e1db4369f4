"""Turns the data of an older major version into the current one, with the upcasters of its event class."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from smartpipe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smartpipe.upcasters import Upcaster

MAX_ERROR_CHARACTERS = 500


def read_data(body: str, other_data: str | None, *, large: bool) -> dict[str, Any]:
    """Return the data in *body*, which is a CloudEvent; an empty dict if it has none.

    Args:
        other_data: The result of ``find_other_data``.
        large: The caller is a thread, and other threads must run meanwhile.

    Raises:
        DecodeError: The data is not a JSON object.
    """
    if other_data == "":
        return {}
    try:
        data = _parse(body, large=large)["data"] if other_data is None else _parse(_decode(other_data), large=large)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        where = "data: input" if other_data is None else "data_base64: input, decoded from base64,"
        raise DecodeError("invalid-data", f"the data cannot be upcast: {where} should be a JSON object")
    return data


def _parse(text: str, *, large: bool) -> Any:
    if large:  # calls a Python function for each object, and there CPython lets other threads run
        return json.loads(text, object_hook=lambda found: found)
    return from_json(text)


def _decode(text: str) -> str:
    return b64decode(text, validate=True).decode()


def upcast(data: dict[str, Any], chain: Iterable[Upcaster], type_: str) -> dict[str, Any]:
    """Return *data* after the last upcaster of *chain*.

    Raises:
        DecodeError: Of the kind ``upcast-failed``: an upcaster raised, or returned something else than a dict.
    """
    for upcaster in chain:
        try:
            result: object = upcaster.function(data)
        except Exception as error:
            raise DecodeError(
                "upcast-failed", f"{type_} cannot be upcast: {upcaster} failed: {_describe(error)}"
            ) from error
        if not isinstance(result, dict):
            returned = "None: return the changed data" if result is None else f"a {type(result).__name__}, not a dict"
            raise DecodeError("upcast-failed", f"{type_} cannot be upcast: {upcaster} returned {returned}")
        data = result
    return data


def write_body(context: Mapping[str, Any], version: str, data: dict[str, Any], type_: str) -> str:
    """Return the body with this context and *data*, as if it had been sent in this *version*.

    Raises:
        DecodeError: Of the kind ``upcast-failed``: the data has a value that JSON cannot represent.
    """
    try:
        return to_json({**context, "dataversion": version, "data": data}).decode()
    except Exception as error:
        sentence = f"{type_} cannot be upcast: its data has a value that JSON cannot represent: {_describe(error)}"
        raise DecodeError("upcast-failed", sentence) from error


def _describe(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
    except Exception:  # noqa: BLE001 - a broken __str__ must not keep a message from its dead-letter queue
        return type(error).__name__
