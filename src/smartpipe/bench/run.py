"""One run with processes: start, warm up, measure, and let them report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.bench.crew import Crew, Member
from smartpipe.bench.handling import DRAIN_SECONDS
from smartpipe.bench.latencies import count_seen
from smartpipe.bench.messages import Assignment, Handled, Order, Progress, Published, Said, Tally
from smartpipe.errors import SmartpipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from smartpipe.bench.load import Load
    from smartpipe.bench.messages import Message

START_SECONDS = 60.0
"""From starting the processes until all of them are ready: imports, first calls, on a busy machine."""
LEAD_SECONDS = 0.1
"""Between the order to begin and the beginning, which is then the same for all producers."""


WARM_AGAIN_SECONDS = 10.0


class Stalled(SmartpipeError):
    """No process has got any further for some time."""


class Standing(NamedTuple):
    """How far a run is, for whoever watches it."""

    phase: str
    published: int = 0
    handled: int = 0


class Reports(NamedTuple):
    """What the processes said of themselves at the end."""

    published: list[Published]
    handled: list[Handled]


def assignments(load: Load) -> list[tuple[str, Assignment]]:
    """Return each process's part and name: workers first, as events wait for nobody."""
    workers = [
        (f"worker {number} of queue {queue}", Assignment(load=load, queue=queue))
        for queue in range(1, load.queues + 1)
        for number in range(1, load.processes + 1)
    ]
    producers = [(f"producer {one + 1}", Assignment(load=load, producer=one)) for one in range(load.producers)]
    return workers + producers


async def run(load: Load, environment: Mapping[str, str], watch: Callable[[Standing], None]) -> Reports:
    """Measure *load* with processes of its own.

    Args:
        environment: Of the processes; topics and queues are there.
        watch: Told how far it is, at each change.

    Raises:
        SmartpipeError: A process ended, did not start in time, or the warm-up did not come through.
    """
    async with Crew(assignments(load), environment) as crew:
        return await _Run(load, crew, watch).run()


class _Run:
    def __init__(self, load: Load, crew: Crew, watch: Callable[[Standing], None]) -> None:
        self._load = load
        self._crew = crew
        self._watch = watch
        self._phase = "starting"
        self._said: dict[str, set[int]] = {"ready": set(), "warm": set(), "measuring": set()}
        self._progress: dict[int, Progress] = {}
        self._tallies: dict[int, str] = {}
        self._tallied: dict[int, int] = {}
        self._reports = Reports([], [])
        self._producers = [member for member in crew.members if member.assignment.producer is not None]
        self._workers = [member for member in crew.members if member.assignment.producer is None]

    async def run(self) -> Reports:
        await self._until("starting", lambda: self._all(self._crew.members, "ready"), START_SECONDS)
        patience = self._load.patience_seconds
        await self._warm_up(patience)
        self._crew.order(Order(what="measure"), self._workers)
        await self._until("warming up", lambda: self._all(self._workers, "measuring"), patience)
        self._progress.clear()
        self._crew.order(Order(what="measure", begin_at=time.monotonic() + LEAD_SECONDS), self._producers)
        try:
            await self._until("measuring", self._is_done, patience)
        except Stalled as error:
            if len(self._reports.published) < len(self._producers):
                raise SmartpipeError(f"{error}, and the producers wait: is the broker there?") from None
        self._crew.order(Order(what="stop"), self._workers)
        drained = DRAIN_SECONDS + patience
        await self._until("draining", lambda: len(self._reports.handled) == len(self._workers), drained)
        return self._reports

    async def _warm_up(self, patience_seconds: float) -> None:
        """Publish what is not measured, again while it does not come: AWS needs a moment to notice a subscription."""
        left = patience_seconds
        while True:
            self._crew.order(Order(what="warm"), self._producers)
            try:
                await self._until("warming up", self._is_warm, min(left, WARM_AGAIN_SECONDS))
            except Stalled:
                left -= WARM_AGAIN_SECONDS
                if left <= 0:
                    raise
            else:
                return

    async def _until(self, phase: str, condition: Callable[[], bool], patience_seconds: float) -> None:
        """Hear what is said until *condition* holds.

        Raises:
            Stalled: Nobody has said anything for so long.
        """
        self._phase = phase
        self._tell()
        while not condition():
            try:
                member, message = await self._crew.next(patience_seconds)
            except TimeoutError:
                raise Stalled(f"while {phase}, nothing happened for {patience_seconds:g} s") from None
            self._hear(member, message)
            self._tell()

    def _hear(self, member: Member, message: Message) -> None:
        pid = member.process.pid
        if isinstance(message, Said):
            self._said[message.kind].add(pid)
        elif isinstance(message, Progress):
            self._progress[pid] = message
        elif isinstance(message, Tally):
            self._tallies[pid] = message.seen
        elif isinstance(message, Published):
            self._progress[pid] = Progress(done=message.published)
            self._reports.published.append(message)
        else:
            self._reports.handled.append(message)

    def _all(self, members: Sequence[Member], kind: str) -> bool:
        return all(member.process.pid in self._said[kind] for member in members)

    def _is_warm(self) -> bool:
        return self._all(self._producers, "warm") and all(
            sum(self._of(member).warm for member in workers) >= self._load.warmup for workers in self._by_queue()
        )

    def _is_done(self) -> bool:
        """Whether every event has been published, or refused, and all of them have come to every queue."""
        if len(self._reports.published) < len(self._producers):
            return False
        expected = self._load.events - sum(report.failed for report in self._reports.published)
        return all(self._is_complete(workers, expected) for workers in self._by_queue())

    def _is_complete(self, workers: Sequence[Member], expected: int) -> bool:
        """Ask which events came where counts do not tell: one that came to two workers stands in both counts."""
        count = sum(self._of(member).done for member in workers)
        if count < expected or len(workers) == 1:
            return count >= expected
        queue = workers[0].assignment.queue
        if self._tallied.get(queue) != count:  # there is news since they were asked last
            self._tallied[queue] = count
            for member in workers:
                self._tallies.pop(member.process.pid, None)
            self._crew.order(Order(what="tally"), workers)
            return False
        tallies = [self._tallies[member.process.pid] for member in workers if member.process.pid in self._tallies]
        return len(tallies) == len(workers) and count_seen(tallies) >= expected

    def _by_queue(self) -> list[list[Member]]:
        queues = range(1, self._load.queues + 1)
        return [[member for member in self._workers if member.assignment.queue == queue] for queue in queues]

    def _of(self, member: Member) -> Progress:
        return self._progress.get(member.process.pid, Progress(done=0))

    def _tell(self) -> None:
        published = sum(self._of(member).done for member in self._producers)
        handled = sum(self._of(member).done for member in self._workers)
        self._watch(Standing(self._phase, published, handled))
