"""The transport: five batch operations that every adapter implements, and the guarantees that it must give."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.counters import TransportCounters
    from smartpipe.message import Failure, Message, OutgoingMessage

    CountMessages: TypeAlias = "Callable[[str], Awaitable[Depth]]"


class Depth(NamedTuple):
    """The number of messages that can be received, are being handled, and are delayed."""

    visible: int
    in_flight: int
    delayed: int


DEPTH_ATTRIBUTES = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)
"""The attributes of a queue that make its Depth, in the order of its fields."""


class Transport(Protocol):
    """Moves messages. Callers use the declared names of topics and queues; the adapter finds their addresses.

    Implemented for AWS and for memory. An adapter must guarantee, for all five operations:

    - It takes 1 to 10 entries and makes one call. It returns the failed entries by index, each at most once. An entry
      that the service's response does not mention has failed.
    - If a call fails as a whole, it raises TransportError and nothing else, with ``retryable`` set.
    - It does not retry. Only one layer retries, and that is the caller.
    - It may be called concurrently, from the event loop that first used it.
    - Every operation except ``receive`` may be cancelled. Cancelling ``receive`` can strand messages until their
      visibility timeout, because the service has already handed them out.
    - It needs no closing before its first call, and ``aclose`` may be called twice.

    An adapter may also have ``count_messages(queue)``, which returns the Depth of a queue, approximately on AWS.
    """

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Publish *messages* to *topic*, all in one request within the topic's byte limit."""

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Receive up to *max_messages*. Wait up to *wait_seconds* for the first of them."""

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Delete messages by receipt handle. Deleting a message that is already deleted succeeds."""

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Set visibility timeouts, by receipt handle, in seconds from now; 0 makes a message visible immediately."""

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Send *messages* to *queue* directly, all in one request of at most 1,048,576 bytes."""

    async def aclose(self) -> None:
        """Release connections. Calls in flight may fail."""


def counters_of(transport: Transport) -> TransportCounters | None:
    """Return the ``counts`` of *transport*, or None if it has none. They can be read after ``aclose``, too."""
    counters: TransportCounters | None = getattr(transport, "counts", None)
    return counters


def message_counter_of(transport: Transport) -> CountMessages | None:
    """Return the operation ``count_messages`` of *transport*, or None if it has none."""
    count: CountMessages | None = getattr(transport, "count_messages", None)
    return count
