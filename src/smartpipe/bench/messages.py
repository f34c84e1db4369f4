"""The messages between a run and its child processes: one line of JSON each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, TypeAdapter

from smartpipe.bench.counting import CallCounts  # noqa: TC001 - pydantic reads the annotation
from smartpipe.bench.load import Load  # noqa: TC001 - likewise

TickCounts: TypeAlias = dict[int, int]
"""The number of events in each tick of the clock; see ``fanout.TICKS_PER_SECOND``."""


class Assignment(BaseModel):
    """The role of a child process. It is the first line that the child reads.

    Args:
        producer: The number of this producer, from 0; None for a worker.
        queue: The number of the worker's queue, from 1; 0 for a producer.
    """

    load: Load
    producer: int | None = None
    queue: int = 0


class Command(BaseModel):
    """The next step of a child process.

    Args:
        begin_at: For ``measure``: when the first event is due, on the machine's monotonic clock.
    """

    action: Literal["warm_up", "measure", "report_seen", "stop"]
    begin_at: float = 0.0


class StepDone(BaseModel):
    """A step is done: the child is ``ready`` for commands, its warm-up is published, or it has begun to measure."""

    kind: Literal["ready", "warmed_up", "measuring"]


class Progress(BaseModel):
    """The number of events that a child has processed. Sent only when it has changed.

    Args:
        done: Measured events that were published, or handled for the first time.
        warm: Handled events of the warm-up.
    """

    kind: Literal["progress"] = "progress"
    done: int
    warm: int = 0


class SeenEvents(BaseModel):
    """The events that a worker has handled: one byte for each event, compressed, in Base64."""

    kind: Literal["seen"] = "seen"
    seen: str


@dataclass(kw_only=True)
class ProcessReport:
    """The part of the final report that producers and workers share. Times are on the machine's monotonic clock.

    Args:
        begun_at, ended_at: The times of the first and the last event.
        transport: The name of the transport: ``direct``, ``botocore`` or ``memory``.
    """

    begun_at: float
    ended_at: float
    cpu_seconds: float
    transport: str = ""
    requests: dict[str, CallCounts] = field(default_factory=dict)
    timeline: TickCounts = field(default_factory=dict)


@dataclass(kw_only=True)
class ProducerReport(ProcessReport):
    """The last message of a producer.

    Args:
        failure: The error of the first event that could not be published.
    """

    kind: Literal["producer"] = "producer"
    published: int
    failed: int = 0
    failure: str = ""


@dataclass(kw_only=True)
class WorkerReport(ProcessReport):
    """The last message of a worker.

    Args:
        seen: The events that it has handled; see SeenEvents.
        deliveries: The number of deliveries of measured events, duplicates included.
        latencies: An encoded HdrHistogram of microseconds.
        counts: The counters of its consumers, with the warm-up.
    """

    kind: Literal["worker"] = "worker"
    queue: int
    seen: str
    deliveries: int
    latencies: str
    counts: dict[str, int] = field(default_factory=dict)


ChildMessage: TypeAlias = StepDone | Progress | SeenEvents | ProducerReport | WorkerReport

_MESSAGES: TypeAdapter[ChildMessage] = TypeAdapter(Annotated[ChildMessage, Field(discriminator="kind")])


def parse_message(line: bytes) -> ChildMessage:
    """Return the message of a child process.

    Raises:
        ValueError: The line does not contain such a message.
    """
    return _MESSAGES.validate_json(line)


def format_message(message: ChildMessage) -> bytes:
    """Return *message* as one line of JSON."""
    return _MESSAGES.dump_json(message) + b"\n"
