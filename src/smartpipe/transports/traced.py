"""A transport that makes spans for the calls by which another one receives and settles messages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from smartpipe.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from smartpipe.message import Failure, Message
    from smartpipe.telemetry.spans import Tracing
    from smartpipe.transport import Transport


class TracedTransport:
    """Makes a span for each receive call that brings messages, and for each call that settles some.

    The span of a receive call has no link to its messages: their traces are in bodies that have not been read yet.

    Args:
        inner: The transport that makes the calls. All other calls, and attributes, are its own.
    """

    def __init__(self, inner: Transport, tracing: Tracing) -> None:
        self._inner = inner
        self._tracing = tracing

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the inner transport."""
        return getattr(self._inner, name)

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Receive, as the inner transport does."""
        began_ns = time.time_ns()
        messages = await self._inner.receive(
            queue,
            max_messages=max_messages,
            wait_seconds=wait_seconds,
            visibility_timeout_seconds=visibility_timeout_seconds,
        )
        if messages:
            self._tracing.record_call("receive", "receive", queue, began_ns, messages=len(messages))
        return messages

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Delete, as the inner transport does."""
        return await self._settle("delete", queue, len(receipts), self._inner.delete(queue, receipts))

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Change visibility timeouts, as the inner transport does."""
        call = self._inner.change_visibility(queue, leases)
        return await self._settle("change_visibility", queue, len(leases), call)

    async def _settle(self, operation: str, queue: str, count: int, call: Awaitable[list[Failure]]) -> list[Failure]:
        began_ns, error = time.time_ns(), None
        try:
            return await call
        except TransportError as raised:
            error = raised
            raise
        finally:
            self._tracing.record_call(operation, "settle", queue, began_ns, messages=count, error=error)
