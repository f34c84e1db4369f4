"""Keys composed of several values: of claims, SQS group and deduplication ids, and S3 objects. Pure.

All of them use one encoding, so that different values never share a key. A part keeps its letters, digits, ``.``,
``_`` and ``-``. Every other byte of its UTF-8 form becomes ``!`` and two hex digits. ``/`` joins the parts. The
result is ASCII without spaces or control characters. PostgreSQL, Redis, DynamoDB, S3 and SQS accept it unchanged,
compare it byte by byte, and find no Unicode to normalise. The escape character is ``!`` and not ``%``, because AWS
advises against ``%`` in S3 keys: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import MAX_PREC, Context, Decimal
from enum import Enum
from hashlib import sha256
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from smartpipe.limits import MAX_ID_LENGTH, MESSAGE_ID

_PLAIN = re.compile(r"[A-Za-z0-9._-]*")
_OTHER = re.compile(r"[^A-Za-z0-9._-]")
_EXACT = Context(prec=MAX_PREC)
_LARGE = 10**4_000
"""Python refuses to format integers of more than 4,300 digits (``sys.set_int_max_str_digits``)."""


def escape(part: str) -> str:
    """Return *part* as it appears in a composed key. The result contains no ``/``."""
    if _PLAIN.fullmatch(part):
        # HTTP clients resolve "." and ".." in paths, and S3 keys are paths.
        return part if part.strip(".") else part.replace(".", "!2E")
    return _OTHER.sub(_escape, part)


def compose(*parts: str) -> str:
    """Return one key for *parts*. Different parts, or another number of parts, give a different key.

    If keys of several kinds share a namespace, begin each with a part that names its kind.
    """
    return "/".join(map(escape, parts))


def compose_bounded(*parts: str, max_length: int) -> str:
    """Return the key of ``compose``, or its SHA-256 if it is longer than *max_length*.

    A digest contains a colon, which no other key does.
    """
    return shorten(compose(*parts), max_length)


def shorten(key: str, max_length: int) -> str:
    """Return a composed *key*, or its SHA-256 if it is longer than *max_length* characters."""
    return key if len(key) <= max_length else f"sha256:{sha256(key.encode()).hexdigest()}"


def sqs_id(value: str) -> str:
    """Return *value* as a MessageGroupId or MessageDeduplicationId.

    A value that SQS accepts stays unchanged, because producers in other languages send it unchanged too. Any other
    value is composed into a key that begins with ``smartpipe/``. So is a value that itself begins with ``smartpipe/``.
    """
    plain = MESSAGE_ID.fullmatch(value) and not value.startswith("smartpipe/")
    return value if plain else own_sqs_id("value", value)


def own_sqs_id(kind: str, value: str) -> str:
    """Return an id that differs from ``sqs_id`` of every value that SQS accepts. A long value is hashed by SHA-256."""
    key = compose("smartpipe", kind, value)
    return key if len(key) <= MAX_ID_LENGTH else compose("smartpipe", "sha256", sha256(key.encode()).hexdigest())


def typed_text(value: Any) -> tuple[str, str] | None:
    """Return the type and the text of an event field's *value*, for a key; None if the field counts as empty.

    None, empty text, empty bytes and empty collections count as empty, and so does a value whose own methods raise.
    Equal values of one type have the same text, for example the Decimals ``1.0`` and ``1.00``, or one moment in two
    time zones. Values of different types differ: ``1``, ``"1"``, ``1.0`` and ``True``. A member of an enumeration
    counts as its value, under any class name, and a model or dataclass as all of its fields.
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None or (isinstance(value, (str, bytes, Mapping, Sequence, AbstractSet)) and not value):
        return None
    if isinstance(value, str):
        return "str", value
    try:
        return "json", json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    except Exception:  # noqa: BLE001 - a user's type may raise anything; the key is then the event's source and id
        return None


def _escape(found: re.Match[str]) -> str:
    return "".join(f"!{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


def _plain(value: Any) -> Any:
    """Return *value* in types of JSON. A type that JSON lacks becomes a list that begins with the type's name."""
    match value:
        case Enum():
            return _plain(value.value)
        case None | bool():
            return value
        case str():
            return str(value)
        case int():
            return int(value) if abs(value) < _LARGE else ["int", hex(value)]  # the decimal form has a limit
        case float():
            return float(value) + 0.0  # -0.0 equals 0.0
        case Mapping():
            return ["object", sorted(([_plain(key), _plain(one)] for key, one in value.items()), key=json.dumps)]
        case bytes() | bytearray():
            return ["bytes", value.hex()]
        case Sequence():
            return ["list", [_plain(one) for one in value]]
        case AbstractSet():
            return ["set", sorted((_plain(one) for one in value), key=json.dumps)]
        case BaseModel():  # not model_dump(), which leaves out fields and runs serializers
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            return _plain(fields | (value.model_extra or {}))
    if is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in dataclass_fields(value)})
    return _tagged(value)


def _tagged(value: Any) -> list[str]:
    match value:
        case Decimal():
            return ["decimal", _decimal(value)]
        case UUID():
            return ["uuid", str(value)]
        case datetime():
            return ["datetime", _moment(value)]
        case date():
            return ["date", value.isoformat()]
        case time():
            return ["time", value.isoformat()]
        case timedelta():
            return ["timedelta", f"{value.days} {value.seconds} {value.microseconds}"]
        case Secret() | SecretStr() | SecretBytes():  # str() masks them all alike, and a key must not reveal them
            secret = json.dumps(_plain(value.get_secret_value()))
            return ["secret", sha256(secret.encode(errors="surrogatepass")).hexdigest()]
    return ["text", str(value)]


def _decimal(value: Decimal) -> str:
    try:
        return str(value.normalize(_EXACT) if value else Decimal(0))
    except ArithmeticError:  # an exponent out of range, or a signaling NaN
        return repr(value.as_tuple())


def _moment(value: datetime) -> str:
    try:
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    except OverflowError:  # in UTC it would be in the year 0 or 10,000
        return value.isoformat()
