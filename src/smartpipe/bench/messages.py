"""What a run and its processes tell each other: one line of JSON each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, TypeAdapter

from smartpipe.bench.counting import Calls  # noqa: TC001 - pydantic reads the annotation
from smartpipe.bench.load import Load  # noqa: TC001 - likewise

Course: TypeAlias = dict[int, int]


class Assignment(BaseModel):
    """The first line that a process reads: what it is.

    Args:
        producer: Its number, from 0; None for a worker.
        queue: Whose worker it is, from 1; 0 for a producer.
    """

    load: Load
    producer: int | None = None
    queue: int = 0


class Order(BaseModel):
    """What is to be done next.

    Args:
        begin_at: Of ``measure``: when the first event is due, on the machine's monotonic clock.
    """

    what: Literal["warm", "measure", "tally", "stop"]
    begin_at: float = 0.0


class Said(BaseModel):
    """A step is done: ``ready`` for orders, ``warm`` events are published, ``measuring`` has begun."""

    kind: Literal["ready", "warm", "measuring"]


class Progress(BaseModel):
    """How far a process is; only when it is further than before.

    Args:
        done: Published, or handled for the first time.
        warm: The same, of events that are not measured.
    """

    kind: Literal["progress"] = "progress"
    done: int
    warm: int = 0


class Tally(BaseModel):
    """Which events a worker has handled: a byte each, compressed, in Base64."""

    kind: Literal["tally"] = "tally"
    seen: str


@dataclass(kw_only=True)
class Side:
    """What every process reports of itself. Moments are the machine's monotonic clock's.

    Args:
        begun_at, ended_at: Of its first and its last event.
        transport: The name of the transport that it used.
        course: How many events in each tick of the clock: ``fanout.TICKS_PER_SECOND``.
    """

    begun_at: float
    ended_at: float
    cpu_seconds: float
    transport: str = ""
    requests: dict[str, Calls] = field(default_factory=dict)
    course: Course = field(default_factory=dict)


@dataclass(kw_only=True)
class Published(Side):
    """A producer's last word.

    Args:
        failure: What was said of the first event that was not published.
    """

    kind: Literal["published"] = "published"
    published: int
    failed: int = 0
    failure: str = ""


@dataclass(kw_only=True)
class Handled(Side):
    """A worker's last word.

    Args:
        seen: As in a Tally.
        deliveries: Of measured events, those that came again included.
        latencies: A HdrHistogram of microseconds, in its own encoding.
        counts: What its consumers counted, with the warm-up.
    """

    kind: Literal["handled"] = "handled"
    queue: int
    seen: str
    deliveries: int
    latencies: str
    counts: dict[str, int] = field(default_factory=dict)


Message: TypeAlias = Said | Progress | Tally | Published | Handled

_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def read(line: bytes) -> Message:
    """Return what a process said.

    Raises:
        ValueError: It is none of these.
    """
    return _MESSAGES.validate_json(line)


def write(message: Message) -> bytes:
    """Return the line that says it."""
    return _MESSAGES.dump_json(message) + b"\n"
