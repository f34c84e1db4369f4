"""A transport that measures the calls of another one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from smartpipe.errors import TransportError
from smartpipe.telemetry.call_metrics import CallMetrics
from smartpipe.transport import counters_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from smartpipe.counters import TransportCounters
    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.transport import Transport

T = TypeVar("T")


class MeasuredTransport:
    """Measures how long each call takes, and how many entries each publishing request has. A cancelled call is not one.

    Args:
        inner: The transport that makes the calls.
    """

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.calls = CallMetrics()

    @property
    def counts(self) -> TransportCounters | None:
        """The counts of the inner transport, if it has any."""
        return counters_of(self.inner)

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Publish, as the inner transport does."""
        self.calls.record_entries(topic, len(messages))
        return await self._measure("publish", topic, self.inner.publish(topic, messages))

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Receive, as the inner transport does. The time that the call waits for messages counts."""
        call = self.inner.receive(
            queue,
            max_messages=max_messages,
            wait_seconds=wait_seconds,
            visibility_timeout_seconds=visibility_timeout_seconds,
        )
        return await self._measure("receive", queue, call)

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Delete, as the inner transport does."""
        return await self._measure("delete", queue, self.inner.delete(queue, receipts))

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Change visibility timeouts, as the inner transport does."""
        return await self._measure("change_visibility", queue, self.inner.change_visibility(queue, leases))

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Send, as the inner transport does."""
        self.calls.record_entries(queue, len(messages))
        return await self._measure("send", queue, self.inner.send(queue, messages))

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self.inner.aclose()

    async def _measure(self, operation: str, destination: str, call: Awaitable[T]) -> T:
        started = time.perf_counter()
        try:
            result = await call
        except TransportError as error:
            self.calls.record(operation, destination, error.code, time.perf_counter() - started)
            raise
        self.calls.record(operation, destination, "", time.perf_counter() - started)
        return result


def measure(transport: Transport) -> MeasuredTransport:
    """Return *transport* if it measures already, or one that measures it."""
    return transport if isinstance(transport, MeasuredTransport) else MeasuredTransport(transport)
