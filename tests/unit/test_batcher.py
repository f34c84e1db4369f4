"""When a batcher sends what it has collected."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from smartpipe.batching.batcher import Batcher, Chunker
from smartpipe.batching.timers import Timers
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Hashable


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


class Sender:
    """Sends take *seconds*; records when each began, and how many ran at a time."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.sent: list[tuple[float, str]] = []
        self.running = self.most = 0

    async def __call__(self, batch: list[str]) -> None:
        self.sent.append((asyncio.get_running_loop().time(), " ".join(batch)))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1


def test_a_batch_is_sent_when_it_is_full_or_at_its_linger_which_each_batch_has_for_itself() -> None:
    sender = Sender()

    async def main() -> None:
        timers = Timers()
        batcher = Batcher(sender, timers, linger_seconds=5, chunker=Chunker(limit_entries=2))
        batcher.add("a")
        await asyncio.sleep(3)
        batcher.add("b")
        batcher.add("c")
        await asyncio.sleep(3)  # the linger of the first batch, which was full, has passed
        batcher.add("d")
        await asyncio.sleep(1)
        batcher.add("e")
        await asyncio.sleep(60)
        timers.close()

    run_virtually(main())

    assert sender.sent == [(3, "a b"), (6, "c d"), (12, "e")]


def test_without_a_linger_each_item_is_sent_immediately_and_alone() -> None:
    sender = Sender()

    async def main() -> None:
        timers = Timers()
        batcher = Batcher(sender, timers, linger_seconds=0)
        batcher.add("a")
        batcher.add("b")
        await batcher.drain()
        timers.close()

    run_virtually(main())

    assert sender.sent == [(0, "a"), (0, "b")]


def test_a_group_commit_sends_what_one_turn_added_and_an_idle_batcher_does_not_linger() -> None:
    sender = Sender()

    async def main() -> None:
        timers = Timers()
        batcher = Batcher(sender, timers, linger_seconds=5, group_commit=True)
        for _ in range(2):
            batcher.add("a")
            batcher.add("b")
            await asyncio.sleep(0.5)
            batcher.add("c")
            await asyncio.sleep(9.5)
        timers.close()

    run_virtually(main())

    assert sender.sent == [(0, "a b"), (1, "c"), (10, "a b"), (11, "c")]


def test_a_group_commit_lingers_no_longer_than_its_linger_behind_a_slow_batch() -> None:
    sender = Sender(seconds=60)

    async def main() -> None:
        timers = Timers()
        batcher = Batcher(sender, timers, linger_seconds=5, group_commit=True)
        batcher.add("a")
        await asyncio.sleep(1)
        batcher.add("b")
        await batcher.drain()
        batcher.add("c")
        await asyncio.sleep(1)
        batcher.add("d")
        await asyncio.sleep(600)
        timers.close()

    run_virtually(main())

    assert sender.sent == [(0, "a"), (1, "b"), (61, "c"), (67, "d")]


def test_no_more_batches_are_in_flight_than_allowed_and_a_drain_waits_for_all() -> None:
    sender = Sender()

    async def main() -> float:
        timers = Timers()
        batcher = Batcher(sender, timers, linger_seconds=0, max_in_flight=3)
        for number in range(7):
            batcher.add(str(number))
        await batcher.drain()
        timers.close()
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == 3
    assert sender.most == 3
    assert [at for at, _ in sender.sent] == [0, 0, 0, 1, 1, 1, 2]


def test_batches_that_share_a_group_are_sent_one_after_the_other_and_others_beside_them() -> None:
    sender = Sender()

    def group_of(item: str) -> Hashable:
        return item[0] if item[0].isupper() else None

    async def main() -> None:
        timers = Timers()
        chunker: Chunker[str] = Chunker(group_of=group_of)
        batcher = Batcher(sender, timers, linger_seconds=5, chunker=chunker)
        for item in ("A1", "B1", "none", "A2", "none", "B2", "B3"):
            batcher.add(item)
        batcher.flush()
        batcher.add("C1")
        await batcher.drain()
        timers.close()

    run_virtually(main())

    assert sender.sent == [(0, "A1 B1 none"), (0, "C1"), (1, "A2 none B2"), (2, "B3")]


@pytest.mark.parametrize(("limit", "chunks"), [(None, [[4, 4, 4, 1]]), (12, [[4, 4, 4], [1]]), (11, [[4, 4], [4, 1]])])
def test_a_chunk_may_be_exactly_as_large_as_the_limit(limit: int | None, chunks: list[list[int]]) -> None:
    chunker: Chunker[int] = Chunker(limit_bytes=limit, size_of=lambda size: size)

    found = [chunk for size in (4, 4, 4, 1) if (chunk := chunker.add(size))]
    assert len(chunker) == len(chunks[-1])
    found.append(chunker.take())

    assert found == chunks
    assert (len(chunker), chunker.take()) == (0, [])
    again = [chunker.add(size) for size in (4, 4)]
    assert again == [None, None]  # the bytes count from 0 again


def test_sixteen_batches_are_in_flight_at_most_by_default_and_a_chunk_has_ten_items() -> None:
    sender = Sender()

    async def main() -> None:
        timers = Timers()
        for round_ in range(2):
            batcher = Batcher(sender, timers, linger_seconds=1)
            for number in range(165):
                batcher.add(str(number))
            await batcher.drain()
            assert sender.most == 16, round_
        timers.close()

    run_virtually(main())

    assert [(at, len(batch.split())) for at, batch in sender.sent[:17]] == [(0, 10)] * 16 + [(1, 5)]


def test_a_batch_of_a_group_waits_for_the_latest_of_its_group_after_an_earlier_one_has_ended() -> None:
    sender = Sender()

    async def main() -> None:
        timers = Timers()
        batcher = Batcher(sender, timers, linger_seconds=0, chunker=Chunker(group_of=lambda item: item[0]))
        batcher.add("a1")
        await asyncio.sleep(0.5)
        batcher.add("a2")
        await asyncio.sleep(1)  # the first has ended, and the second is in flight
        batcher.add("a3")
        batcher.add("b1")
        await batcher.drain()
        batcher.add("a4")
        await batcher.drain()
        timers.close()

    run_virtually(main())

    assert sender.sent == [(0, "a1"), (1, "a2"), (1.5, "b1"), (2, "a3"), (3, "a4")]


def test_batches_that_wait_for_their_group_leave_the_calls_to_others() -> None:
    sender = Sender()

    async def main() -> None:
        timers = Timers()
        chunker: Chunker[str] = Chunker(group_of=lambda item: item[0])
        batcher = Batcher(sender, timers, linger_seconds=0, chunker=chunker, max_in_flight=2)
        for item in ("a1", "a2", "a3", "b1"):
            batcher.add(item)
        await batcher.drain()
        timers.close()

    run_virtually(main())

    assert sender.sent == [(0, "a1"), (0, "b1"), (1, "a2"), (2, "a3")]


def test_a_batch_that_is_sent_by_its_linger_runs_in_the_context_of_its_first_item() -> None:
    origin: ContextVar[str] = ContextVar("origin", default="none")
    seen: list[str] = []

    async def send(batch: list[str]) -> None:
        seen.append(origin.get())

    async def main() -> None:
        timers = Timers()
        batcher = Batcher(send, timers, linger_seconds=5)
        for round_ in ("1", "2"):
            for name in ("first", "second"):
                origin.set(round_ + name)
                batcher.add(name)
            await asyncio.sleep(6)
        timers.close()

    run_virtually(main())

    assert seen == ["1first", "2first"]


def test_a_chunk_is_full_at_its_limit_and_begins_again_without_its_groups() -> None:
    chunker: Chunker[str] = Chunker(limit_entries=2, group_of=lambda item: None if item == "none" else item)

    assert (chunker.add("a"), chunker.full) == (None, False)
    assert (chunker.add("none"), chunker.full) == (None, True)
    assert chunker.add("none") == ["a", "none"]
    assert chunker.add("a") is None  # the group of the chunk before
    assert chunker.groups_of(["a", "none", "b"]) == {"a", "b"}
    assert Chunker[str]().groups_of(["a"]) == set()
    assert chunker.take() == ["none", "a"]
    assert chunker.add("a") is None
    assert chunker.add("a") == ["a"]


def test_an_idle_batcher_does_nothing_when_it_is_flushed_or_drained() -> None:
    sender = Sender()

    async def main() -> float:
        timers = Timers()
        batcher = Batcher(sender, timers, linger_seconds=5)
        batcher.flush()
        await batcher.drain()
        timers.close()
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == 0
    assert sender.sent == []
