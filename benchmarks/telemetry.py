"""CPU time that metrics and traces add to a message, on a transport that does nothing.

    python -m benchmarks.telemetry [--rounds N] [--messages N]

Run it from the root of the checkout. All variants take turns in one process, in random order, and only CPU time counts.
It needs ``opentelemetry-sdk``. The hand-written loop reads each event with the same class, and makes the same span for
it; it has no leases, retries, limits or metrics.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import uvloop
from benchmarks.scale import EndlessTransport
from benchmarks.scale_service import Placed
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from pydantic_core import from_json

from smartpipe import Service, Worker
from smartpipe.envelope.encode import encode, wrap
from smartpipe.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
BATCH = 10


class Discard(SpanExporter):
    """An exporter that sends nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Discard *spans*."""
        return SpanExportResult.SUCCESS


PROVIDER = TracerProvider()
PROVIDER.add_span_processor(BatchSpanProcessor(Discard()))


def make_body(traceparent: str) -> str:
    return encode(wrap(Placed(number=1), source="benchmark")._replace(traceparent=traceparent))


@contextmanager
def tracing() -> Iterator[None]:
    """Let the process have a tracer provider inside the block."""
    with patch.object(trace, "_TRACER_PROVIDER", PROVIDER):
        yield


async def run_worker(messages: int, traceparent: str, *, metrics: bool) -> float:
    """Return the CPU time for each message in µs."""
    service, handled = Service("benchmark"), 0

    @service.subscribe(Placed)
    async def handle(event: Placed) -> None:
        nonlocal handled
        handled += 1
        if handled == messages:
            worker.stop()

    options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "wait_seconds": 1, "log_level": "error"}
    settings = WorkerSettings.load(**options, metrics=metrics)
    worker = Worker(service, EndlessTransport(messages, body=make_body(traceparent)), settings)
    began = time.process_time()
    await worker.run()
    return (time.process_time() - began) / messages * 1e6


async def run_by_hand(messages: int, traceparent: str) -> float:
    """Do the same in a loop written by hand."""
    transport, tracer = EndlessTransport(messages, body=make_body(traceparent)), trace.get_tracer("by-hand")
    began = time.process_time()
    for _ in range(messages // BATCH):
        received = await transport.receive("queue", max_messages=BATCH, wait_seconds=0, visibility_timeout_seconds=30)
        for message in received:
            envelope = from_json(message.body)
            event, parent = Placed.model_validate(envelope["data"]), envelope["traceparent"]
            context = trace.SpanContext(
                int(parent[3:35], 16), int(parent[36:52], 16), is_remote=True, trace_flags=trace.TraceFlags(1)
            )
            attributes = {
                "messaging.system": "aws_sqs",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": "queue",
                "messaging.message.id": message.message_id,
                "cloudevents.event_id": envelope["id"],
                "cloudevents.event_source": envelope["source"],
                "messaging.message.conversation_id": envelope["correlationid"],
                "smartpipe.handler": "handle",
                "smartpipe.receive_count": message.receive_count,
                "cloudevents.event_type": envelope["type"],
            }
            span = tracer.start_span(
                "process queue", kind=trace.SpanKind.CONSUMER, links=[trace.Link(context)], attributes=attributes
            )
            with trace.use_span(span, end_on_exit=True):
                assert event.number == 1
        await transport.delete("queue", [message.receipt_handle for message in received])
    return (time.process_time() - began) / messages * 1e6


def measure(name: str, messages: int) -> float:
    """Run one variant."""
    gc.collect()
    if name == "everything off":
        return uvloop.run(run_worker(messages, UNSAMPLED, metrics=False))
    if name == "metrics":
        return uvloop.run(run_worker(messages, UNSAMPLED, metrics=True))
    with tracing():
        if name == "traces, not sampled":
            return uvloop.run(run_worker(messages, UNSAMPLED, metrics=False))
        if name == "traces, sampled":
            return uvloop.run(run_worker(messages, SAMPLED, metrics=False))
        return uvloop.run(run_by_hand(messages, SAMPLED))


NAMES = ("everything off", "metrics", "traces, not sampled", "traces, sampled", "loop by hand with the same spans")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.telemetry", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--messages", type=int, default=4_000)
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    measure("traces, sampled", options.messages)  # imports and caches
    for _ in range(options.rounds):
        for name in random.sample(NAMES, len(NAMES)):
            found[name].append(measure(name, options.messages))
    for name, values in found.items():
        added = median(one - off for one, off in zip(values, found["everything off"], strict=True))
        print(f"{name:34} {median(values):6.1f} µs, least {min(values):5.1f}, added {added:+6.2f}")


if __name__ == "__main__":
    main()
