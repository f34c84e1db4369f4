"""Run a benchmark with child processes: start, warm up, measure, and collect the reports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.bench.children import ChildProcess, ChildProcesses
from smartpipe.bench.latencies import count_seen
from smartpipe.bench.messages import Assignment, Command, ProducerReport, Progress, SeenEvents, StepDone, WorkerReport
from smartpipe.bench.worker import DRAIN_SECONDS
from smartpipe.errors import SmartpipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from smartpipe.bench.load import Load
    from smartpipe.bench.messages import ChildMessage

START_SECONDS = 60.0
"""The limit for the start of all processes. It covers imports and first calls on a busy machine."""
LEAD_SECONDS = 0.1
"""The time between the command to measure and the beginning, so that all producers begin at the same time."""
REPEAT_WARM_UP_SECONDS = 10.0


class StalledError(SmartpipeError):
    """No process has sent a message for some time."""


class RunProgress(NamedTuple):
    """The phase of a run, and the number of events that it has published and handled so far."""

    phase: str
    published: int = 0
    handled: int = 0


class Reports(NamedTuple):
    """The final reports of the processes."""

    published: list[ProducerReport]
    handled: list[WorkerReport]


def assign_processes(load: Load) -> list[tuple[str, Assignment]]:
    """Return the name and assignment of each process. Workers are first, so that they start before the producers."""
    workers = [
        (f"worker {number} of queue {queue}", Assignment(load=load, queue=queue))
        for queue in range(1, load.queues + 1)
        for number in range(1, load.processes + 1)
    ]
    producers = [(f"producer {number + 1}", Assignment(load=load, producer=number)) for number in range(load.producers)]
    return workers + producers


async def run(load: Load, environment: Mapping[str, str], on_progress: Callable[[RunProgress], None]) -> Reports:
    """Measure *load* with child processes.

    Args:
        environment: The environment variables of the processes. The topic and the queues must exist.
        on_progress: Called after each message of a process.

    Raises:
        SmartpipeError: A process ended or did not start in time, or the events of the warm-up did not arrive.
    """
    async with ChildProcesses(assign_processes(load), environment) as processes:
        return await _Run(load, processes, on_progress).run()


class _Run:
    def __init__(self, load: Load, processes: ChildProcesses, on_progress: Callable[[RunProgress], None]) -> None:
        self._load = load
        self._processes = processes
        self._on_progress = on_progress
        self._phase = "starting"
        self._steps_done: dict[str, set[int]] = {"ready": set(), "warmed_up": set(), "measuring": set()}
        self._progress: dict[int, Progress] = {}
        self._seen: dict[int, str] = {}
        self._count_at_request: dict[int, int] = {}
        self._reports = Reports([], [])
        self._producers = [child for child in processes.children if child.assignment.producer is not None]
        self._workers = [child for child in processes.children if child.assignment.producer is None]

    async def run(self) -> Reports:
        await self._wait_until("starting", lambda: self._all_done(self._processes.children, "ready"), START_SECONDS)
        patience = self._load.patience_seconds
        await self._warm_up(patience)
        self._processes.send(Command(action="measure"), self._workers)
        await self._wait_until("warming up", lambda: self._all_done(self._workers, "measuring"), patience)
        self._progress.clear()
        self._processes.send(Command(action="measure", begin_at=time.monotonic() + LEAD_SECONDS), self._producers)
        try:
            await self._wait_until("measuring", self._is_done, patience)
        except StalledError as error:
            if len(self._reports.published) < len(self._producers):
                msg = f"{error}, although producers still have events to publish: is the broker running?"
                raise SmartpipeError(msg) from None
        self._processes.send(Command(action="stop"), self._workers)
        timeout = DRAIN_SECONDS + patience
        await self._wait_until("draining", lambda: len(self._reports.handled) == len(self._workers), timeout)
        return self._reports

    async def _warm_up(self, patience_seconds: float) -> None:
        """Publish the warm-up events, again every 10 s until they arrive: a new AWS subscription needs some time."""
        left = patience_seconds
        while True:
            self._processes.send(Command(action="warm_up"), self._producers)
            try:
                await self._wait_until("warming up", self._is_warm, min(left, REPEAT_WARM_UP_SECONDS))
            except StalledError:
                left -= REPEAT_WARM_UP_SECONDS
                if left <= 0:
                    raise
            else:
                return

    async def _wait_until(self, phase: str, condition: Callable[[], bool], timeout_seconds: float) -> None:
        """Process messages until *condition* holds.

        Raises:
            StalledError: No message arrived for *timeout_seconds*.
        """
        self._phase = phase
        self._report_progress()
        while not condition():
            try:
                child, message = await self._processes.receive(timeout_seconds)
            except TimeoutError:
                raise StalledError(f"while {phase}, nothing happened for {timeout_seconds:g} s") from None
            self._process(child, message)
            self._report_progress()

    def _process(self, child: ChildProcess, message: ChildMessage) -> None:
        pid = child.process.pid
        if isinstance(message, StepDone):
            self._steps_done[message.kind].add(pid)
        elif isinstance(message, Progress):
            self._progress[pid] = message
        elif isinstance(message, SeenEvents):
            self._seen[pid] = message.seen
        elif isinstance(message, ProducerReport):
            self._progress[pid] = Progress(done=message.published)
            self._reports.published.append(message)
        else:
            self._reports.handled.append(message)

    def _all_done(self, children: Sequence[ChildProcess], step: str) -> bool:
        return all(child.process.pid in self._steps_done[step] for child in children)

    def _is_warm(self) -> bool:
        return self._all_done(self._producers, "warmed_up") and all(
            sum(self._progress_of(worker).warm for worker in workers) >= self._load.warmup
            for workers in self._workers_by_queue()
        )

    def _is_done(self) -> bool:
        """Return whether every event was published or has failed, and every published one has reached every queue."""
        if len(self._reports.published) < len(self._producers):
            return False
        expected = self._load.events - sum(report.failed for report in self._reports.published)
        return all(self._is_complete(workers, expected) for workers in self._workers_by_queue())

    def _is_complete(self, workers: Sequence[ChildProcess], expected: int) -> bool:
        """Return whether the workers of one queue have handled all events.

        An event that was delivered to two workers is in both counts. So with several workers, ask them for the events
        themselves, and count the union.
        """
        count = sum(self._progress_of(worker).done for worker in workers)
        if count < expected or len(workers) == 1:
            return count >= expected
        queue = workers[0].assignment.queue
        if self._count_at_request.get(queue) != count:  # the workers have made progress since the last request
            self._count_at_request[queue] = count
            for worker in workers:
                self._seen.pop(worker.process.pid, None)
            self._processes.send(Command(action="report_seen"), workers)
            return False
        seen = [self._seen[worker.process.pid] for worker in workers if worker.process.pid in self._seen]
        return len(seen) == len(workers) and count_seen(seen) >= expected

    def _workers_by_queue(self) -> list[list[ChildProcess]]:
        queues = range(1, self._load.queues + 1)
        return [[worker for worker in self._workers if worker.assignment.queue == queue] for queue in queues]

    def _progress_of(self, child: ChildProcess) -> Progress:
        return self._progress.get(child.process.pid, Progress(done=0))

    def _report_progress(self) -> None:
        published = sum(self._progress_of(producer).done for producer in self._producers)
        handled = sum(self._progress_of(worker).done for worker in self._workers)
        self._on_progress(RunProgress(self._phase, published, handled))
