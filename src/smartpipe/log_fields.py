"""The fields of log records: those that a caller adds, and those of the delivery that is being handled.

A handler's own lines name its delivery, so that you find every line about an event. ``smartpipe worker`` adds these
fields by itself, and so does a Lambda function. Elsewhere, add a DeliveryFilter to each handler of your logging
configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smartpipe.envelope.ids import current_cause

if TYPE_CHECKING:
    from collections.abc import Container

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""The attributes of every record. Python adds ``taskName`` from 3.12 on, and a Formatter adds the other two."""


class DeliveryFilter(logging.Filter):
    """Adds the fields of the delivery that is being handled to each record, as attributes. It refuses no record.

    The fields are ``event_id``, ``event_type``, ``message_id``, ``trace_id``, ``handler``, ``queue``, ``service`` and
    ``receive_count``. In a batch handler they are those of the first event, and ``items`` is the number of events. A
    record that has an attribute of the same name keeps it. Records that are logged outside of handlers, and those of
    smartpipe itself, stay unchanged.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, and return True."""
        for name, value in delivery_fields(record).items():
            if name not in record.__dict__:
                setattr(record, name, value)
        return True


def add_delivery_filter() -> None:
    """Add a DeliveryFilter to each handler of the root logger that has none."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, DeliveryFilter) for one in handler.filters):
            handler.addFilter(DeliveryFilter())


def delivery_fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """Return the fields of the delivery that is being handled where *record* is logged.

    The lines of smartpipe itself have fields of their own. One about a batch of messages may be logged in the context
    of one of their handlers, which it is not about.
    """
    cause = current_cause.get()
    return {} if cause is None or is_own(record) else getattr(cause, "log_fields", {})


def is_own(record: logging.LogRecord) -> bool:
    """Return whether smartpipe itself has logged *record*."""
    return record.name.partition(".")[0] == "smartpipe"


def fields_of(record: logging.LogRecord, reserved: Container[object] = ()) -> dict[str, Any]:
    """Return all fields of *record*: those of the delivery, of ``extra={...}`` and of ``extra={"fields": {...}}``.

    A field that the caller has named like one of the delivery, or like one of *reserved*, gets the prefix ``extra_``.
    """
    found = dict(delivery_fields(record))
    given = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
    fields = given.pop("fields", {})
    for source in (fields if isinstance(fields, Mapping) else {"fields": fields}, given):
        for key, value in source.items():
            name = key if isinstance(key, str) else _to_name(key)
            if name in found and _is_same(found[name], value):
                continue
            while name in found or name in reserved:
                name = f"extra_{name}"
            found[name] = value
    return found


def _to_name(key: object) -> str:
    try:
        return str(key)
    except Exception:  # noqa: BLE001 - __str__ may raise any error
        return type(key).__name__


def _is_same(one: object, other: object) -> bool:
    """Return whether the two are the same text or number. Other objects may compare in any way, or raise."""
    return one is other or (isinstance(one, (str, int)) and type(one) is type(other) and one == other)
