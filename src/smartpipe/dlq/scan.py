"""A walk through a dead-letter queue: each message once, and what was not deleted is given back at its end."""

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
"""A long poll asks all of SQS's servers; a short one may miss what there is."""
DEADLINE_SECONDS = 10.0
STALE_RECEIVES = 20
"""After so many receives of nothing new there is nothing new: leases have run out, and messages come round again."""
CALLS_AT_ONCE = 8


class Scan:
    """An async context manager. A second walker, or a worker, does not see what this one holds.

    Args:
        lease_seconds: For so long what is received is hidden, should this process be killed.
    """

    def __init__(self, transport: Transport, queue: str, *, lease_seconds: float) -> None:
        self._transport = transport
        self._queue = queue
        self._lease_seconds = lease_seconds
        self._held: dict[str, str] = {}  # receipts, by message id
        self._dealt_with: set[str] = set()
        self._not_deleted: dict[str, tuple[DeadLetterMessage, Failure]] = {}

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back what is held; what cannot be, comes back when its lease ends."""
        receipts = list(self._held.values())
        self._held.clear()
        batches = [receipts[start : start + MAX_BATCH_ENTRIES] for start in range(0, len(receipts), MAX_BATCH_ENTRIES)]
        for start in range(0, len(batches), CALLS_AT_ONCE):
            await asyncio.gather(*map(self._release, batches[start : start + CALLS_AT_ONCE]))

    async def next(self, max_messages: int = MAX_BATCH_ENTRIES) -> list[DeadLetterMessage]:
        """Return messages that this walk has not seen, or none at its end.

        On a FIFO queue the end is what SQS shows while the messages before it are held: ten or so of a group.

        Raises:
            TransportError: The queue does not exist, or could not be asked for ten seconds.
        """
        for _ in range(STALE_RECEIVES):
            messages = await self._receive(max_messages)
            if not messages:
                return []
            by_id = {message.message_id: message for message in messages}
            again = {id_: message.receipt_handle for id_, message in by_id.items() if id_ in self._dealt_with}
            await self._delete(again)  # its delete failed, or SQS has handed it out twice
            fresh = [message for id_, message in by_id.items() if id_ not in again and id_ not in self._held]
            self._held |= {id_: message.receipt_handle for id_, message in by_id.items() if id_ not in again}
            if fresh:
                return [read_message(message) for message in fresh]
        return []

    async def delete(self, letters: Sequence[DeadLetterMessage]) -> None:
        """Delete at most ten; this walk shows them no more, but deletes them again should they come by."""
        ids = [letter.message.message_id for letter in letters]
        self._dealt_with.update(ids)
        failed = await self._delete({id_: self._held.pop(id_) for id_ in ids})
        self._not_deleted |= {
            letter.message.message_id: (letter, failed[letter.message.message_id])
            for letter in letters
            if letter.message.message_id in failed
        }

    @property
    def not_deleted(self) -> list[tuple[DeadLetterMessage, Failure]]:
        """What was to be deleted and is still there, with the last thing that the service said of it."""
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
        """Delete by message id and receipt; return the failures by message id."""

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
