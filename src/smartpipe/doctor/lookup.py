"""Reads values from parsed manifests, whose structure can be wrong anywhere. Pure."""

from __future__ import annotations

import math
import re
from typing import Any

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([EPTGMKk]i?|m)?")
_SIZE = re.compile(r"(\d+(?:\.\d*)?)(?:([bkmg])b?)?", re.IGNORECASE)
_AWS_HOST = re.compile(
    r"https?://(?:[\w-]+\.)*?(?:sqs|sns|queue)\.([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com(?:\.cn)?(?:[/:]|$)"
)
_POWERS = "KMGTPE"
_TOO_LARGE = 1e30


def find(value: Any, *keys: str) -> Any:
    """Return the value below these keys of nested tables; None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def find_table(value: Any, *keys: str) -> dict[str, Any]:
    """Return the table below these keys; an empty one if there is none."""
    found = find(value, *keys)
    return {str(key): one for key, one in found.items()} if isinstance(found, dict) else {}


def find_rows(value: Any, *keys: str) -> list[dict[str, Any]]:
    """Return the tables in the list below these keys."""
    found = find(value, *keys)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def find_texts(value: Any, *keys: str) -> list[str]:
    """Return the texts and numbers in the list below these keys, or the one text, as a list of texts."""
    found = find(value, *keys)
    rows = found if isinstance(found, list) else [found]
    return [str(one) for one in rows if isinstance(one, (str, int, float))]


def find_words(value: Any, *keys: str) -> list[str]:
    """Return the words of a command below these keys.

    A word that is a function of CloudFormation or a value of another kind is ``${…}``, as a variable would be.
    """
    found = find(value, *keys)
    rows = found if isinstance(found, list) else [] if found is None else [found]
    return [str(one) if isinstance(one, (str, int, float)) else "${…}" for one in rows]


def to_number(value: Any) -> float | None:
    """Return a finite number, or a text that is one; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return _limit(float(value))
    except (ValueError, OverflowError):
        return None


def to_seconds(value: Any) -> float | None:
    """Return the seconds of a duration of compose, such as ``1m30s``; None if it is not one."""
    found = _DURATION.fullmatch(str(value)) if isinstance(value, (str, int)) and value else None
    if found is None:
        return None
    hours, minutes, seconds, milliseconds = (float(one or 0) for one in found.groups())
    return _limit(hours * 3_600 + minutes * 60 + seconds + milliseconds / 1_000)


def to_quantity(value: Any) -> float | None:
    """Return a quantity of Kubernetes, such as ``500m`` or ``512Mi``, in its base unit; None if it is not one."""
    found = _QUANTITY.fullmatch(str(value)) if isinstance(value, (str, int, float)) else None
    if found is None:
        return None
    number, unit = float(found[1]), found[2] or ""
    if unit == "m":
        return _limit(number / 1_000)
    if not unit:
        return _limit(number)
    base = 1_024 if unit.endswith("i") else 1_000
    return _limit(number * float(base ** (_POWERS.index(unit[0].upper()) + 1)))


def to_bytes(value: Any) -> float | None:
    """Return a size of compose, such as ``512M`` or ``1gb``, in bytes; None if it is not one."""
    found = _SIZE.fullmatch(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    return _limit(float(found[1]) * 1_024.0 ** "bkmg".index((found[2] or "b").lower())) if found else None


def find_region(url: str) -> str | None:
    """Return the region in the address of SQS or SNS; None if it has none, as that of an emulator."""
    found = _AWS_HOST.match(url)
    return found[1] if found else None


def _limit(number: float) -> float | None:
    """Return a number; None for NaN and numbers without a meaning, so that no sum and no product is infinite."""
    return number if math.isfinite(number) and abs(number) < _TOO_LARGE else None
