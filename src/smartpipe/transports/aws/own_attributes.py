"""Keeps the message attributes of botocore's requests as smartpipe has counted them.

Libraries for tracing patch botocore, and add attributes to the entries of PublishBatch and SendMessageBatch. Those of
OpenTelemetry are up to three, of the span of the request. They contradict the trace in the envelope, which is that of
the event. And they come after smartpipe has counted the attributes: above ten, SNS drops the message on its way to a
queue with raw delivery, and reports no error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from smartpipe.limits import MAX_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_W3C_FIELDS = frozenset({"traceparent", "tracestate", "baggage"})
_ATTRIBUTES = "MessageAttributes"


class OwnEntry(dict[str, Any]):
    """An entry of a batch request that remembers the attributes that smartpipe gave it."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        super().__init__(entry)
        self.attributes = dict(entry.get(_ATTRIBUTES) or {})


def mark_own(entries: Sequence[Mapping[str, Any]]) -> list[OwnEntry]:
    """Return *entries* in a form that ``remove_added`` recognizes."""
    return [OwnEntry(entry) for entry in entries]


def keep_own_attributes(client: Any) -> None:
    """Make a client of SNS or SQS remove the attributes that others add to our entries."""
    for name in ("sns.PublishBatch", "sqs.SendMessageBatch"):
        client.meta.events.register(f"provide-client-params.{name}", remove_added, unique_id=f"smartpipe-{name}")


def remove_added(*, params: Mapping[str, Any], **_: Any) -> None:
    """Remove the attributes of OpenTelemetry's propagators, and all that are not ours if there are more than ten.

    A handler of botocore's event ``provide-client-params``, which is emitted after the libraries have added them. An
    attribute that the application itself passed to ``publish`` stays, with its value, under any name.
    """
    for entry in params.get("PublishBatchRequestEntries") or params.get("Entries") or ():
        if not isinstance(entry, OwnEntry) or entry.get(_ATTRIBUTES) == entry.attributes:
            continue
        propagated = _propagated_fields()
        others = {
            name: value
            for name, value in (entry.get(_ATTRIBUTES) or {}).items()
            if name not in entry.attributes and name.lower() not in propagated
        }
        full = len(others) + len(entry.attributes) > MAX_ATTRIBUTES
        kept = entry.attributes if full else {**others, **entry.attributes}
        if kept:
            entry[_ATTRIBUTES] = kept
        else:
            entry.pop(_ATTRIBUTES, None)


def _propagated_fields() -> frozenset[str]:
    """Return the names that OpenTelemetry's configured propagators set, in lower case."""
    propagate: Any = sys.modules.get("opentelemetry.propagate")
    if propagate is None or not hasattr(propagate, "get_global_textmap"):
        return _W3C_FIELDS
    return _W3C_FIELDS | {field.lower() for field in propagate.get_global_textmap().fields}
