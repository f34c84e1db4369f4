"""Puts into words why a body cannot become an event, without the values of its fields, and at a bounded cost."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from smartpipe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import ValidationError

MAX_ERRORS_READ = 1_000
"""Pydantic creates a dict for each error. If there are more errors, only their number is reported."""
MAX_ERRORS_KEPT = 20
MAX_ERROR_CHARACTERS = 500
MAX_NAME_CHARACTERS = 100


class NoEventType(DecodeError):
    """The body has no ``type`` of a CloudEvent, or is not JSON.

    Its kind, its text and its ``errors`` are found when somebody asks for them. Nobody does if a raw handler takes the
    message, and to find them takes longer than to read it.

    Args:
        explain: Raises the DecodeError with the reason. It is called at most once.
    """

    def __init__(self, explain: Callable[[], object]) -> None:
        self._explain = explain
        Exception.__init__(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reason, name)

    def __str__(self) -> str:
        return str(self.reason)

    @cached_property
    def reason(self) -> DecodeError:
        """The error with the reason."""
        try:
            self._explain()
        except DecodeError as error:
            return error
        raise AssertionError


def describe_broken_validator(error: Exception) -> DecodeError:
    """Return the error for a validator of the event class that raised an exception which Pydantic does not handle."""
    try:
        text = repr(error)[:MAX_ERROR_CHARACTERS]
    except Exception:  # noqa: BLE001 - a broken __repr__ must not keep a message from its dead-letter queue
        text = "(its text is not available)"
    return DecodeError("invalid-data", f"a validator of the event class failed: {type(error).__name__}: {text}")


def describe_failure(error: Exception) -> str:
    """Return the type and the text of an error of a user's function, of limited length."""
    try:
        return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
    except Exception:  # noqa: BLE001 - a broken __str__ must not keep a message from its dead-letter queue
        return type(error).__name__


def summarize_errors(error: ValidationError) -> tuple[list[dict[str, Any]], str]:
    """Return the first of Pydantic's errors and a summary of all, both of bounded length.

    They omit the input, which may be personal data and is in the dead-letter message anyway.
    """
    count = error.error_count()
    if count > MAX_ERRORS_READ:
        return [], f"{count:,} errors"
    all_errors = error.errors(include_url=False, include_context=False, include_input=False)
    errors: list[dict[str, Any]] = [
        {"type": one["type"], "loc": tuple(map(_shorten, one["loc"])), "msg": one["msg"][:MAX_ERROR_CHARACTERS]}
        for one in all_errors[:MAX_ERRORS_KEPT]
    ]
    first = [
        f"{'.'.join(map(str, one['loc'])) or 'body'}: {re.sub(r'^Input ', 'input ', one['msg'])}" for one in errors[:3]
    ]
    more = f"; and {count - 3} more" if count > 3 else ""  # noqa: PLR2004
    return errors, "; ".join(first) + more


def _shorten(name: int | str) -> int | str:
    return name[:MAX_NAME_CHARACTERS] if isinstance(name, str) else name
