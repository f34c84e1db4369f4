"""Takes dead letters out of their queue: back to where they came from, or away for good.

A letter is sent first and deleted after, so that a crash in between makes a second copy and never a loss.
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

LOOK_LEASE_SECONDS = 120.0
LEASE_SECONDS = 60.0
"""Longer than a batch can take to be asked about, sent and deleted."""
FAILED_BATCHES = 3
"""After so many, one after the other, of which nothing could be sent, the fault is not the letters'."""
GROUP_STOPPED = Failure(0, "GroupStopped", "one before it of its group could not be sent", retryable=True)


class ScanResult(NamedTuple):
    """What was in a dead-letter queue.

    Args:
        wanted: How many the selection takes, by event type and kind of reason.
        others: How many it leaves, likewise.
        all_done: How many of the wanted a worker would delete unseen, as all their effects are remembered.
        partly_done: Of how many some handlers' effects are remembered.
        in_progress: How many are being handled somewhere, or were until a worker crashed.
        until: Unix seconds: what was sent later is not meant.
        complete: False where there may be more: of a FIFO queue's groups SQS shows only so many at a time.
        seconds: How long it took.
    """

    wanted: Counter[tuple[str, str]]
    others: Counter[tuple[str, str]]
    all_done: int
    partly_done: int
    in_progress: int
    until: float
    complete: bool
    seconds: float


@dataclass
class Tally:
    """What has become of the letters so far.

    Args:
        done: Moved, or deleted for good.
        skipped: Left where they are: all their effects are remembered.
        failed: Left where they are, and why.
        not_deleted: Moved, and still there too.
    """

    done: int = 0
    skipped: int = 0
    failed: list[tuple[DeadLetterMessage, Failure]] = field(default_factory=list)
    not_deleted: list[tuple[DeadLetterMessage, Failure]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def dealt_with(self) -> int:
        """How many of the wanted."""
        return self.done + self.skipped + len(self.failed)


class Treatment(Protocol):
    """What is done with letters before they are deleted."""

    async def treat(self, letters: list[DeadLetterMessage], tally: Tally) -> list[DeadLetterMessage]:
        """Return those to delete; count the others."""


async def scan(
    transport: Transport, queue: Queue, selection: Selection, memories: ProcessedEvents, stop: asyncio.Event
) -> ScanResult:
    """Look at the queue's dead letters and give them back; ends early at the selection's limit, or when told to.

    Raises:
        StoreError: What is remembered cannot be said.
        TransportError: The queue does not exist, or could not be asked.
    """
    clock = asyncio.get_running_loop().time
    began, until = clock(), time.time()
    wanted, others, remembered = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[str]()
    async with Scan(transport, queue.dead_letter_name, lease_seconds=LOOK_LEASE_SECONDS) as walk:
        while not stop.is_set() and not _full(selection, wanted.total()) and (letters := await walk.next()):
            until = max(until, *(letter.message.sent_at or 0.0 for letter in letters))
            meant = [letter for letter in letters if selection.takes(letter)]
            if selection.limit is not None:
                meant = meant[: selection.limit - wanted.total()]
            wanted.update((letter.event_type or "", letter.kind) for letter in meant)
            others.update((letter.event_type or "", letter.kind) for letter in letters if not selection.takes(letter))
            for memory in await memories.ask(meant):
                remembered["all"] += memory.all_done
                remembered["partly"] += bool(memory.completed) and not memory.all_done
                remembered["in progress"] += bool(memory.in_progress)
    return ScanResult(
        wanted,
        others,
        remembered["all"],
        remembered["partly"],
        remembered["in progress"],
        until,
        not queue.fifo or _full(selection, wanted.total()),
        clock() - began,
    )


class Clearing:
    """Takes what was looked at out of a queue, batch by batch, until it is done or told to stop.

    Args:
        rate_per_second: Not faster than this; None: as fast as it goes.
        stop: Set, the batch at hand is finished and the rest given back.
        on_progress: Called after each batch.
    """

    def __init__(
        self,
        transport: Transport,
        queue: Queue,
        *,
        rate_per_second: float | None,
        stop: asyncio.Event,
        on_progress: Callable[[Tally], None],
    ) -> None:
        self._transport = transport
        self._queue = queue
        self._stop = stop
        self._on_progress = on_progress
        clock = asyncio.get_running_loop().time
        self._bucket = TokenBucket(rate_per_second, clock) if rate_per_second is not None else None
        self._batch_seconds = MAX_BATCH_ENTRIES / rate_per_second if rate_per_second is not None else 0.0

    async def clear(self, looked: ScanResult, selection: Selection, treatment: Treatment, tally: Tally) -> None:
        """Treat and delete; *tally* says how far it came, also when it fails.

        What comes to the queue meanwhile stays, and so nothing goes round in circles.

        Raises:
            StoreError: What is remembered cannot be said; what was not treated yet is given back.
            TransportError: The queue could not be asked.
        """
        lease_seconds = min(MAX_VISIBILITY_SECONDS, max(LEASE_SECONDS + self._batch_seconds, 3 * looked.seconds))
        async with Scan(self._transport, self._queue.dead_letter_name, lease_seconds=lease_seconds) as walk:
            try:
                await self._clear(walk, looked, selection, treatment, tally)
            finally:
                tally.not_deleted = walk.not_deleted

    async def _clear(
        self, walk: Scan, looked: ScanResult, selection: Selection, treatment: Treatment, tally: Tally
    ) -> None:
        waiting: list[DeadLetterMessage] = []
        in_vain = 0
        while not _enough(looked, selection, tally) and in_vain < FAILED_BATCHES:
            if self._stop.is_set():
                tally.interrupted = True
                break
            if not waiting:
                letters = await walk.next()
                if not letters:
                    break
                waiting = [one for one in letters if existed_before(one, looked.until) and selection.takes(one)]
                continue
            room = len(waiting) if selection.limit is None else selection.limit - tally.dealt_with
            batch = waiting[: await self._admitted(min(room, len(waiting)))]
            waiting = waiting[len(batch) :]
            failed = len(tally.failed)
            gone = await treatment.treat(batch, tally)
            await walk.delete(gone)
            in_vain = in_vain + 1 if len(tally.failed) - failed == len(batch) > 0 else 0
            self._on_progress(tally)

    async def _admitted(self, wanted: int) -> int:
        """Return how many may go now, after waiting for the first; none, when told to stop meanwhile."""
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
    """Treats letters by doing nothing: they are deleted for good."""

    async def treat(self, letters: list[DeadLetterMessage], tally: Tally) -> list[DeadLetterMessage]:
        """Return all."""
        tally.done += len(letters)
        return letters


class Redrive:
    """Sends letters to the queue that they came from, as they were before.

    Args:
        force: Let effects that are remembered happen again; without, letters all of whose effects are stay.
    """

    def __init__(self, transport: Transport, queue: Queue, memories: ProcessedEvents, *, force: bool) -> None:
        self._transport = transport
        self._queue = queue
        self._memories = memories
        self._force = force
        self._stopped_groups: set[str | None] = set()

    async def treat(self, letters: list[DeadLetterMessage], tally: Tally) -> list[DeadLetterMessage]:
        """Send them; return those that were."""
        memories = await self._memories.ask(letters)
        going = [one for one, memory in zip(letters, memories, strict=True) if self._force or not memory.all_done]
        tally.skipped += len(letters) - len(going)
        if self._force:
            await self._memories.forget(memories)
        failed = await self._send(going)
        tally.failed += failed
        refused = {letter.message.message_id for letter, _ in failed}
        sent = [letter for letter in going if letter.message.message_id not in refused]
        tally.done += len(sent)
        return sent

    async def _send(self, letters: Sequence[DeadLetterMessage]) -> list[tuple[DeadLetterMessage, Failure]]:
        """Send, of each group one after the other; return those that were not sent."""
        chunker: Chunker[tuple[DeadLetterMessage, OutgoingMessage]] = Chunker(
            MAX_MESSAGE_BYTES, lambda pair: pair[1].size_bytes, lambda pair: self._ordered_group(pair[0])
        )
        chunks = [chunker.add((letter, self._copy(letter))) for letter in letters]
        failed: list[tuple[DeadLetterMessage, Failure]] = []
        for chunk in [*chunks, chunker.take()]:
            going = [pair for pair in chunk or () if pair[1].group_id not in self._stopped_groups]
            failed += [(letter, GROUP_STOPPED) for letter, copy in chunk or () if copy.group_id in self._stopped_groups]
            refused = await send_with_retries(self._call, going, deadline_seconds=DEADLINE_SECONDS) if going else []
            failed += [(letter, failure) for (letter, _), failure in refused]
            self._stopped_groups.update(copy.group_id for (_, copy), _ in refused if self._queue.fifo)
        return failed

    async def _call(self, pairs: list[tuple[DeadLetterMessage, OutgoingMessage]]) -> list[Failure]:
        return await self._transport.send(self._queue.name, [copy for _, copy in pairs])

    def _copy(self, letter: DeadLetterMessage) -> OutgoingMessage:
        copy = copy_without_reason(letter.message)
        if not self._queue.fifo:
            return copy
        # Of this very move: again after a crash it is the same, and no earlier send of the event had it.
        return copy._replace(deduplication_id=own_sqs_id("redrive", letter.message.message_id))

    def _ordered_group(self, letter: DeadLetterMessage) -> str | None:
        return letter.message.group_id if self._queue.fifo else None


def _full(selection: Selection, count: int) -> bool:
    return selection.limit is not None and count >= selection.limit


def _enough(looked: ScanResult, selection: Selection, tally: Tally) -> bool:
    """Return whether all that was looked at is dealt with, or as many as were wanted."""
    return _full(selection, tally.dealt_with) or (looked.complete and tally.dealt_with >= looked.wanted.total())
