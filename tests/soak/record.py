"""The record of a soak: what it counted and measured, and the promises that it found broken."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tests.soak.samples import Growth, Sample, measure_growth

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(kw_only=True)
class Record:
    """Grows during the run; the report, the page and the picture are made from it.

    Args:
        rate: Events of each class that each producer publishes per second.
        spared: The processes that are never killed, by key, with their names.
        names: The name of each process by its key: its service, ``relay`` or its kind of producer.
        accepted: Events that SNS or the outbox's transaction has accepted, and messages that SQS has.
        expected: The effects that these must have: one in each service that handles them.
        lost: Expected effects that did not happen.
        doubled: Effects of idempotent handlers that happened more than once.
        repeated: Effects of the handler without idempotency that happened more than once. At least once permits it.
        out_of_order: Events of the FIFO queue whose effect happened after that of a later event of their group.
        stranded: Messages in the queues and rows in the outbox two minutes after the last disturbance.
        poison_lost: Poison messages that are not in a dead-letter queue with the expected reason.
        poison_repeated: Further copies of poison messages in the dead-letter queues.
        good_dead_lettered: Other messages in the dead-letter queues.
        internal_errors: Log lines of workers and relays that report an internal error.
        failed_ends: Processes that ended though nothing had killed or stopped them, with their last line.
        bad_drains: Workers and relays that did not end with exit code 0 or 1 after SIGTERM.
        disturbances: Each disturbance's name, start and end.
        kills: The times of the kills.
        progress: (seconds, accepted, effects, messages in the queues), one in ten seconds.
        samples: The samples of each process by its key.
        cpu_cores: The CPU time of all processes together, divided by the duration.
    """

    minutes: float
    seed: int
    rate: float
    machine: dict[str, str]
    seconds: float = 0.0
    spared: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    accepted: int = 0
    expected: int = 0
    effects: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: int = 0
    out_of_order: int = 0
    stranded: int = 0
    poison: int = 0
    poison_lost: int = 0
    poison_repeated: int = 0
    good_dead_lettered: int = 0
    internal_errors: int = 0
    faults: int = 0
    drains: int = 0
    drains_with_1: int = 0
    failed_ends: list[str] = field(default_factory=list)
    bad_drains: list[str] = field(default_factory=list)
    disturbances: list[tuple[str, float, float]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    progress: list[tuple[float, int, int, int]] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    cpu_cores: float = 0.0

    @property
    def growth(self) -> dict[str, Growth]:
        """The growth of each process that lived long enough to be judged."""
        found = {key: measure_growth(samples) for key, samples in self.samples.items()}
        return {key: growth for key, growth in found.items() if growth is not None}

    @property
    def violations(self) -> list[str]:
        """The promises that were broken."""
        must_be_zero = {
            "effects lost": self.lost,
            "effects doubled in idempotent handlers": self.doubled,
            "effects out of order on the FIFO queue": self.out_of_order,
            "messages and rows stranded": self.stranded,
            "poison messages not in the dead-letter queue with their reason": self.poison_lost,
            "good messages dead-lettered": self.good_dead_lettered,
            "internal errors logged": self.internal_errors,
        }
        broken = [f"{count} {name}" for name, count in must_be_zero.items() if count]
        broken += [
            f"{self.names[key]} ({key}) grew by {growth.memory_bytes / 1e6:.1f} MB and {growth.descriptors} descriptors"
            for key, growth in self.growth.items()
            if not growth.is_flat
        ]
        broken += [f"ended unexpectedly: {line}" for line in self.failed_ends if line.partition(",")[0] in self.spared]
        broken += [f"did not drain: {line}" for line in self.bad_drains]
        if not self.effects or not self.poison:
            broken.append("nothing was published, so nothing was tested")
        return broken

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        fields: dict[str, Any] = json.loads(path.read_text())
        for name in ("disturbances", "progress"):
            fields[name] = [tuple(one) for one in fields[name]]
        fields["samples"] = {key: [Sample(*sample) for sample in found] for key, found in fields["samples"].items()}
        return cls(**fields)
