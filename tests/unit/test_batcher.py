"""When a batcher sends what it has collected."""

from __future__ import annotations

import asyncio

from smartpipe.batching.batcher import Batcher
from smartpipe.batching.timers import Timers
from tests.support.virtual_time import run_virtually


def test_after_a_flush_a_batcher_collects_again_until_the_batch_in_flight_has_ended() -> None:
    """The flush comes in the turn of the event loop at whose end the batcher would have sent the first item."""
    sent: list[tuple[float, list[str]]] = []

    async def send(batch: list[str]) -> None:
        sent.append((asyncio.get_running_loop().time(), batch))
        await asyncio.sleep(1)

    async def main() -> None:
        timers = Timers()
        batcher = Batcher(send, timers, linger_seconds=10, group_commit=True)
        for round_ in range(2):
            batcher.add(f"{round_} first")
            batcher.flush()
            batcher.add(f"{round_} second")
            await asyncio.sleep(0.5)
            batcher.add(f"{round_} third")
            await asyncio.sleep(9.5)
        timers.close()

    run_virtually(main())

    assert sent == [
        (0, ["0 first"]),
        (1, ["0 second", "0 third"]),
        (10, ["1 first"]),
        (11, ["1 second", "1 third"]),
    ]
