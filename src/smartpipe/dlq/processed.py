"""Which effects of dead letters have happened, as far as the store of idempotent handlers remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smartpipe.envelope.read import MessageReader
from smartpipe.errors import MessageError
from smartpipe.idempotency.claims import MAX_CLAIMS
from smartpipe.idempotency.store import Completed, InProgress
from smartpipe.payload_offload import PayloadOffload

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.consumer.handlers import Handler
    from smartpipe.dlq.messages import DeadLetterMessage
    from smartpipe.idempotency.claims import Claims
    from smartpipe.idempotency.store import Known


class ProcessedEvent(NamedTuple):
    """What is remembered of one letter.

    Args:
        handlers: How many handlers it would reach.
        completed: The keys of those of them whose effect has happened.
        in_progress: How many of them are at it right now, or were until their worker crashed.
    """

    handlers: int = 0
    completed: tuple[str, ...] = ()
    in_progress: int = 0

    @property
    def all_done(self) -> bool:
        """Whether a worker would delete it without running any handler."""
        return 0 < self.handlers == len(self.completed)


class ProcessedEvents:
    """Asks the store about the letters of one queue.

    Args:
        handlers: Those of the queue.
        claims: None only if none of them is idempotent. It stays open: its opener closes it.
    """

    def __init__(self, handlers: Sequence[Handler], claims: Claims | None) -> None:
        self._handlers = handlers
        self._store = None if claims is None else claims.store
        self._prefix = "" if claims is None else claims.prefix
        self._payloads = PayloadOffload()
        self._reader = MessageReader({handler.event for handler in handlers}, self._payloads)

    async def ask(self, letters: Sequence[DeadLetterMessage]) -> list[ProcessedEvent]:
        """Return what is remembered of each letter.

        Raises:
            StoreError: The store cannot be asked.
            TransportError: S3 cannot be asked for the body of one.
        """
        if self._store is None:
            return [ProcessedEvent()] * len(letters)
        reached = [await self._reached(letter) for letter in letters]
        keys = [key for _, wanted in reached for key in wanted]
        known: dict[str, Known] = {}
        for start in range(0, len(keys), MAX_CLAIMS):
            part = keys[start : start + MAX_CLAIMS]
            known.update(zip(part, await self._store.look(part), strict=True))
        return [
            ProcessedEvent(
                handlers,
                tuple(key for key in wanted if isinstance(known[key], Completed)),
                sum(isinstance(known[key], InProgress) for key in wanted),
            )
            for handlers, wanted in reached
        ]

    async def forget(self, memories: Iterable[ProcessedEvent]) -> None:
        """Let the effects that have happened happen again; what is in progress is left to its holder.

        Raises:
            StoreError: The store cannot be told.
        """
        keys = [key for memory in memories for key in memory.completed]
        if keys and self._store is not None:
            await self._store.forget(keys)

    async def aclose(self) -> None:
        """Release connections to S3; the store is its opener's. A second call does nothing."""
        await self._payloads.aclose()

    async def _reached(self, letter: DeadLetterMessage) -> tuple[int, list[str]]:
        """Return how many handlers take the letter, and the keys of the idempotent ones."""
        try:
            envelope = await self._reader.read(letter.message)
        except MessageError:
            return 0, []
        taking = [handler for handler in self._handlers if handler.event is type(envelope.data)]
        options = [(handler.full_name(self._prefix), handler.options.idempotency) for handler in taking]
        return len(taking), [idempotency.key_of(name, envelope) for name, idempotency in options if idempotency]
