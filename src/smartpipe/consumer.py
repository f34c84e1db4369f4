"""The consumer of one queue: receive for free slots → process → settle; and the drain.

Only ``_process`` and ``_settle`` touch a message. What is received holds a slot and a lease until
it is settled: deleted, given back, or copied to the dead-letter queue and then deleted.
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
from smartpipe.deadletter import Where, dead_letter
from smartpipe.poller import Poller
from smartpipe.processor import Processed, Processor
from smartpipe.settlement import Ack, DeadLetter, RetryAfter
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
DEAD_LETTER_RETRY_SECONDS = 30.0
FLUSH_SECONDS = 4.0
TICKER_RESTART_SECONDS = 1.0

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
        self._acknowledger = Acknowledger(queue.name, transport, on_settled=self._visibility.drop, counts=self.counts)
        self.poller = Poller(queue.name, self._receive, self._accept, slots=concurrency)
        self._tasks: set[_Task] = set()
        self._ticker: _Task | None = None
        self._draining = False
        self._give_back_seconds = 0

    @property
    def in_flight(self) -> int:
        """How many messages are being handled."""
        return len(self._tasks)

    def start(self) -> None:
        """Begin to keep leases and to poll."""
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        self.poller.start()

    async def drain(self, *, deadline: float, hard: asyncio.Event) -> None:
        """Stop taking messages and settle what is here, in this order.

        The open polls are awaited, and what they bring is given back at once; meanwhile handlers
        finish, their leases extended. At *deadline* (the loop's time), or when *hard* is set, the
        rest is cancelled and given back. Deletes are flushed last.
        """
        self._draining = True
        self.poller.stop()
        await self._wait_for_handlers(deadline, hard)
        # A poll that is open still would take what is given back now, and strand it.
        self._give_back_seconds = math.ceil(self.poller.seconds_until_closed(self._poll_seconds))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FLUSH_SECONDS)
        if self.poller.open_polls:
            log.warning("queue %s: a poll was still open; what it brings returns after its timeout", self.queue.name)
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._acknowledger.drain()
        except TimeoutError:
            log.error("queue %s: not everything could be settled in time; it will be delivered again", self.queue.name)  # noqa: TRY400
        if self._ticker is not None:
            self._ticker.cancel()

    async def _wait_for_handlers(self, deadline: float, hard: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        waits = {loop.create_task(self._finished()), loop.create_task(hard.wait())}
        try:
            await asyncio.wait(waits, timeout=max(0.0, deadline - loop.time()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _finished(self) -> None:
        await self.poller.closed()
        while self._tasks:
            await asyncio.wait(self._tasks)

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
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: _Task) -> None:
        self._tasks.discard(task)
        self.poller.free()

    async def _process(self, message: Message, lease: Lease) -> None:
        try:
            if self._draining:  # received, but not begun: by the last polls, or just before the stop
                self.counts.released += 1
                self._acknowledger.release(lease, 0)
                return
            started = time.perf_counter()
            processed = await self._processor.process(message, lease)
            await self._settle(message, lease, processed, time.perf_counter() - started)
        except asyncio.CancelledError:
            self.counts.cancelled += 1
            log.warning("cancelled and given back", extra=self._fields(message, handler=lease.handler))
            self._acknowledger.release(lease, self._give_back_seconds)
        except Exception:
            self._visibility.drop(lease)
            log.exception("a fault in smartpipe: the message returns when its lease ends", extra=self._fields(message))

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
            log.warning("retried in %.0f s: %r", outcome.seconds, outcome.error, extra=fields)
            self._acknowledger.release(lease, outcome.seconds)
        else:
            await self._dead_letter(message, lease, processed, outcome)

    async def _dead_letter(self, message: Message, lease: Lease, processed: Processed, outcome: DeadLetter) -> None:
        """Copy the message to the dead-letter queue; only then delete it. A second copy is possible, a loss is not."""
        handler = processed.handler.name if processed.handler else None
        copy = dead_letter(message, outcome, Where(self._service.name, self.queue.name, handler, processed.envelope))

        async def call(copies: list[OutgoingMessage]) -> list[Failure]:
            return await self._transport.send(self.queue.dead_letter_name, copies)

        failed = await deliver(call, [copy], deadline_seconds=DEAD_LETTER_DEADLINE_SECONDS)
        fields = self._fields(message, processed, kind=outcome.kind)
        if failed:
            _, failure = failed[0]
            self.counts.retried += 1
            log.error("could not be dead-lettered, tried again later: %s", failure.detail, extra=fields)
            self._acknowledger.release(lease, DEAD_LETTER_RETRY_SECONDS)
            return
        self.counts.dead_lettered += 1
        log.error("dead-lettered (%s): %s", outcome.kind, outcome.error, extra=fields)
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
