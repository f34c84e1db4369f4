"""Requests, counted where they leave: around any transport."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

from smartpipe.message import size_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.transport import Transport

BILLED_BYTES = 65_536
"""AWS bills each 64 KB of a request's payload as a request of its own."""


@dataclass(slots=True)
class Calls:
    """Of one verb.

    Args:
        entries: Messages in all of them.
        empty: Receives that brought nothing.
        failed: Calls that failed as a whole; AWS may bill them or not, here it does.
        billed: Requests that AWS would bill.
    """

    calls: int = 0
    entries: int = 0
    empty: int = 0
    failed: int = 0
    billed: int = 0
    payload_bytes: int = 0

    def __add__(self, other: Calls) -> Calls:
        """Return the sum."""
        return Calls(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def count(self, entries: int, payload_bytes: int) -> None:
        """Enter one call that was answered."""
        self.calls += 1
        self.entries += entries
        self.empty += not entries
        self.payload_bytes += payload_bytes
        self.billed += max(1, math.ceil(payload_bytes / BILLED_BYTES))

    def count_failed(self) -> None:
        """Enter one call that was not."""
        self.calls += 1
        self.failed += 1
        self.billed += 1


Requests: TypeAlias = dict[str, Calls]
"""By verb."""


def total(several: Sequence[Requests]) -> Requests:
    """Return the sums, by verb."""
    verbs = dict.fromkeys(verb for requests in several for verb in requests)
    return {verb: sum((one[verb] for one in several if verb in one), Calls()) for verb in verbs}


class CountingTransport:
    """Passes every call on to *transport*, and counts it.

    Args:
        on_published: Told how many messages a topic has just taken.
    """

    def __init__(self, transport: Transport, on_published: Callable[[int], None] = lambda _: None) -> None:
        self._transport = transport
        self._on_published = on_published
        self.requests: Requests = {}
        self.name = getattr(transport, "name", type(transport).__name__)

    def reset(self) -> None:
        """Count from 0."""
        self.requests = {}

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """As the transport's."""
        with _Failing(self, "publish"):
            failures = await self._transport.publish(topic, messages)
        self._of("publish").count(len(messages), sum(message.size_bytes for message in messages))
        self._on_published(len(messages) - len(failures))
        return failures

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """As the transport's."""
        with _Failing(self, "receive"):
            messages = await self._transport.receive(
                queue,
                max_messages=max_messages,
                wait_seconds=wait_seconds,
                visibility_timeout_seconds=visibility_timeout_seconds,
            )
        received_bytes = sum(size_bytes(message.body, message.attributes) for message in messages)
        self._of("receive").count(len(messages), received_bytes)
        return messages

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """As the transport's."""
        with _Failing(self, "delete"):
            failures = await self._transport.delete(queue, receipts)
        self._of("delete").count(len(receipts), 0)
        return failures

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """As the transport's."""
        with _Failing(self, "change_visibility"):
            failures = await self._transport.change_visibility(queue, leases)
        self._of("change_visibility").count(len(leases), 0)
        return failures

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """As the transport's."""
        with _Failing(self, "send"):
            failures = await self._transport.send(queue, messages)
        self._of("send").count(len(messages), sum(message.size_bytes for message in messages))
        return failures

    async def aclose(self) -> None:
        """As the transport's."""
        await self._transport.aclose()

    def _of(self, verb: str) -> Calls:
        return self.requests.setdefault(verb, Calls())


class _Failing:
    """Counts a call that raises. A class, as a generator's context manager costs more than the count."""

    __slots__ = ("_transport", "_verb")

    def __init__(self, transport: CountingTransport, verb: str) -> None:
        self._transport = transport
        self._verb = verb

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Count, if it failed."""
        if kind is not None:
            self._transport.requests.setdefault(self._verb, Calls()).count_failed()
