"""Samples of memory, file descriptors and CPU time, and the growth that they show."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

GROWTH_BYTES = 10_000_000
GROWTH_DESCRIPTORS = 40
"""Pools grow at the first bursts, and after an outage: a worker has up to 12 connections to PostgreSQL, and one to the
broker for each concurrent call. A leak exceeds them all in the course of a run."""
WARM_UP_SECONDS = 90.0
"""On a busy machine, a process needs more than a minute for its imports."""
MIN_SAMPLES = 9
"""A process with fewer samples after the warm-up is too young to be judged."""


class Sample(NamedTuple):
    """The use of one process at one time.

    Args:
        seconds: The time since the start of the run.
        memory_bytes: The resident set.
    """

    seconds: float
    memory_bytes: int
    descriptors: int


class Growth(NamedTuple):
    """The difference between the first and the last third of a process's samples after the warm-up."""

    memory_bytes: int
    descriptors: int

    @property
    def is_flat(self) -> bool:
        return self.memory_bytes <= GROWTH_BYTES and self.descriptors <= GROWTH_DESCRIPTORS


def take_sample(pid: int, seconds: float) -> Sample | None:
    """Return a sample of the process, or None if it has ended."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return Sample(seconds, process.memory_info().rss, process.num_fds())
    except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
        return None


def measure_growth(samples: Sequence[Sample]) -> Growth | None:
    """Return the growth, or None if there are too few samples.

    The warm-up takes 90 s or, of a process that lives for long, the first quarter of its time.
    """
    if not samples:
        return None
    start, end = samples[0].seconds, samples[-1].seconds
    warm = [sample for sample in samples if sample.seconds - start >= max(WARM_UP_SECONDS, (end - start) / 4)]
    if len(warm) < MIN_SAMPLES:
        return None
    first, last = warm[: len(warm) // 3], warm[-(len(warm) // 3) :]

    def grown(column: int) -> int:
        return round(median(sample[column] for sample in last) - median(sample[column] for sample in first))

    return Growth(grown(1), grown(2))


class CpuMeter:
    """Adds up the CPU time of this process and of all its children, those that have ended included."""

    def __init__(self) -> None:
        self._by_process: dict[tuple[int, float], float] = {}

    def read(self) -> float:
        """Return the CPU seconds up to now. A child that ends between two calls loses its share since the first."""
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                times = process.cpu_times()
                reaped = 0.0 if process.pid == own.pid else times.children_user + times.children_system
                self._by_process[process.pid, process.create_time()] = times.user + times.system + reaped
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return sum(self._by_process.values())
