"""The consumer of one queue: receive for free slots → process → settle; and the drain.

Only ``_process`` and ``_settle`` touch a message. What is received holds a lease until it is settled:
deleted, given back, or copied to the dead-letter queue and then deleted. It holds its slot until its
handlers have ended, or longer where settling cannot keep up.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from smartpipe.acknowledger import Acknowledger
from smartpipe.attempts import deliver
from smartpipe.counts import Counts
from smartpipe.deadletter import Where, bare_copy, dead_letter
from smartpipe.poller import Poller
from smartpipe.processor import Processed, Processor
from smartpipe.settlement import Ack, DeadLetter, RetryAfter, shown
from smartpipe.telemetry import trace_id
from smartpipe.visibility import Visibility

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.delivery import Publishes
    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.service import Service
    from smartpipe.threads import Threads
    from smartpipe.topology.model import Queue
    from smartpipe.transport import Transport
    from smartpipe.visibility import Lease

log = logging.getLogger("smartpipe.consumer")

DEAD_LETTER_DEADLINE_SECONDS = 10.0
FAULT_RETRY_SECONDS = 30.0
CANCEL_SECONDS = 1.0
MAX_UNSETTLED = 200
"""With so many messages waiting to be settled, no slot becomes free: the queue keeps the rest better."""
TICKER_RESTART_SECONDS = 1.0

WITH_TRACEBACK = frozenset({"retries-exhausted", "permanent-error"})
"""Kinds of dead letters whose cause is code, not the message: their log line has the traceback."""

_Task: TypeAlias = asyncio.Task[None]


class Consumer:
    """Handles the messages of one queue of a service.

    Args:
        concurrency: How many messages are out at once.
        poll_seconds: How long a poll waits, in whole seconds up to 20.
    """

    def __init__(
        self,
        service: Service,
        queue: Queue,
        transport: Transport,
        *,
        publisher: Publishes,
        threads: Threads,
        concurrency: int,
        poll_seconds: int,
    ) -> None:
        self.queue = queue
        self.counts = Counts()
        self._service = service
        self._transport = transport
        self._poll_seconds = poll_seconds
        self._processor = Processor(service, queue.name, publisher=publisher, threads=threads, counts=self.counts)
        self._visibility = Visibility(
            queue.name,
            transport,
            visibility_timeout_seconds=queue.visibility_timeout_seconds,
            counts=self.counts,
        )
        self._acknowledger = Acknowledger(queue.name, transport, on_settled=self._settled, counts=self.counts)
        self.poller = Poller(queue.name, self._receive, self._accept, slots=concurrency)
        self._tasks: dict[_Task, Lease] = {}
        self._ended = 0
        self._held_back: list[Lease] = []
        self._ticker: _Task | None = None
        self._draining = False

    @property
    def in_flight(self) -> int:
        """How many messages are being handled."""
        return len(self._tasks)

    def start(self) -> None:
        """Begin to keep leases and to poll."""
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        self.poller.start()

    async def drain(self, *, handlers_until: float, flush_until: float, hard: asyncio.Event) -> None:
        """Stop taking messages and settle what is here, in this order. Times are the loop's.

        The open polls are awaited, and what they bring is given back; meanwhile handlers finish, their
        leases extended. At *handlers_until*, or when *hard* is set, the rest is cancelled and given
        back. Deletes are flushed last; what is not settled at *flush_until* is counted.
        """
        loop = asyncio.get_running_loop()
        self._draining = True
        self.poller.stop()
        await self._wait_for_handlers(handlers_until, hard)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_SECONDS)
        for lease in self._tasks.values():
            self._cancelled(lease, "does not end though cancelled")
        if self.poller.open_polls:
            log.warning("queue %s: a poll was still open; what it brings returns after its timeout", self.queue.name)
        self._release_held_back()
        try:
            async with asyncio.timeout(max(CANCEL_SECONDS, flush_until - loop.time())):
                await self._acknowledger.drain()
        except TimeoutError:
            self.counts.not_deleted += self._acknowledger.unsettled
            log.error(  # noqa: TRY400 - a timeout's traceback says nothing
                "queue %s: %d messages could not be settled in time and will be delivered again",
                self.queue.name,
                self._acknowledger.unsettled,
            )
        if self._ticker is not None:
            self._ticker.cancel()

    async def _wait_for_handlers(self, until: float, hard: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        waits = {loop.create_task(self._finished()), loop.create_task(hard.wait())}
        try:
            await asyncio.wait(waits, timeout=max(0.0, until - loop.time()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _finished(self) -> None:
        await self.poller.closed()
        self._release_held_back()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _give_back(self, lease: Lease) -> None:
        """Make it visible when no poll of ours is open that would only take it again, and strand or wear it."""
        self._held_back.append(lease)
        if not self.poller.open_polls:
            self._release_held_back()

    def _release_held_back(self) -> None:
        seconds = math.ceil(self.poller.seconds_until_closed(self._poll_seconds))
        for lease in self._held_back:
            self._acknowledger.release(lease, seconds)
        self._held_back.clear()

    async def _receive(self, max_messages: int) -> list[Message]:
        return await self._transport.receive(
            self.queue.name,
            max_messages=max_messages,
            wait_seconds=self._poll_seconds,
            visibility_timeout_seconds=self.queue.visibility_timeout_seconds,
        )

    def _accept(self, messages: Sequence[Message]) -> None:
        self.counts.received += len(messages)
        for message in messages:
            lease = self._visibility.hold(message)
            task = asyncio.get_running_loop().create_task(self._process(message, lease))
            self._tasks[task] = lease
            task.add_done_callback(self._done)

    def _done(self, task: _Task) -> None:
        lease = self._tasks.pop(task)
        if task.cancelled():  # before its first step, so that it could not give back its message itself
            self._cancelled(lease, "cancelled before it began, and given back")
        self._ended += 1
        self._free_slots()

    def _settled(self, lease: Lease) -> None:
        self._visibility.drop(lease)
        self._free_slots()

    def _free_slots(self) -> None:
        while self._ended and self._acknowledger.unsettled < MAX_UNSETTLED:
            self._ended -= 1
            self.poller.free()

    async def _process(self, message: Message, lease: Lease) -> None:
        try:
            if self._draining:  # received, but not begun: by the last polls, or just before the stop
                self.counts.released += 1
                self._give_back(lease)
                return
            started = time.perf_counter()
            processed = await self._processor.process(message, lease)
            await self._settle(message, lease, processed, time.perf_counter() - started)
        except asyncio.CancelledError:
            self._cancelled(lease, "cancelled and given back")
        except Exception:
            # A fault of ours. Nothing is lost: the message is tried again, and SQS's own count bounds how often.
            log.exception("a fault in smartpipe: the message is given back", extra=self._fields(message))
            self.counts.retried += 1
            self._acknowledger.release(lease, FAULT_RETRY_SECONDS)

    def _cancelled(self, lease: Lease, what: str) -> None:
        self.counts.cancelled += 1
        log.warning(what, extra=self._fields(lease.message, handler=lease.handler))
        self._give_back(lease)

    async def _settle(self, message: Message, lease: Lease, processed: Processed, seconds: float) -> None:
        outcome = processed.outcome
        if isinstance(outcome, Ack):
            self._acknowledger.delete(lease)
            if outcome.ignored:
                self.counts.ignored += 1
            else:
                self.counts.handled += 1
            if log.isEnabledFor(logging.DEBUG):
                word = "ignored" if outcome.ignored else "handled"
                log.debug(word, extra=self._fields(message, processed, seconds=seconds))
        elif isinstance(outcome, RetryAfter):
            self.counts.retried += 1
            fields = self._fields(message, processed, seconds=seconds, retry_after_seconds=outcome.seconds)
            raised = outcome.error if log.isEnabledFor(logging.DEBUG) else None
            log.warning("retried in %d s: %s", outcome.seconds, shown(outcome.error), extra=fields, exc_info=raised)
            self._acknowledger.release(lease, outcome.seconds)
        else:
            await self._dead_letter(message, lease, processed, outcome)

    async def _dead_letter(self, message: Message, lease: Lease, processed: Processed, outcome: DeadLetter) -> None:
        """Copy the message to the dead-letter queue; only then delete it. A second copy is possible, a loss is not."""
        handler = processed.handler.name if processed.handler else None
        where = Where(self._service.name, self.queue.name, handler, processed.envelope)

        async def call(copies: list[OutgoingMessage]) -> list[Failure]:
            return await self._transport.send(self.queue.dead_letter_name, copies)

        for copy in (dead_letter(message, outcome, where), bare_copy(message)):
            failed = await deliver(call, [copy], deadline_seconds=DEAD_LETTER_DEADLINE_SECONDS)
            if not failed or failed[0][1].retryable:
                break  # a copy that is refused for good, as too large for an older queue, goes without its reason
        fields = self._fields(message, processed, kind=outcome.kind)
        if failed:
            _, failure = failed[0]
            self.counts.retried += 1
            log.error("could not be dead-lettered, tried again later: %s", failure.detail, extra=fields)
            self._acknowledger.release(lease, FAULT_RETRY_SECONDS)
            return
        self.counts.dead_lettered += 1
        raised = outcome.error if outcome.kind in WITH_TRACEBACK else None
        log.error("dead-lettered (%s): %s", outcome.kind, shown(outcome.error), extra=fields, exc_info=raised)
        self._acknowledger.delete(lease)

    async def _tick(self) -> None:
        """Keep the ticker going: without heartbeats every long handler would run twice."""
        while True:
            try:
                await self._visibility.run()
            except Exception:
                log.exception("queue %s: the heartbeat failed and starts again", self.queue.name)
                await asyncio.sleep(TICKER_RESTART_SECONDS)

    def _fields(self, message: Message, processed: Processed | None = None, **more: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "service": self._service.name,
            "queue": self.queue.name,
            "message_id": message.message_id,
            "receive_count": message.receive_count,
        }
        if processed is not None and processed.envelope is not None:
            envelope = processed.envelope
            fields |= {"event_id": envelope.id, "event_type": envelope.type, "trace_id": trace_id(envelope.traceparent)}
            if envelope.time is not None:
                fields["age_seconds"] = round((datetime.now(UTC) - envelope.time).total_seconds(), 6)
        if processed is not None and processed.handler is not None:
            fields["handler"] = processed.handler.name
        return {"fields": {**fields, **more}}
