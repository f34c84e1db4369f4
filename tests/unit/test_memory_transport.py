"""The memory transport in virtual time."""

from __future__ import annotations

import asyncio

from smartpipe import Event, Queue, Service
from smartpipe.message import Attribute, OutgoingMessage
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from tests.support.events import Paid, UserSignedUp
from tests.support.virtual_time import run_virtually


async def handle(_: Event) -> None: ...


def test_no_call_takes_time_except_a_poll_that_finds_nothing() -> None:
    async def main() -> None:
        service = Service("mailer")
        service.subscribe(UserSignedUp)(handle)
        transport = MemoryTransport()
        transport.apply(derive([service], NAMING))
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def receive() -> list[str]:
            found = await transport.receive("mailer", max_messages=10, wait_seconds=9, visibility_timeout_seconds=30)
            return [message.receipt_handle for message in found]

        await transport.publish("users", [OutgoingMessage("a", 1, {"type": Attribute("String", "member.signed_up")})])
        await transport.send("mailer", [OutgoingMessage("b", 1)])
        first, second = await receive()
        await transport.change_visibility("mailer", [(first, 0)])
        [again] = await receive()
        await transport.delete("mailer", [again, second])
        assert loop.time() == began

        assert await receive() == []
        assert loop.time() == began + 9

    run_virtually(main())


def test_a_poll_ends_as_soon_as_the_first_of_several_hidden_groups_becomes_visible() -> None:
    async def main() -> tuple[list[str], float]:
        service = Service("ledger", queue=Queue("ledger", fifo=True))
        service.subscribe(Paid)(handle)
        transport = MemoryTransport()
        transport.apply(derive([service], NAMING))
        for group in "ab":
            message = OutgoingMessage(group, 1, group_id=group, deduplication_id=group)
            await transport.send("ledger.fifo", [message])

        async def receive(wait_seconds: int) -> dict[str, str]:
            found = await transport.receive(
                "ledger.fifo", max_messages=10, wait_seconds=wait_seconds, visibility_timeout_seconds=30
            )
            return {message.body: message.receipt_handle for message in found}

        receipts = await receive(0)
        await transport.change_visibility("ledger.fifo", [(receipts["a"], 3), (receipts["b"], 8)])
        began = asyncio.get_running_loop().time()
        return list(await receive(20)), asyncio.get_running_loop().time() - began

    bodies, seconds = run_virtually(main())

    assert (bodies, round(seconds, 3)) == (["a"], 3.0)
