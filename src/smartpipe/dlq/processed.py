"""Looks up, in the idempotency store, which handlers have already processed the events of dead-letter messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smartpipe.consumer.dead_letter import remove_reason
from smartpipe.consumer.handlers import make_reader
from smartpipe.errors import MessageError
from smartpipe.events import Event
from smartpipe.idempotency.claims import MAX_CLAIMS
from smartpipe.idempotency.store import Completed, InProgress
from smartpipe.payload_offload import PayloadOffload

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.consumer.handlers import Handler
    from smartpipe.dlq.messages import DeadLetterMessage
    from smartpipe.idempotency.claims import Claims
    from smartpipe.idempotency.store import ClaimState


class ProcessedEvent(NamedTuple):
    """The handlers' progress with the event of one message, as far as the store remembers it.

    Args:
        handlers: The number of handlers that subscribe to the event.
        completed: The keys of the claims of handlers that have handled it.
        in_progress: The number of handlers that are handling it now, or were until their worker crashed.
    """

    handlers: int = 0
    completed: tuple[str, ...] = ()
    in_progress: int = 0

    @property
    def by_all_handlers(self) -> bool:
        """Whether all its handlers have handled it, so that a worker would delete it without calling any."""
        return 0 < self.handlers == len(self.completed)


class ProcessedEvents:
    """Looks up the events of the dead-letter messages of one queue.

    Args:
        handlers: The handlers on the queue.
        claims: None only if no handler is idempotent. The caller closes it.
    """

    def __init__(self, handlers: Sequence[Handler], claims: Claims | None) -> None:
        self._handlers = handlers
        self._store = None if claims is None else claims.store
        self._prefix = "" if claims is None else claims.prefix
        self._payloads = PayloadOffload()
        self._reader = make_reader(handlers, self._payloads)

    async def look_up(self, dead_letters: Sequence[DeadLetterMessage]) -> list[ProcessedEvent]:
        """Return the progress with each message's event.

        Raises:
            StoreError: The store is unreachable.
            TransportError: S3, which has the body of a message, is unreachable.
        """
        if self._store is None:
            return [ProcessedEvent()] * len(dead_letters)
        claims = [await self._claims_for(dead_letter) for dead_letter in dead_letters]
        keys = [key for _, keys_of_event in claims for key in keys_of_event]
        states: dict[str, ClaimState] = {}
        for start in range(0, len(keys), MAX_CLAIMS):
            part = keys[start : start + MAX_CLAIMS]
            states.update(zip(part, await self._store.read(part), strict=True))
        return [
            ProcessedEvent(
                handlers,
                tuple(key for key in keys_of_event if isinstance(states[key], Completed)),
                sum(isinstance(states[key], InProgress) for key in keys_of_event),
            )
            for handlers, keys_of_event in claims
        ]

    async def forget(self, events: Iterable[ProcessedEvent]) -> None:
        """Delete the completed claims from the store, so that the handlers run again. Claims in progress stay.

        Raises:
            StoreError: The store is unreachable.
        """
        keys = [key for event in events for key in event.completed]
        if keys and self._store is not None:
            await self._store.forget(keys)

    async def aclose(self) -> None:
        """Release connections to S3, but not to the store. A second call does nothing."""
        await self._payloads.aclose()

    async def _claims_for(self, dead_letter: DeadLetterMessage) -> tuple[int, list[str]]:
        """Return the number of handlers of the event, and the keys of the claims of the idempotent ones."""
        try:
            envelope = await self._reader.read(remove_reason(dead_letter.message))
        except MessageError:
            return 0, []
        key = type(envelope.data) if isinstance(envelope.data, Event) else envelope.type
        taking = [handler for handler in self._handlers if key in handler.route_keys]
        options = [(handler.full_name(self._prefix), handler.options.idempotency) for handler in taking]
        return len(taking), [idempotency.key_of(name, envelope) for name, idempotency in options if idempotency]
