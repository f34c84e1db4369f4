"""Messages between a benchmark and its processes, for tests of either side."""

from __future__ import annotations

from smartpipe.bench.latencies import encode_latencies, encode_seen
from smartpipe.bench.messages import ProducerReport, StepDone, WorkerReport

PRODUCED = ProducerReport(begun_at=1.0, ended_at=2.0, cpu_seconds=0.1, published=2)
HANDLED = WorkerReport(
    begun_at=1.0, ended_at=2.0, cpu_seconds=0.1, queue=1, seen=encode_seen(b"\x01\x01"), deliveries=2,
    latencies=encode_latencies([]),
)  # fmt: skip
READY, WARM, MEASURING = (StepDone(kind=kind) for kind in ("ready", "warmed_up", "measuring"))
