"""Removes messages from dead-letter queues: a redrive sends them back to their queue, and a purge only deletes them.

A redrive sends each message before it deletes it, so a crash in between leaves a second copy and never loses one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from smartpipe.batching.batcher import Chunker
from smartpipe.batching.resend import send_with_retries
from smartpipe.consumer.dead_letter import copy_without_reason
from smartpipe.consumer.handler_limits import TokenBucket
from smartpipe.dlq.messages import existed_before
from smartpipe.dlq.scan import DEADLINE_SECONDS, Scan
from smartpipe.keys import own_sqs_id
from smartpipe.limits import MAX_BATCH_ENTRIES, MAX_MESSAGE_BYTES, MAX_VISIBILITY_SECONDS
from smartpipe.message import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.dlq.messages import DeadLetterMessage, Selection
    from smartpipe.dlq.processed import ProcessedEvents
    from smartpipe.message import OutgoingMessage
    from smartpipe.topics import Queue
    from smartpipe.transport import Transport

SCAN_LEASE_SECONDS = 120.0
LEASE_SECONDS = 60.0
"""Longer than it takes to look up, send and delete a batch."""
FAILED_BATCHES = 3
"""Give up after this number of consecutive batches without any sent message: the messages are not the cause."""
GROUP_STOPPED = Failure(0, "GroupStopped", "an earlier message of its group could not be sent", retryable=True)


class ScanResult(NamedTuple):
    """The messages in a dead-letter queue, counted.

    Args:
        selected: The number of selected messages, by event type and kind of reason.
        others: The number of the other messages, likewise.
        processed: Selected messages whose event was handled by all its handlers, so that a worker would only delete
            them.
        partly_processed: Selected messages whose event was handled by some of its handlers.
        in_progress: Selected messages whose event is being handled now, or was when a worker crashed.
        until: Unix seconds: messages sent later do not belong to the result.
        complete: False if there may be more messages: of each group of a FIFO queue SQS shows only a few at a time.
        seconds: The duration of the scan.
    """

    selected: Counter[tuple[str, str]]
    others: Counter[tuple[str, str]]
    processed: int
    partly_processed: int
    in_progress: int
    until: float
    complete: bool
    seconds: float


@dataclass
class RemovalResult:
    """The results of a redrive or a purge so far.

    Args:
        done: The number of messages moved, or deleted by a purge.
        skipped: The number of messages left in the queue because all their handlers have handled them.
        failed: Messages left in the queue because they could not be sent.
        not_deleted: Messages that could not be deleted. A redrive has sent them, so there are two copies.
    """

    done: int = 0
    skipped: int = 0
    failed: list[tuple[DeadLetterMessage, Failure]] = field(default_factory=list)
    not_deleted: list[tuple[DeadLetterMessage, Failure]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def total(self) -> int:
        """The number of selected messages that were done, skipped or failed."""
        return self.done + self.skipped + len(self.failed)


class Action(Protocol):
    """The step before messages are deleted."""

    async def apply(self, dead_letters: list[DeadLetterMessage], result: RemovalResult) -> list[DeadLetterMessage]:
        """Return the messages to delete, and count all of them in *result*."""


async def scan(
    transport: Transport, queue: Queue, selection: Selection, processed_events: ProcessedEvents, stop: asyncio.Event
) -> ScanResult:
    """Count the queue's dead-letter messages, and return them to the queue.

    The scan ends early when it has found as many as the selection's limit, or when *stop* is set.

    Raises:
        StoreError: The idempotency store is unreachable.
        TransportError: The queue does not exist, or is unreachable.
    """
    clock = asyncio.get_running_loop().time
    began, until = clock(), time.time()
    selected, others, processed = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[str]()
    async with Scan(transport, queue.dead_letter_name, lease_seconds=SCAN_LEASE_SECONDS) as messages:
        while not stop.is_set() and not _is_full(selection, selected.total()) and (found := await messages.next()):
            until = max(until, *(one.message.sent_at or 0.0 for one in found))
            matching = [one for one in found if selection.matches(one)]
            if selection.limit is not None:
                matching = matching[: selection.limit - selected.total()]
            selected.update((one.event_type or "", one.kind) for one in matching)
            others.update((one.event_type or "", one.kind) for one in found if not selection.matches(one))
            for event in await processed_events.look_up(matching):
                processed["by all"] += event.by_all_handlers
                processed["by some"] += bool(event.completed) and not event.by_all_handlers
                processed["in progress"] += bool(event.in_progress)
    return ScanResult(
        selected,
        others,
        processed["by all"],
        processed["by some"],
        processed["in progress"],
        until,
        not queue.fifo or _is_full(selection, selected.total()),
        clock() - began,
    )


class Remover:
    """Removes the messages that a scan has found from a queue, batch by batch, to the end or until it is stopped.

    Args:
        rate_per_second: The maximum rate; None: without a limit.
        stop: If it is set, the current batch is finished, and all other messages return to the queue.
        on_progress: Called after each batch.
    """

    def __init__(
        self,
        transport: Transport,
        queue: Queue,
        *,
        rate_per_second: float | None,
        stop: asyncio.Event,
        on_progress: Callable[[RemovalResult], None],
    ) -> None:
        self._transport = transport
        self._queue = queue
        self._stop = stop
        self._on_progress = on_progress
        clock = asyncio.get_running_loop().time
        self._bucket = TokenBucket(rate_per_second, clock) if rate_per_second is not None else None
        self._batch_seconds = MAX_BATCH_ENTRIES / rate_per_second if rate_per_second is not None else 0.0

    async def remove(self, scanned: ScanResult, selection: Selection, action: Action, result: RemovalResult) -> None:
        """Apply *action* to the selected messages, and delete them. *result* is filled in even if this fails.

        Messages that arrive in the queue meanwhile stay there, so no message goes round in circles.

        Raises:
            StoreError: The idempotency store is unreachable. All remaining messages return to the queue.
            TransportError: The queue is unreachable.
        """
        lease_seconds = min(MAX_VISIBILITY_SECONDS, max(LEASE_SECONDS + self._batch_seconds, 3 * scanned.seconds))
        async with Scan(self._transport, self._queue.dead_letter_name, lease_seconds=lease_seconds) as messages:
            try:
                await self._remove(messages, scanned, selection, action, result)
            finally:
                result.not_deleted = messages.not_deleted

    async def _remove(
        self, messages: Scan, scanned: ScanResult, selection: Selection, action: Action, result: RemovalResult
    ) -> None:
        pending: list[DeadLetterMessage] = []
        failed_batches = 0
        while not _is_finished(scanned, selection, result) and failed_batches < FAILED_BATCHES:
            if self._stop.is_set():
                result.interrupted = True
                break
            if not pending:
                found = await messages.next()
                if not found:
                    break
                pending = [one for one in found if existed_before(one, scanned.until) and selection.matches(one)]
                continue
            remaining = len(pending) if selection.limit is None else selection.limit - result.total
            batch = pending[: await self._admit(min(remaining, len(pending)))]
            pending = pending[len(batch) :]
            failures_before = len(result.failed)
            removed = await action.apply(batch, result)
            await messages.delete(removed)
            all_failed = len(result.failed) - failures_before == len(batch) > 0
            failed_batches = failed_batches + 1 if all_failed else 0
            self._on_progress(result)

    async def _admit(self, wanted: int) -> int:
        """Wait until the rate limit admits a message, and return how many of *wanted* it admits; 0 if stopped."""
        if self._bucket is None:
            return wanted
        while not self._stop.is_set():
            admitted = self._bucket.admit(wanted)
            self._bucket.end_call(admitted, admitted)
            if admitted:
                return admitted
            try:
                async with asyncio.timeout(self._bucket.seconds_until_open()):
                    await self._stop.wait()
            except TimeoutError:
                continue
        return 0


class Purge:
    """The action of a purge: none, so that the messages are only deleted."""

    async def apply(self, dead_letters: list[DeadLetterMessage], result: RemovalResult) -> list[DeadLetterMessage]:
        """Return all messages."""
        result.done += len(dead_letters)
        return dead_letters


class Redrive:
    """The action of a redrive: send each message to the queue that it came from, without its reason.

    Args:
        force: Also send messages that all their handlers have handled, and make the store forget that. Without it,
            such messages stay in the dead-letter queue.
    """

    def __init__(self, transport: Transport, queue: Queue, processed_events: ProcessedEvents, *, force: bool) -> None:
        self._transport = transport
        self._queue = queue
        self._processed_events = processed_events
        self._force = force
        self._stopped_groups: set[str | None] = set()

    async def apply(self, dead_letters: list[DeadLetterMessage], result: RemovalResult) -> list[DeadLetterMessage]:
        """Send the messages, and return those that were sent."""
        events = await self._processed_events.look_up(dead_letters)
        to_send = [
            one for one, event in zip(dead_letters, events, strict=True) if self._force or not event.by_all_handlers
        ]
        result.skipped += len(dead_letters) - len(to_send)
        if self._force:
            await self._processed_events.forget(events)
        failed = await self._send(to_send)
        result.failed += failed
        failed_ids = {one.message.message_id for one, _ in failed}
        sent = [one for one in to_send if one.message.message_id not in failed_ids]
        result.done += len(sent)
        return sent

    async def _send(self, dead_letters: Sequence[DeadLetterMessage]) -> list[tuple[DeadLetterMessage, Failure]]:
        """Send the messages, those of a group one after the other, and return the failures."""
        chunker: Chunker[tuple[DeadLetterMessage, OutgoingMessage]] = Chunker(
            MAX_MESSAGE_BYTES, lambda pair: pair[1].size_bytes, lambda pair: self._ordered_group(pair[0])
        )
        chunks = [chunker.add((one, self._copy(one))) for one in dead_letters]
        failed: list[tuple[DeadLetterMessage, Failure]] = []
        for chunk in [*chunks, chunker.take()]:
            to_send = [pair for pair in chunk or () if pair[1].group_id not in self._stopped_groups]
            failed += [(one, GROUP_STOPPED) for one, copy in chunk or () if copy.group_id in self._stopped_groups]
            refused = await send_with_retries(self._call, to_send, deadline_seconds=DEADLINE_SECONDS) if to_send else []
            failed += [(one, failure) for (one, _), failure in refused]
            self._stopped_groups.update(copy.group_id for (_, copy), _ in refused if self._queue.fifo)
        return failed

    async def _call(self, pairs: list[tuple[DeadLetterMessage, OutgoingMessage]]) -> list[Failure]:
        return await self._transport.send(self._queue.name, [copy for _, copy in pairs])

    def _copy(self, dead_letter: DeadLetterMessage) -> OutgoingMessage:
        copy = copy_without_reason(dead_letter.message)
        if not self._queue.fifo:
            return copy
        # The id identifies this move. A repetition after a crash has the same id, and no earlier send of the event has.
        return copy._replace(deduplication_id=own_sqs_id("redrive", dead_letter.message.message_id))

    def _ordered_group(self, dead_letter: DeadLetterMessage) -> str | None:
        return dead_letter.message.group_id if self._queue.fifo else None


def _is_full(selection: Selection, count: int) -> bool:
    return selection.limit is not None and count >= selection.limit


def _is_finished(scanned: ScanResult, selection: Selection, result: RemovalResult) -> bool:
    """Return whether all scanned messages, or as many as the limit, are processed."""
    return _is_full(selection, result.total) or (scanned.complete and result.total >= scanned.selected.total())
