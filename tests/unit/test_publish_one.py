"""The context and the event loop of a shared request, and timers left behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Publisher
from smartpipe.batching.resend import send_with_retries
from tests.support.events import UserLeft
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import VirtualTimeLoop, run_virtually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.message import Failure, OutgoingMessage

origin: ContextVar[Any] = ContextVar("origin", default="none")


class Contexts(FakeTransport):
    """Records the context in which each request was made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        self.seen.append(origin.get())
        return await super().publish(topic, messages)


class Request:
    """A value such as a web framework keeps in a context."""


async def publish_in(context: Any, publisher: Publisher, count: int = 1) -> None:
    origin.set(context)
    await asyncio.gather(*(publisher.publish(UserLeft(name="Ada")) for _ in range(count)))


def live_timers() -> list[asyncio.TimerHandle]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]


def test_a_request_is_sent_in_the_context_of_its_first_event() -> None:
    transport = Contexts()

    async def main() -> None:
        async with Publisher("test", transport=transport) as publisher:
            first = asyncio.create_task(publish_in("first's", publisher, count=10))  # a full request, before its timer
            await asyncio.sleep(0.001)
            await asyncio.gather(first, asyncio.create_task(publish_in("second's", publisher)))

    run_virtually(main())

    assert transport.seen == ["first's", "second's"]


def test_a_publisher_that_is_closed_leaves_no_timer_and_no_context_behind() -> None:
    async def main() -> list[weakref.ref[Request]]:
        kept = []
        for _ in range(3):
            request = Request()
            kept.append(weakref.ref(request))
            async with Publisher("test", transport=FakeTransport()) as publisher:
                await asyncio.create_task(publish_in(request, publisher))
            del request

        assert live_timers() == []
        gc.collect()
        return [one for one in kept if one() is not None]

    assert run_virtually(main()) == []


def test_a_delivery_that_has_ended_leaves_no_timer_behind() -> None:
    async def taken(_: list[str]) -> list[Failure]:
        return []

    async def main() -> None:
        await send_with_retries(taken, ["a"], deadline_seconds=30)

        assert live_timers() == []

    run_virtually(main())


def test_a_publish_cancelled_in_an_ended_loop_does_not_block_the_next_loop() -> None:
    transport = FakeTransport()
    publisher = Publisher("test", transport=transport, linger_seconds=1)

    async def cut_off() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await publisher.publish(UserLeft(name="Ada"))

    run_virtually(cut_off())
    run_virtually(publish_in("second's", publisher))

    assert [len(entries) for _, _, entries, _ in transport.calls] == [1]
