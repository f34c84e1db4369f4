"""A transport with scripted responses, which records its calls."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

from smartpipe.envelope import encode, wrap
from smartpipe.errors import TransportError
from smartpipe.message import Failure, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe import Event
    from smartpipe.message import OutgoingMessage

Answer = list[Failure] | Exception | float | tuple[float, list[Failure]]


class FakeTransport:
    """A fake transport.

    ``script["delete"]`` and so on contain the responses to the next calls: failures, an error, a delay in seconds, or a
    delay with failures. ``calls`` contains every call as (verb, topic or queue, entries, time).
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[Any], float]] = []
        self.script: dict[str, deque[Answer]] = {
            verb: deque() for verb in ("publish", "receive", "delete", "change_visibility", "send")
        }
        self.asked: list[int] = []
        self.open_receives = 0
        self.closed = 0
        self._inbox: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._numbers = count(1)

    def put(self, *bodies: str | Event, **fields: Any) -> list[Message]:
        """Let messages arrive on any queue that is polled."""
        messages = [self.message(body, **fields) for body in bodies]
        self._inbox.extend(messages)
        self._arrived.set()
        return messages

    def message(self, body: str | Event, **fields: Any) -> Message:
        number = next(self._numbers)
        text = body if isinstance(body, str) else encode(wrap(body, source="test"))
        return Message(f"m{number}", f"r{number}", text, **fields)

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        return await self._answer("publish", topic, messages)

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        self.asked.append(max_messages)
        self.open_receives += 1
        try:
            await self._answer("receive", queue, [])
            try:
                async with asyncio.timeout(wait_seconds):
                    while not self._inbox:  # another poll may have received the messages
                        self._arrived.clear()
                        await self._arrived.wait()
            except TimeoutError:
                return []
            taken = [self._inbox.popleft() for _ in range(min(max_messages, len(self._inbox)))]
        finally:
            self.open_receives -= 1
        now = asyncio.get_running_loop().time()
        return [message._replace(received_at=now) for message in taken]

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        return await self._answer("delete", queue, receipts)

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        return await self._answer("change_visibility", queue, leases)

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        return await self._answer("send", queue, messages)

    async def aclose(self) -> None:
        self.closed += 1

    def entries(self, verb: str) -> list[Any]:
        """Return the entries of all calls of *verb*."""
        return [entry for name, _, entries, _ in self.calls if name == verb for entry in entries]

    def batches(self, verb: str) -> list[int]:
        """Return the number of entries of each call of *verb*."""
        return [len(entries) for name, _, entries, _ in self.calls if name == verb]

    async def _answer(self, verb: str, name: str, entries: Sequence[Any]) -> list[Failure]:
        self.calls.append((verb, name, list(entries), asyncio.get_running_loop().time()))
        await asyncio.sleep(0)
        answer: Answer = self.script[verb].popleft() if self.script[verb] else []
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            seconds, answer = answer
            await asyncio.sleep(seconds)
        if isinstance(answer, (int, float)):
            await asyncio.sleep(answer)
            return []
        return answer


def throttled(position: int) -> Failure:
    return Failure(position, "RequestThrottled", "slow down", retryable=True)


def refused(position: int) -> Failure:
    return Failure(position, "InvalidMessageContents", "bad characters", retryable=False)


UNREACHABLE = TransportError("EndpointConnectionError", "could not connect", retryable=True)
