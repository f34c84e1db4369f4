"""Carry out the outcome of a delivery: delete the message, return it to the queue, or dead-letter it.

Every message leaves the consumer through ``Settler.settle``, which also logs and counts it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from smartpipe.batching.batcher import Batcher
from smartpipe.batching.resend import send_with_retries
from smartpipe.batching.timers import Timers
from smartpipe.consumer.dead_letter import FailedDelivery, copy_with_reason, copy_without_reason
from smartpipe.consumer.decide import Ack, DeadLetter, Defer, Halt, Release, RetryAfter, describe_error
from smartpipe.consumer.leases import OVERDUE
from smartpipe.envelope.traceparent import trace_id
from smartpipe.failures import DeliveryFailure
from smartpipe.telemetry.histograms import FOLD_AT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.consumer.leases import Lease, Leases
    from smartpipe.consumer.processor import Processed
    from smartpipe.consumer.slots import Slots
    from smartpipe.counters import Counters
    from smartpipe.envelope.encode import Envelope
    from smartpipe.failures import FailureHooks, FailureOutcome
    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.telemetry.queue_histograms import QueueHistograms
    from smartpipe.topics import Queue
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.consumer")
acknowledger_log = logging.getLogger("smartpipe.acknowledger")

T = TypeVar("T")

LINGER_SECONDS = 0.05
MAX_IN_FLIGHT = 128
"""Concurrent calls for deletes, and for returns. They take a round trip each, and must keep up with receiving."""
DEADLINE_SECONDS = 10.0
CALL_SECONDS = 3.0
"""The time limit of one call. A call that hangs must leave time for others before the deadline."""
DEAD_LETTER_DEADLINE_SECONDS = 10.0
ERROR_RETRY_SECONDS = 30

WITH_TRACEBACK = frozenset({"retries-exhausted", "permanent-error"})
"""Kinds of dead-letter messages that code caused, not the message. Their log line has the traceback."""


class Settled(NamedTuple):
    """The end of a delivery, for the observer of a consumer.

    Args:
        redelivery_seconds: The number of seconds until the message is delivered again; None if it will not be.
    """

    queue: str
    message: Message
    processed: Processed
    redelivery_seconds: float | None


class Acknowledges(Protocol):
    """Deletes messages and returns them to the queue: an Acknowledger, or Lambda's partial batch response."""

    def delete(self, lease: Lease) -> None:
        """Delete the message soon."""

    def release(self, lease: Lease, seconds: float) -> None:
        """Make the message visible again in *seconds*, or as late as SQS allows."""

    def release_unhandled(self, lease: Lease, seconds: float) -> None:
        """Do the same with an unhandled message; later if an open call would only receive it once more."""


class Settler:
    """Settles the deliveries of one queue of a service.

    ``failure_hooks`` are called with each delivery that has failed, after it was settled. A GroupRunner sets them.
    """

    def __init__(
        self, service: str, queue: Queue, transport: Transport, *, acknowledger: Acknowledges, counters: Counters
    ) -> None:
        self._service = service
        self._queue = queue
        self._transport = transport
        self._acknowledger = acknowledger
        self._counters = counters
        self.failure_hooks: FailureHooks | None = None

    async def settle(self, lease: Lease, processed: Processed, seconds: float) -> float | None:
        """Settle the message; return the seconds until its next delivery, or None if it has no other.

        The delete or the return itself is batched, and sent a moment later. Only dead-lettering waits for SQS. If
        cancelled while it waits, it has settled nothing. Afterwards, the ``on_failure`` functions are called. If
        cancelled then, it has settled the message, and the state of the lease says so.

        Args:
            seconds: How long the handlers took.
        """
        outcome, message = processed.outcome, lease.message
        if isinstance(outcome, Ack):
            self._acknowledger.delete(lease)
            if outcome.ignored:
                self._counters.ignored += 1
            else:
                self._counters.handled += 1
            if self._counters.histograms is not None:
                self._record(self._counters.histograms, message, processed.envelope, seconds, handled=True)
            if log.isEnabledFor(logging.DEBUG):
                fields = self.fields(message, processed, seconds=seconds)
                log.debug("Ignored" if outcome.ignored else "Handled", extra=fields)
            return None
        if self._counters.histograms is not None and not isinstance(outcome, Release) and lease.state < OVERDUE:
            self._record(self._counters.histograms, message, processed.envelope, seconds, ended=False)
        redelivery_seconds = await self._settle_unhandled(lease, processed, outcome, seconds)
        if self.failure_hooks is not None:
            failure = self._describe_failure(lease, processed, redelivery_seconds)
            if failure is not None:
                await self.failure_hooks.call(failure)
        return redelivery_seconds

    async def _settle_unhandled(
        self,
        lease: Lease,
        processed: Processed,
        outcome: RetryAfter | DeadLetter | Halt | Defer | Release,
        seconds: float,
    ) -> float | None:
        message = lease.message
        if isinstance(outcome, DeadLetter):
            return await self._dead_letter(lease, processed, outcome, seconds)
        if isinstance(outcome, Release):
            return self._release(lease, outcome)
        fields = self.fields(message, processed, seconds=seconds, retry_after_seconds=outcome.seconds)
        if isinstance(outcome, Defer):
            self._counters.deferred += 1
            log.info("Not handled yet, will be redelivered in %d s: %s", outcome.seconds, outcome.error, extra=fields)
        elif isinstance(outcome, RetryAfter):
            self._counters.retried += 1
            raised = outcome.error if log.isEnabledFor(logging.DEBUG) else None
            log.warning(
                "Handler failed, will retry in %d s: %s",
                outcome.seconds,
                describe_error(outcome.error),
                extra=fields,
                exc_info=raised,
            )
        else:
            self._halt(message, outcome, fields)
        self._acknowledger.release(lease, outcome.seconds)
        return outcome.seconds

    def _describe_failure(
        self, lease: Lease, processed: Processed, redelivery_seconds: float | None
    ) -> DeliveryFailure | None:
        """Return the failure of a delivery, or None if nothing has failed: it was deferred, cancelled or skipped."""
        settled = processed.outcome
        error: BaseException | None = None if isinstance(settled, (Ack, Defer)) else settled.error
        if error is None:
            return None
        outcome: FailureOutcome = "retried"
        kind: str | None = None
        if isinstance(settled, Release):
            outcome = "internal_error"
        elif isinstance(settled, Halt):
            outcome, kind = "halted", settled.kind
        elif isinstance(settled, DeadLetter) and redelivery_seconds is None:  # otherwise the copy could not be sent
            outcome, kind = "dead_lettered", settled.kind
        message = lease.message
        return DeliveryFailure(
            error=error,
            outcome=outcome,
            kind=kind,
            retry_after_seconds=redelivery_seconds,
            attempt=processed.attempt or max(1, message.receive_count - lease.skipped),
            service=self._service,
            queue=self._queue.name,
            handler=processed.handler.name if processed.handler else lease.handler,
            message=message,
            envelope=processed.envelope,
        )

    def fields(self, message: Message, processed: Processed | None = None, **more: Any) -> dict[str, Any]:
        """Return the fields of a log line about *message*, as logging's ``extra``."""
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
        if processed is not None and processed.attempt:
            fields["attempt"] = processed.attempt
        return {"fields": {**fields, **more}}

    @staticmethod
    def _record(
        histograms: QueueHistograms,
        message: Message,
        envelope: Envelope | None,
        seconds: float,
        *,
        handled: bool = False,
        waited: bool = True,
        ended: bool = True,
    ) -> None:
        """Record a delivery. See ``QueueHistograms.fold`` for the rest of the work.

        Args:
            handled: Whether its handlers have returned.
            waited: Whether to record how long the message waited in the queue.
            ended: Whether the message will not be delivered again.
        """
        type_, event_time = (None, None) if envelope is None else (envelope.type, envelope.time if ended else None)
        sent_at = message.sent_at if waited else None
        histograms.settled.append((type_, event_time, sent_at, message.receive_count, time.time(), seconds, handled))
        if len(histograms.settled) >= FOLD_AT:
            histograms.fold()

    def _release(self, lease: Lease, outcome: Release) -> float:
        """Return a message that has no result. The queue's receive limit bounds retries after an internal error."""
        if outcome.reason == "skipped":
            self._counters.released += 1
        elif outcome.reason == "cancelled":
            self._counters.cancelled += 1
            log.warning(
                "Handler cancelled, returning the message to the queue",
                extra=self.fields(lease.message, handler=lease.handler),
            )
        else:
            self._counters.retried += 1
            log.error(
                "Internal error in smartpipe, returning the message to the queue",
                extra=self.fields(lease.message),
                exc_info=outcome.error,
            )
            self._acknowledger.release(lease, outcome.seconds)
            return outcome.seconds
        self._acknowledger.release_unhandled(lease, outcome.seconds)
        return outcome.seconds

    def _halt(self, message: Message, outcome: Halt, fields: dict[str, Any]) -> None:
        self._counters.halted += 1
        log.error(
            "Group %s is halted (%s), will retry in %d s: %s",
            message.group_id,
            outcome.kind,
            outcome.seconds,
            describe_error(outcome.error),
            extra=fields,
            exc_info=outcome.error if outcome.kind in WITH_TRACEBACK else None,
        )

    async def _dead_letter(
        self, lease: Lease, processed: Processed, outcome: DeadLetter, seconds: float
    ) -> float | None:
        """Copy the message to the dead-letter queue, and only then delete it: it may be copied twice, but not lost."""
        message = lease.message
        handler = processed.handler.name if processed.handler else None
        delivery = FailedDelivery(self._service, self._queue.name, handler, processed.envelope)

        async def call(copies: list[OutgoingMessage]) -> list[Failure]:
            return await self._transport.send(self._queue.dead_letter_name, copies)

        for candidate in (copy_with_reason(message, outcome, delivery), copy_without_reason(message)):
            # FIFO queues require a deduplication id. SQS's own redrive takes the message's id in this queue, too.
            copy = candidate._replace(deduplication_id=message.message_id) if self._queue.fifo else candidate
            failed = await send_with_retries(call, [copy], deadline_seconds=DEAD_LETTER_DEADLINE_SECONDS)
            if not failed or failed[0][1].retryable:
                # One that can never be sent, such as one too large for a queue with an older limit, loses its reason.
                break
        fields = self.fields(message, processed, kind=outcome.kind)
        if failed:
            _, failure = failed[0]
            self._counters.retried += 1
            log.error("Cannot write to the dead-letter queue, will retry: %s", failure.detail, extra=fields)
            self._acknowledger.release(lease, ERROR_RETRY_SECONDS)
            return ERROR_RETRY_SECONDS
        # Nothing was awaited since the copy was accepted: a cancellation cannot separate it from the delete.
        self._counters.dead_lettered += 1
        histograms = self._counters.histograms
        if histograms is not None:
            histograms.dead_letters[outcome.kind] = histograms.dead_letters.get(outcome.kind, 0) + 1
            self._record(histograms, message, processed.envelope, seconds, waited=False)
        raised = outcome.error if outcome.kind in WITH_TRACEBACK else None
        log.error("Dead-lettered (%s): %s", outcome.kind, describe_error(outcome.error), extra=fields, exc_info=raised)
        self._acknowledger.delete(lease)
        return None


class Acknowledger:
    """Batches the deletes and the returns of one queue.

    A batch is sent when it has ten entries, or 50 ms after its first one. Entries with a temporary failure are sent
    again for 10 s. A message that is being deleted keeps its lease until the delete is confirmed.
    """

    def __init__(self, queue: str, transport: Transport, *, leases: Leases, slots: Slots, counters: Counters) -> None:
        self._queue = queue
        self._transport = transport
        self._leases = leases
        self._slots = slots
        self._counters = counters
        self._timers = Timers()
        self._deletes: Batcher[Lease] = Batcher(
            self._send_deletes, self._timers, linger_seconds=LINGER_SECONDS, max_in_flight=MAX_IN_FLIGHT
        )
        self._releases: Batcher[tuple[Lease, float]] = Batcher(
            self._send_releases, self._timers, linger_seconds=LINGER_SECONDS, max_in_flight=MAX_IN_FLIGHT
        )
        self._draining = False
        self._held: list[tuple[Lease, float]] = []

    def delete(self, lease: Lease) -> None:
        """Delete the message soon."""
        lease.start_delete()
        self._slots.unsettled += 1
        self._deletes.add(lease)

    def release(self, lease: Lease, seconds: float) -> None:
        """Make the message visible again in *seconds*, or as late as SQS allows; do nothing if its lease is lost."""
        self._slots.unsettled += 1
        if lease.lost:
            # Another worker may be handling it, and a call with the old receipt handle might disturb that.
            lease.start_return()
            self._end_settling([lease])
            return
        lease.start_return()  # before the call is sent, so that no tick extends the lease from now on
        # SQS takes whole seconds, and refuses to hide a message for more than 12 hours after its receipt.
        self._releases.add((lease, min(seconds, int(lease.seconds_left))))

    def release_unhandled(self, lease: Lease, seconds: float) -> None:
        """Return an unhandled message; while draining, hold it back until our last receive call has ended.

        An open call would only receive the message once more, and nothing would handle it.
        """
        if self._draining and self._slots.open_calls:
            self._held.append((lease, seconds))
        else:
            self.release(lease, seconds)

    def start_drain(self) -> None:
        """Hold unhandled messages back from now on, as long as a receive call is open."""
        self._draining = True

    def release_held(self, seconds: float) -> None:
        """Return the messages that were held back, to become visible in *seconds* at the earliest."""
        held, self._held = self._held, []
        for lease, wanted_seconds in held:
            self.release(lease, max(wanted_seconds, seconds))

    async def drain(self) -> None:
        """Send everything that is pending, and wait until it is settled."""
        await self._deletes.drain()
        await self._releases.drain()
        self._timers.close()  # last: the retries above use the timers

    async def _send_deletes(self, leases: list[Lease]) -> None:
        async def call(entries: list[Lease]) -> list[Failure]:
            return await self._transport.delete(self._queue, [lease.message.receipt_handle for lease in entries])

        try:
            failed = await self._send(call, leases)
        finally:  # even if the deletes failed: the leases end, and SQS delivers the messages again
            for lease in leases:
                lease.end_delete()
            self._end_settling(leases)
        for lease, failure in failed:
            self._counters.not_deleted += 1
            acknowledger_log.warning(
                "Cannot delete a handled message, it will be delivered again: %s: %s",
                failure.code,
                failure.detail,
                extra=self._fields(lease),
            )

    async def _send_releases(self, batch: list[tuple[Lease, float]]) -> None:
        async def call(entries: list[tuple[Lease, float]]) -> list[Failure]:
            asked = [(lease.message.receipt_handle, seconds) for lease, seconds in entries]
            return await self._transport.change_visibility(self._queue, asked)

        try:
            # An extension in flight would undo the return if SQS received it later.
            extensions = [lease.extension for lease, _ in batch if lease.extension is not None]
            if extensions:
                await asyncio.wait(extensions)
            failed = await self._send(call, batch)
        finally:
            self._end_settling([lease for lease, _ in batch])
        for (lease, _), failure in failed:
            acknowledger_log.info(
                "Cannot return a message, it will reappear after its visibility timeout: %s: %s",
                failure.code,
                failure.detail,
                extra=self._fields(lease),
            )

    async def _send(
        self, call: Callable[[list[T]], Awaitable[list[Failure]]], entries: list[T]
    ) -> list[tuple[T, Failure]]:
        return await send_with_retries(
            call, entries, deadline_seconds=DEADLINE_SECONDS, call_seconds=CALL_SECONDS, timers=self._timers
        )

    def _end_settling(self, leases: Sequence[Lease]) -> None:
        self._leases.drop(leases)
        self._slots.record_settled(len(leases))

    def _fields(self, lease: Lease) -> dict[str, Any]:
        return {"fields": {"message_id": lease.message.message_id, "queue": self._queue}}
