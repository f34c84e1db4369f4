"""The ``traceparent`` of W3C Trace Context."""

from __future__ import annotations

import os
import re
import sys
from random import Random
from typing import Any

TRACEPARENT_PATTERNS = (
    r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
    r"^(?:[^f].|f[^f])-0*[1-9a-f][0-9a-f]*-0*[1-9a-f]",
)
"""A traceparent matches both. Version ff and ids of only zeros are invalid (W3C Trace Context, section 3.2.2)."""

OPENTELEMETRY = "opentelemetry.trace"
"""The module that has the current span, if the application has imported it."""

_ODD_DIGITS = frozenset("13579bdf")
_FORMS = tuple(map(re.compile, TRACEPARENT_PATTERNS))
_random = Random()  # noqa: S311 - not the shared one, which applications seed; trace ids are not secrets
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_traceparent() -> str:
    """Return the traceparent of a new trace without a span, for which no sampler has decided yet.

    It is not sampled (W3C Trace Context, version 00), because no span was recorded. Its span id is the first half of
    its trace id. By that, ``is_undecided`` distinguishes it from a publisher's decision against sampling, so a consumer
    with OpenTelemetry asks its own sampler.
    """
    digits = f"{_random.getrandbits(128):032x}"
    return f"00-{digits}-{digits[:16]}-00"


def is_sampled(traceparent: str) -> bool:
    """Return whether its span was recorded, by the flag of W3C Trace Context, section 3.2.2.5."""
    return traceparent[54] in _ODD_DIGITS


def is_undecided(traceparent: str) -> bool:
    """Return whether it comes from ``new_traceparent``: it names a trace, but no span."""
    return traceparent[36:52] == traceparent[3:19] and not is_sampled(traceparent)


def is_unsampled(traceparent: str | None) -> bool:
    """Return whether somebody has decided that its trace is not recorded."""
    return traceparent is not None and traceparent[54] not in _ODD_DIGITS and traceparent[36:52] != traceparent[3:19]


def read_traceparent(header: object) -> str | None:
    """Return *header* if it is a valid traceparent, and None if it is not, or is missing.

    W3C Trace Context, section 4.3: a service that receives an invalid traceparent starts a new trace. So pass the
    header of a request through this function before you publish with it.
    """
    valid = isinstance(header, str) and all(form.search(header) and "\n" not in header for form in _FORMS)
    return str(header) if valid else None


def current_traceparent() -> str | None:
    """Return the traceparent of OpenTelemetry's current span, or None if there is no span.

    Only an application that has imported OpenTelemetry can have one.
    """
    trace: Any = sys.modules.get(OPENTELEMETRY)
    if trace is None or not hasattr(trace, "get_current_span"):  # it may be half imported, in another thread
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_fields(traceparent: str | None) -> dict[str, str | None]:
    """Return the fields of a log line by the names of OpenTelemetry's "Trace Context in non-OTLP Log Formats"."""
    if not traceparent:
        return {"trace_id": None, "span_id": None, "trace_flags": None}
    if is_undecided(traceparent):  # there is no span
        return {"trace_id": traceparent[3:35], "span_id": None, "trace_flags": None}
    return {"trace_id": traceparent[3:35], "span_id": traceparent[36:52], "trace_flags": traceparent[53:55]}


def trace_id(traceparent: str | None) -> str | None:
    """Return the trace id, 32 hex digits."""
    return traceparent[3:35] if traceparent else None


def format_trace_header(traceparent: str) -> str:
    """Return the header of AWS X-Ray for the span of *traceparent*.

    Source: AWS X-Ray developer guide, "Tracing header" and "Trace ids" (of W3C: the same digits, in groups).
    """
    root = f"1-{traceparent[3:11]}-{traceparent[11:35]}"
    return f"Root={root};Parent={traceparent[36:52]};Sampled={int(is_sampled(traceparent))}"


def read_trace_header(header: str) -> str | None:
    """Return the traceparent of a header of AWS X-Ray, or None if it names no span.

    Without a decision (``Sampled=?``, or nothing), it is one of which ``is_undecided`` says so.
    """
    fields = dict(part.strip().partition("=")[::2] for part in header.split(";"))
    digits, parent = fields.get("Root", "").partition("-")[2].replace("-", ""), fields.get("Parent", "")
    sampled = fields.get("Sampled")
    if sampled not in ("0", "1"):
        parent = digits[:16]
    return read_traceparent(f"00-{digits}-{parent}-0{sampled if sampled == '1' else 0}")
