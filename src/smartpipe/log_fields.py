"""The fields of log records: those that a caller adds, and those of the delivery that is being handled.

A handler's own lines name its delivery, so that you find every line about an event. ``smartpipe worker`` adds these
fields by itself, and so does a Lambda function. Elsewhere, add a DeliveryFilter to each handler of your logging
configuration. For structlog, add ``add_delivery_fields`` to its processors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smartpipe.envelope.ids import current_cause
from smartpipe.envelope.traceparent import current_traceparent, trace_fields

if TYPE_CHECKING:
    from collections.abc import Container, MutableMapping

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""The attributes of every record. Python adds ``taskName`` from 3.12 on, and a Formatter adds the other two."""


class DeliveryFilter(logging.Filter):
    """Adds the fields of the delivery that is being handled to each record, as attributes. It refuses no record.

    The fields are ``event_id``, ``event_type``, ``message_id``, ``trace_id``, ``span_id``, ``trace_flags``,
    ``handler``, ``queue``, ``service``, ``attempt`` and ``receive_count``. The three of the trace are those of
    OpenTelemetry's current span, if there is one, and of the event otherwise. In a batch handler, the fields are those
    of the first event, and ``items`` is the number of events. A record that has an attribute of the same name keeps it.
    Records that are logged outside of handlers, and those of smartpipe itself, stay unchanged.
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


def add_delivery_fields(
    logger: Any,  # noqa: ARG001 - the signature of structlog's processors
    method_name: str,  # noqa: ARG001
    event_dict: MutableMapping[str, Any],
) -> MutableMapping[str, Any]:
    """Add the fields of the delivery that is being handled, as a processor of structlog.

    The fields are those of DeliveryFilter. A key that the event has already keeps its value.

    Args:
        logger: Not used.
        method_name: Not used.
        event_dict: The keys of the line, to which the fields are added.
    """
    for name, value in current_fields().items():
        event_dict.setdefault(name, value)
    return event_dict


def delivery_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of the delivery that is being handled where *record* is logged.

    The lines of smartpipe itself have fields of their own. One about a batch of messages may be logged in the context
    of one of their handlers, which it is not about.
    """
    return {} if current_cause.get() is None or is_own(record) else current_fields()


def current_fields() -> dict[str, Any]:
    """Return the fields of the delivery that is being handled, or none outside of handlers."""
    fields: dict[str, Any] | None = getattr(current_cause.get(), "log_fields", None)
    if fields is None:
        return {}
    try:
        traceparent = current_traceparent()
    except Exception:  # noqa: BLE001 - a broken span of another library must not lose the line
        traceparent = None
    if traceparent is not None:
        fields.update(trace_fields(traceparent))
    return fields


def is_own(record: logging.LogRecord) -> bool:
    """Return whether smartpipe itself has logged *record*."""
    return str(record.name).partition(".")[0] == "smartpipe"


def fields_of(record: logging.LogRecord, reserved: Container[object] = ()) -> dict[str, Any]:
    """Return all fields of *record*: those of the delivery, of ``extra={...}`` and of ``extra={"fields": {...}}``.

    A field that the caller has named like one of the delivery, or like one of *reserved*, gets the prefix ``extra_``.
    """
    found = delivery_fields(record)
    given = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
    fields = given.pop("fields", {})
    for source in (fields if type(fields) is dict else _to_dict(fields), given):
        for key, value in source.items():
            name = key if isinstance(key, str) else _to_name(key)
            if name in found and _is_same(found[name], value):
                continue
            while name in found or name in reserved:
                name = f"extra_{name}"
            found[name] = value
    return found


def _to_dict(fields: object) -> dict[Any, Any]:
    try:
        if isinstance(fields, Mapping):
            return dict(fields)
    except Exception:  # noqa: BLE001, S110 - its methods may raise any error
        pass
    return {"fields": fields}


def _to_name(key: object) -> str:
    try:
        return str(key)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - __str__ may raise any error, and that of a Rust object may panic
        return type(key).__name__


def _is_same(one: object, other: object) -> bool:
    """Return whether the two are the same text or number. Other objects may compare in any way, or raise."""
    return one is other or (isinstance(one, (str, int)) and type(one) is type(other) and one == other)
