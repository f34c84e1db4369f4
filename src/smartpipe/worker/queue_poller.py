"""Ask SQS for the number of messages in the queues of a service, and compute how long its backlog will take."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from smartpipe.names import shorten_names
from smartpipe.telemetry.families import Family, Sample
from smartpipe.transport import message_counter_of
from smartpipe.worker.queue_ages import QueueAges, session_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from smartpipe.consumer.consumer import Consumer
    from smartpipe.settings import WorkerSettings
    from smartpipe.transport import CountMessages, Depth, Transport

log = logging.getLogger("smartpipe.queues")

RATE_SECONDS = 120.0
"""The rate of a queue is that of the last two minutes, or of the time since the poll before, if that is longer."""
MAX_CALLS = 4
"""Calls that are open at a time. They share the connections of deletes."""


class _Reading(NamedTuple):
    """The number of messages that the consumer of a queue had settled for the last time."""

    time: float
    settled: int


class QueuePoller:
    """Counts the messages of each queue and of its dead-letter queue while it is entered.

    A transport that cannot count messages is not asked. After a failed call, the metrics of the queue are absent until
    a call succeeds. Failures are logged when they begin and when they end.

    Args:
        consumers: May still be empty. It is read when the poller is entered.
        settings: ``queue_metrics_seconds`` is the time between two polls. ``processes`` multiplies the rate of this
            process, because all of them handle messages of the queues.
    """

    def __init__(
        self, service: str, consumers: Sequence[Consumer], transport: Transport, settings: WorkerSettings
    ) -> None:
        self._service = service
        self._consumers = consumers
        self._count = message_counter_of(transport)
        self._seconds = settings.queue_metrics_seconds if settings.metrics else 0.0
        self._processes = settings.processes
        self._ages = QueueAges(session_of(transport), settings.queue_age_seconds)
        self._readings: dict[str, deque[_Reading]] = {}
        self._depths: dict[str, Depth] = {}
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start to poll, if the settings and the transport allow it."""
        if self._count is not None and self._seconds:
            self._task = asyncio.create_task(self._run(self._count))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel open calls, and forget the numbers, which nothing updates any more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._depths = {}
        self._ages.clear()

    def collect(self) -> list[Family]:
        """Return the metrics of the queues whose numbers are known."""
        queues, ages = [one.queue for one in self._consumers], self._ages.values
        known = [queue for queue in queues if queue.name in self._depths]
        failed = [queue for queue in queues if queue.dead_letter_name in self._depths]
        backlogs = [(queue.name, self._estimate_backlog(queue.name)) for queue in known]
        short = shorten_names(queue.name for queue in queues)
        labels = {name: {"service": self._service, "queue": short[name]} for name in short}
        return [
            Family(
                "smartpipe_queue_messages",
                "gauge",
                "Messages in the queue, by state.",
                [
                    Sample({**labels[queue.name], "state": state}, count)
                    for queue in known
                    for state, count in self._depths[queue.name]._asdict().items()
                ],
            ),
            Family(
                "smartpipe_dead_letter_messages",
                "gauge",
                "Messages in the dead-letter queue.",
                [
                    Sample(labels[queue.name], depth.visible + depth.in_flight)
                    for queue in failed
                    for depth in [self._depths[queue.dead_letter_name]]
                ],
            ),
            Family(
                "smartpipe_backlog_seconds",
                "gauge",
                "Time to handle the visible messages at the present rate.",
                [Sample(labels[name], seconds) for name, seconds in backlogs if seconds is not None],
            ),
            Family(
                "smartpipe_oldest_message_age_seconds",
                "gauge",
                "Age of the oldest message in the queue.",
                [Sample(labels[queue.name], ages[queue.name]) for queue in queues if queue.name in ages],
            ),
            Family(
                "smartpipe_oldest_dead_letter_age_seconds",
                "gauge",
                "Age of the oldest message in the dead-letter queue.",
                [
                    Sample(labels[queue.name], ages[queue.dead_letter_name])
                    for queue in queues
                    if queue.dead_letter_name in ages
                ],
            ),
        ]

    async def _run(self, count: CountMessages) -> None:
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            await self._poll(count)
            await self._ages.read(self._depths)
            next_at = max(next_at + self._seconds, loop.time())
            await asyncio.sleep(next_at - loop.time())

    async def _poll(self, count: CountMessages) -> None:
        slots = asyncio.Semaphore(MAX_CALLS)
        # A queue that the worker cannot receive from has a line in the log already.
        queues = [one.queue for one in self._consumers if not one.failing]
        names = dict.fromkeys(name for queue in queues for name in (queue.name, queue.dead_letter_name))

        async def count_one(name: str) -> Depth | Exception:
            try:
                async with slots:
                    return await count(name)
            except Exception as error:  # noqa: BLE001 - a metric must not disturb the worker
                return error

        answers = dict(zip(names, await asyncio.gather(*map(count_one, names)), strict=True))
        errors = [answer for answer in answers.values() if isinstance(answer, Exception)]
        now = asyncio.get_running_loop().time()
        for consumer in self._consumers:
            counters = consumer.counters
            settled = counters.handled + counters.ignored + counters.dead_lettered
            readings = self._readings.setdefault(consumer.queue.name, deque())
            readings.append(_Reading(now, settled))
            while len(readings) > 2 and readings[1].time <= now - RATE_SECONDS:  # noqa: PLR2004 - a rate needs two
                readings.popleft()
        self._depths = {name: answer for name, answer in answers.items() if not isinstance(answer, Exception)}
        self._report(errors, len(names))

    def _report(self, errors: Sequence[Exception], total: int) -> None:
        """Log the beginning and the end of failures."""
        if not total:
            return
        if errors and not self._failing:
            log.warning(
                "Cannot count the messages of %d of %d queues, retrying every %g s: %s",
                len(errors),
                total,
                self._seconds,
                errors[0],
            )
        elif self._failing and not errors:
            log.info("The messages of all queues can be counted again")
        self._failing = bool(errors)

    def _estimate_backlog(self, queue: str) -> float | None:
        """Return the time in seconds to handle the visible messages; None if the rate is not known yet."""
        visible, readings = self._depths[queue].visible, self._readings[queue]
        if not visible:
            return 0.0
        first, last = readings[0], readings[-1]
        if last.time <= first.time:
            return None
        rate = (last.settled - first.settled) / (last.time - first.time) * self._processes
        return visible / rate if rate else math.inf
