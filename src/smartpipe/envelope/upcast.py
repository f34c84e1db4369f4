"""Turns the data of an older major version into the current one, with the upcasters of its event class."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from smartpipe.envelope.decode_errors import describe_failure
from smartpipe.envelope.fields import DEFAULT_VERSION
from smartpipe.envelope.other_data import find_other_data
from smartpipe.envelope.structure import refuse_too_many_values
from smartpipe.errors import DecodeError, UnknownEventType
from smartpipe.events import contract_of
from smartpipe.upcasters import find_chain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smartpipe.events import Contract, Event
    from smartpipe.upcasters import Upcaster


def upcast_body(
    body: str,
    context: dict[str, Any],
    classes: Mapping[tuple[str, int], type[Event]],
    limit_objects: float,
    *,
    large: bool,
) -> tuple[tuple[str, int], str]:
    """Return the body that the event in *body* would have in the version of its class, and its type and major version.

    Args:
        context: The context attributes in *body*.
        classes: The classes of a queue, by type and major version; none has the version of *body*.
        large: The caller is a thread, and other threads must run meanwhile.

    Raises:
        UnknownEventType: No class has upcasters for this version.
        DecodeError: The data is not a JSON object, or an upcaster failed (``upcast-failed``), or its result has too
            many values.
    """
    type_, version = context["type"], context.get("dataversion", DEFAULT_VERSION)
    contract, chain = _find_chain(classes, type_, int(version.partition(".")[0]))
    if contract is None:
        older = {(known, major) for (known, _), cls in classes.items() for major in cls.__upcasters__}
        takes = ", ".join(f"{known} {major}.x" for known, major in sorted({*classes, *older})) or "no events"
        msg = f"no handler subscribes to {type_!r} version {version}; the handlers of this queue take {takes}"
        raise UnknownEventType(msg)
    data = _read_data(body, find_other_data(body, limit_objects), large=large)
    body = _write_body(context, contract.version, _upcast(data, chain, type_), type_)
    refuse_too_many_values(body, limit_objects)
    return (type_, contract.major), body


def _find_chain(
    classes: Mapping[tuple[str, int], type[Event]], type_: str, major: int
) -> tuple[Contract | None, tuple[Upcaster, ...]]:
    """Return the contract of the class that takes this version by its upcasters, and these upcasters."""
    for (known, newer), cls in classes.items():
        chain = find_chain(cls.__upcasters__, major, newer) if known == type_ else ()
        if chain:
            return contract_of(cls), chain
    return None, ()


def _read_data(body: str, other_data: str | None, *, large: bool) -> dict[str, Any]:
    """Return the data in *body*, which is a CloudEvent; an empty dict if it has none.

    Args:
        other_data: The result of ``find_other_data``.

    Raises:
        DecodeError: The data is not a JSON object.
    """
    if other_data == "":
        return {}
    try:
        data = _parse(body, large=large)["data"] if other_data is None else _parse(_decode(other_data), large=large)
        if large:
            to_json(data)  # refuses data that is nested too deeply, as from_json does; CPython 3.13 reads it
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


def _upcast(data: dict[str, Any], chain: Iterable[Upcaster], type_: str) -> dict[str, Any]:
    """Return *data* after the last upcaster of *chain*.

    Raises:
        DecodeError: Of the kind ``upcast-failed``: an upcaster raised, or returned something else than a dict.
    """
    for upcaster in chain:
        try:
            result: object = upcaster.function(data)
        except Exception as error:
            raise DecodeError(
                "upcast-failed", f"{type_} cannot be upcast: {upcaster} failed: {describe_failure(error)}"
            ) from error
        if not isinstance(result, dict):
            returned = "None: return the changed data" if result is None else f"a {type(result).__name__}, not a dict"
            raise DecodeError("upcast-failed", f"{type_} cannot be upcast: {upcaster} returned {returned}")
        data = result
    return data


def _write_body(context: Mapping[str, Any], version: str, data: dict[str, Any], type_: str) -> str:
    """Return the body with this context and *data*, as if it had been sent in this *version*.

    Raises:
        DecodeError: Of the kind ``upcast-failed``: the data has a value that JSON cannot represent.
    """
    try:
        return to_json({**context, "dataversion": version, "data": data}).decode()
    except Exception as error:
        sentence = (
            f"{type_} cannot be upcast: its data has a value that JSON cannot represent: {describe_failure(error)}"
        )
        raise DecodeError("upcast-failed", sentence) from error
