"""OpenTelemetry with a real SDK, whose spans tests read."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def recording_spans(sampler: Any = None) -> Iterator[Any]:
    """Set a tracer provider for the whole process inside the block; yield the exporter that keeps its spans."""
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    exporter = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider(sampler=sampler)
    provider.add_span_processor(pytest.importorskip("opentelemetry.sdk.trace.export").SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", provider)
        yield exporter


def draw(exporter: Any) -> list[str]:
    """Return the finished spans as a tree of their names, each indented below its parent, by name and start."""
    spans = sorted(exporter.get_finished_spans(), key=lambda span: (span.name, span.start_time))
    known = {span.context.span_id for span in spans}

    def walk(parent: int | None, depth: int) -> Iterator[str]:
        for span in spans:
            above = span.parent.span_id if span.parent is not None and span.parent.span_id in known else None
            if above == parent:
                yield "  " * depth + span.name
                yield from walk(span.context.span_id, depth + 1)

    return list(walk(None, 0))


def traces(spans: Sequence[Any]) -> set[int]:
    """Return the ids of the traces of *spans*."""
    return {span.context.trace_id for span in spans}


def find_span(exporter: Any, name: str) -> Any:
    """Return the only finished span of this name."""
    [span] = [one for one in exporter.get_finished_spans() if one.name == name]
    return span
