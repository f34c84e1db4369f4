"""A walk through a dead-letter queue: each message once, and what was not deleted is given back at its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from smartpipe.attempts import deliver
from smartpipe.errors import TransportError
from smartpipe.letters import read_letter
from smartpipe.transport import BATCH_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from smartpipe.letters import Letter
    from smartpipe.message import Failure, Message
    from smartpipe.transport import Transport

WAIT_SECONDS = 1
"""A long poll asks all of SQS's servers; a short one may miss what there is."""
DEADLINE_SECONDS = 10.0
STALE_RECEIVES = 20
"""After so many receives of nothing new there is nothing new: leases have run out, and messages come round again."""
CALLS_AT_ONCE = 8


class Walk:
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

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back what is held; what cannot be, comes back when its lease ends."""
        receipts = list(self._held.values())
        self._held.clear()
        batches = [receipts[start : start + BATCH_LIMIT] for start in range(0, len(receipts), BATCH_LIMIT)]
        for start in range(0, len(batches), CALLS_AT_ONCE):
            await asyncio.gather(*map(self._release, batches[start : start + CALLS_AT_ONCE]))

    async def next(self, max_messages: int = BATCH_LIMIT) -> list[Letter]:
        """Return messages that this walk has not seen, or none at its end.

        On a FIFO queue the end is what SQS shows while the messages before it are held: ten or so of a group.

        Raises:
            TransportError: The queue does not exist, or could not be asked for ten seconds.
        """
        for _ in range(STALE_RECEIVES):
            messages = await self._receive(max_messages)
            if not messages:
                return []
            again = [message for message in messages if message.message_id in self._dealt_with]
            if again:  # its delete was late, or SQS has handed it out twice
                await self._delete([message.receipt_handle for message in again])
            fresh = [one for one in messages if not self._knows(one.message_id)]
            gone = {message.message_id for message in again}
            self._held.update(
                (message.message_id, message.receipt_handle) for message in messages if message.message_id not in gone
            )
            if fresh:
                return [read_letter(message) for message in {one.message_id: one for one in fresh}.values()]
        return []

    async def delete(self, letters: Sequence[Letter]) -> list[tuple[Letter, Failure]]:
        """Delete at most ten; return those that are still there, which this walk shows no more all the same."""
        by_receipt = {self._held.pop(letter.message.message_id): letter for letter in letters}
        self._dealt_with.update(letter.message.message_id for letter in letters)
        failed = await self._delete(list(by_receipt))
        return [(by_receipt[receipt], failure) for receipt, failure in failed]

    def _knows(self, message_id: str) -> bool:
        return message_id in self._held or message_id in self._dealt_with

    async def _receive(self, max_messages: int) -> list[Message]:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, TransportError) and error.retryable),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(DEADLINE_SECONDS),
            reraise=True,
        ):
            with attempt:
                return await self._transport.receive(
                    self._queue,
                    max_messages=max_messages,
                    wait_seconds=WAIT_SECONDS,
                    visibility_timeout_seconds=self._lease_seconds,
                )
        raise AssertionError  # pragma: no cover - reraise leaves no other way out

    async def _delete(self, receipts: list[str]) -> list[tuple[str, Failure]]:
        async def call(entries: list[str]) -> list[Failure]:
            return await self._transport.delete(self._queue, entries)

        return await deliver(call, receipts, deadline_seconds=DEADLINE_SECONDS) if receipts else []

    async def _release(self, receipts: list[str]) -> None:
        async def call(entries: list[str]) -> list[Failure]:
            return await self._transport.change_visibility(self._queue, [(receipt, 0.0) for receipt in entries])

        await deliver(call, receipts, deadline_seconds=DEADLINE_SECONDS)
