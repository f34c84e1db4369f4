"""A scan of a dead-letter queue: it receives each message once, and finally returns all that were not deleted."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Self

from smartpipe.batching.resend import retry, send_with_retries
from smartpipe.dlq.messages import read_message
from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from smartpipe.dlq.messages import DeadLetterMessage
    from smartpipe.message import Failure, Message
    from smartpipe.transport import Transport

WAIT_SECONDS = 1
"""A long poll queries all servers of SQS. A short poll may miss messages."""
DEADLINE_SECONDS = 10.0
STALE_RECEIVES = 20
"""The scan ends after this number of receive calls without a new message: leases have expired, and messages repeat."""
CONCURRENT_CALLS = 8


class Scan:
    """An async context manager. Messages that it has received are hidden from other scans and from workers.

    Args:
        lease_seconds: How long a received message stays hidden if this process is killed.
    """

    def __init__(self, transport: Transport, queue: str, *, lease_seconds: float) -> None:
        self._transport = transport
        self._queue = queue
        self._lease_seconds = lease_seconds
        self._held: dict[str, str] = {}  # receipt handles, by message id
        self._deleted: set[str] = set()
        self._not_deleted: dict[str, tuple[DeadLetterMessage, Failure]] = {}

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Return all held messages to the queue. If that fails, they reappear when their leases expire."""
        receipts = list(self._held.values())
        self._held.clear()
        batches = [receipts[start : start + MAX_BATCH_ENTRIES] for start in range(0, len(receipts), MAX_BATCH_ENTRIES)]
        for start in range(0, len(batches), CONCURRENT_CALLS):
            await asyncio.gather(*map(self._release, batches[start : start + CONCURRENT_CALLS]))

    async def next(self, max_messages: int = MAX_BATCH_ENTRIES) -> list[DeadLetterMessage]:
        """Return messages that this scan has not returned before, or none at its end.

        On a FIFO queue, SQS shows about ten messages of a group while the scan holds them. The scan ends after these.

        Raises:
            TransportError: The queue does not exist, or was unreachable for ten seconds.
        """
        for _ in range(STALE_RECEIVES):
            messages = await self._receive(max_messages)
            if not messages:
                return []
            by_id = {message.message_id: message for message in messages}
            again = {id_: message.receipt_handle for id_, message in by_id.items() if id_ in self._deleted}
            await self._delete(again)  # the first delete failed, or SQS delivers the message twice
            fresh = [message for id_, message in by_id.items() if id_ not in again and id_ not in self._held]
            self._held |= {id_: message.receipt_handle for id_, message in by_id.items() if id_ not in again}
            if fresh:
                return [read_message(message) for message in fresh]
        return []

    async def delete(self, dead_letters: Sequence[DeadLetterMessage]) -> None:
        """Delete at most ten messages. If one is received again, this scan deletes it again and does not return it."""
        ids = [dead_letter.message.message_id for dead_letter in dead_letters]
        self._deleted.update(ids)
        failed = await self._delete({id_: self._held.pop(id_) for id_ in ids})
        self._not_deleted |= {
            dead_letter.message.message_id: (dead_letter, failed[dead_letter.message.message_id])
            for dead_letter in dead_letters
            if dead_letter.message.message_id in failed
        }

    @property
    def not_deleted(self) -> list[tuple[DeadLetterMessage, Failure]]:
        """The messages that could not be deleted, each with its last failure."""
        return list(self._not_deleted.values())

    async def _receive(self, max_messages: int) -> list[Message]:
        receive = partial(
            self._transport.receive,
            self._queue,
            max_messages=max_messages,
            wait_seconds=WAIT_SECONDS,
            visibility_timeout_seconds=self._lease_seconds,
        )
        return await retry(receive, deadline_seconds=DEADLINE_SECONDS)

    async def _delete(self, receipts: dict[str, str]) -> dict[str, Failure]:
        """Delete messages by id and receipt handle, and return the failures by message id."""

        async def call(entries: list[tuple[str, str]]) -> list[Failure]:
            return await self._transport.delete(self._queue, [receipt for _, receipt in entries])

        if not receipts:
            return {}
        failed = await send_with_retries(call, list(receipts.items()), deadline_seconds=DEADLINE_SECONDS)
        failures = {id_: failure for (id_, _), failure in failed}
        for id_ in receipts.keys() - failures.keys():
            self._not_deleted.pop(id_, None)
        return failures

    async def _release(self, receipts: list[str]) -> None:
        async def call(entries: list[str]) -> list[Failure]:
            return await self._transport.change_visibility(self._queue, [(receipt, 0.0) for receipt in entries])

        await send_with_retries(call, receipts, deadline_seconds=DEADLINE_SECONDS)
