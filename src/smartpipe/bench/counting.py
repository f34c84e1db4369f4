"""Count the requests of any transport."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

from smartpipe.doctor.costs.prices import CHUNK_BYTES
from smartpipe.message import size_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.transport import Transport

BILLED_BYTES = CHUNK_BYTES
"""AWS bills each 64 KB of a request's payload as a separate request."""


@dataclass(slots=True)
class CallCounts:
    """The calls of one verb.

    Args:
        entries: The number of messages in all calls.
        empty: The number of receive calls that returned no messages.
        failed: The number of calls that failed as a whole. AWS may or may not bill them; they are counted as billed.
        billed: The number of requests that AWS would bill.
    """

    calls: int = 0
    entries: int = 0
    empty: int = 0
    failed: int = 0
    billed: int = 0
    payload_bytes: int = 0

    def __add__(self, other: CallCounts) -> CallCounts:
        """Return the sum."""
        return CallCounts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def count(self, entries: int, payload_bytes: int) -> None:
        """Count one successful call."""
        self.calls += 1
        self.entries += entries
        self.empty += not entries
        self.payload_bytes += payload_bytes
        self.billed += max(1, math.ceil(payload_bytes / BILLED_BYTES))

    def count_failed(self) -> None:
        """Count one call that raised an error."""
        self.calls += 1
        self.failed += 1
        self.billed += 1


Requests: TypeAlias = dict[str, CallCounts]
"""The calls of each verb."""


def sum_requests(requests: Sequence[Requests]) -> Requests:
    """Return the sums of several processes, by verb."""
    verbs = dict.fromkeys(verb for counts in requests for verb in counts)
    return {verb: sum((counts[verb] for counts in requests if verb in counts), CallCounts()) for verb in verbs}


class CountingTransport:
    """Forwards every call to *transport*, and counts it.

    Args:
        on_published: Called with the number of messages that a topic has just accepted.
    """

    def __init__(self, transport: Transport, on_published: Callable[[int], None] = lambda _: None) -> None:
        self._transport = transport
        self._on_published = on_published
        self.requests: Requests = {}

    def reset(self) -> None:
        """Start again from 0."""
        self.requests = {}

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Forward the call."""
        with _FailureCounter(self, "publish"):
            failures = await self._transport.publish(topic, messages)
        self._counts_of("publish").count(len(messages), sum(message.size_bytes for message in messages))
        self._on_published(len(messages) - len(failures))
        return failures

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Forward the call."""
        with _FailureCounter(self, "receive"):
            messages = await self._transport.receive(
                queue,
                max_messages=max_messages,
                wait_seconds=wait_seconds,
                visibility_timeout_seconds=visibility_timeout_seconds,
            )
        received_bytes = sum(size_bytes(message.body, message.attributes) for message in messages)
        self._counts_of("receive").count(len(messages), received_bytes)
        return messages

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Forward the call."""
        with _FailureCounter(self, "delete"):
            failures = await self._transport.delete(queue, receipts)
        self._counts_of("delete").count(len(receipts), 0)
        return failures

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Forward the call."""
        with _FailureCounter(self, "change_visibility"):
            failures = await self._transport.change_visibility(queue, leases)
        self._counts_of("change_visibility").count(len(leases), 0)
        return failures

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Forward the call."""
        with _FailureCounter(self, "send"):
            failures = await self._transport.send(queue, messages)
        self._counts_of("send").count(len(messages), sum(message.size_bytes for message in messages))
        return failures

    async def aclose(self) -> None:
        """Forward the call."""
        await self._transport.aclose()

    def _counts_of(self, verb: str) -> CallCounts:
        return self.requests.setdefault(verb, CallCounts())


class _FailureCounter:
    """Counts a call that raises. It is a class because a generator's context manager costs more than the count."""

    __slots__ = ("_transport", "_verb")

    def __init__(self, transport: CountingTransport, verb: str) -> None:
        self._transport = transport
        self._verb = verb

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Count the call if it failed."""
        if kind is not None:
            self._transport.requests.setdefault(self._verb, CallCounts()).count_failed()
