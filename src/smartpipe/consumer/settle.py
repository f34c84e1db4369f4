"""Carries out what was decided of a delivery: deletes, gives back, or dead-letters it; says so, and counts it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from smartpipe.batching.resend import send_with_retries
from smartpipe.consumer.dead_letter import Where, bare_copy, dead_letter
from smartpipe.consumer.decide import Ack, DeadLetter, Defer, Halt, RetryAfter, describe_error
from smartpipe.envelope.traceparent import trace_id

if TYPE_CHECKING:
    from smartpipe.consumer.leases import Lease
    from smartpipe.consumer.processor import Processed
    from smartpipe.counters import Counters
    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.topics import Queue
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.consumer")

DEAD_LETTER_DEADLINE_SECONDS = 10.0
FAULT_RETRY_SECONDS = 30

WITH_TRACEBACK = frozenset({"retries-exhausted", "permanent-error"})
"""Kinds of dead letters whose cause is code, not the message: their log line has the traceback."""


class Acknowledges(Protocol):
    """What settled messages are told to: an Acknowledger."""

    def delete(self, lease: Lease) -> None:
        """Delete the message."""

    def release(self, lease: Lease, seconds: float) -> None:
        """Make the message visible again in *seconds*."""


class Settler:
    """Settles the deliveries of one queue of a service."""

    def __init__(
        self, service: str, queue: Queue, transport: Transport, *, acknowledger: Acknowledges, counts: Counters
    ) -> None:
        self._service = service
        self._queue = queue
        self._transport = transport
        self._acknowledger = acknowledger
        self._counts = counts

    async def settle(self, lease: Lease, processed: Processed, seconds: float) -> float | None:
        """Settle; return in how many seconds the message comes again, or None when it is done with.

        Args:
            seconds: How long its handlers took.
        """
        outcome, message = processed.outcome, lease.message
        if isinstance(outcome, Ack):
            self._acknowledger.delete(lease)
            if outcome.ignored:
                self._counts.ignored += 1
            else:
                self._counts.handled += 1
            if log.isEnabledFor(logging.DEBUG):
                word = "ignored" if outcome.ignored else "handled"
                log.debug(word, extra=self.fields(message, processed, seconds=seconds))
            return None
        if isinstance(outcome, DeadLetter):
            return await self._dead_letter(lease, processed, outcome)
        fields = self.fields(message, processed, seconds=seconds, retry_after_seconds=outcome.seconds)
        if isinstance(outcome, Defer):
            self._counts.deferred += 1
            log.info("deferred for %d s: %s", outcome.seconds, outcome.error, extra=fields)
        elif isinstance(outcome, RetryAfter):
            self._counts.retried += 1
            raised = outcome.error if log.isEnabledFor(logging.DEBUG) else None
            log.warning(
                "retried in %d s: %s", outcome.seconds, describe_error(outcome.error), extra=fields, exc_info=raised
            )
        else:
            self._halt(message, outcome, fields)
        self._acknowledger.release(lease, outcome.seconds)
        return outcome.seconds

    def fault(self, lease: Lease, error: Exception) -> float:
        """Give back what a fault of ours kept from being settled. SQS's own count bounds how often."""
        log.error("a fault in smartpipe: the message is given back", extra=self.fields(lease.message), exc_info=error)
        self._counts.retried += 1
        self._acknowledger.release(lease, FAULT_RETRY_SECONDS)
        return FAULT_RETRY_SECONDS

    def fields(self, message: Message, processed: Processed | None = None, **more: Any) -> dict[str, Any]:
        """Return what a log line says of *message*, as logging's ``extra``."""
        fields: dict[str, Any] = {
            "service": self._service,
            "queue": self._queue.name,
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

    def _halt(self, message: Message, outcome: Halt, fields: dict[str, Any]) -> None:
        self._counts.halted += 1
        log.error(
            "group %s halted (%s), tried again in %d s: %s",
            message.group_id,
            outcome.kind,
            outcome.seconds,
            describe_error(outcome.error),
            extra=fields,
            exc_info=outcome.error if outcome.kind in WITH_TRACEBACK else None,
        )

    async def _dead_letter(self, lease: Lease, processed: Processed, outcome: DeadLetter) -> float | None:
        """Copy the message to the dead-letter queue; only then delete it. A second copy is possible, a loss is not."""
        message = lease.message
        handler = processed.handler.name if processed.handler else None
        where = Where(self._service, self._queue.name, handler, processed.envelope)

        async def call(copies: list[OutgoingMessage]) -> list[Failure]:
            return await self._transport.send(self._queue.dead_letter_name, copies)

        for made in (dead_letter(message, outcome, where), bare_copy(message)):
            # FIFO queues want one; like SQS's own redrive, its id in this queue.
            copy = made._replace(deduplication_id=message.message_id) if self._queue.fifo else made
            failed = await send_with_retries(call, [copy], deadline_seconds=DEAD_LETTER_DEADLINE_SECONDS)
            if not failed or failed[0][1].retryable:
                break  # a copy that is refused for good, as too large for an older queue, goes without its reason
        fields = self.fields(message, processed, kind=outcome.kind)
        if failed:
            _, failure = failed[0]
            self._counts.retried += 1
            log.error("could not be dead-lettered, tried again later: %s", failure.detail, extra=fields)
            self._acknowledger.release(lease, FAULT_RETRY_SECONDS)
            return FAULT_RETRY_SECONDS
        self._counts.dead_lettered += 1
        raised = outcome.error if outcome.kind in WITH_TRACEBACK else None
        log.error("dead-lettered (%s): %s", outcome.kind, describe_error(outcome.error), extra=fields, exc_info=raised)
        self._acknowledger.delete(lease)
        return None
