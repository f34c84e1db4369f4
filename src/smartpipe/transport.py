"""The seam: five batch verbs that every adapter speaks, and what it must guarantee."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.counters import TransportCounters
    from smartpipe.message import Failure, Message, OutgoingMessage


class Transport(Protocol):
    """Moves messages. Topics and queues are named as declared; the adapter finds their addresses.

    An adapter must guarantee, for all five verbs:

    - It takes 1 to 10 entries and makes one call. It returns the failed entries, by index, each
      entry at most once: an entry that the service's answer does not mention has failed.
    - A call that fails as a whole raises TransportError and nothing else, with ``retryable`` set.
    - It does not retry. One layer retries, and it is the caller.
    - It may be called concurrently, from the event loop that first used it.
    - A caller may cancel any verb but ``receive``: cancelling a receive can strand messages until
      their visibility timeout, because the service has handed them out already.
    - It needs no closing before a call is in flight, and ``aclose`` may be called twice.
    """

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Publish *messages* to *topic*, all in one request within the topic's byte limit."""

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Receive up to *max_messages*, waiting up to *wait_seconds* for the first of them."""

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Delete messages by receipt handle. Deleting what is deleted already is a success."""

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """For each (receipt handle, seconds): hide that message for so long from now, 0 to release it."""

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Send *messages* to *queue* directly, all in one request of at most 1,048,576 bytes."""

    async def aclose(self) -> None:
        """Release connections. Calls in flight may fail."""


@runtime_checkable
class _Counted(Protocol):
    """A Transport that notices what the answers of its verbs do not tell. Not every adapter has such a thing."""

    @property
    def counts(self) -> TransportCounters | None:
        """What it has noticed since it was made; it can be read after ``aclose``, too. None if it counts nothing."""


def counters_of(transport: Transport) -> TransportCounters | None:
    """Return what *transport* counts, None if it is one that counts nothing."""
    return transport.counts if isinstance(transport, _Counted) else None
