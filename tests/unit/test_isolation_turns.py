"""The turns of suspects: when each begins, what they hold back meanwhile, and what a cancelled one leaves behind."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, cast

import pytest

from smartpipe.consumer.isolation import PATIENCE_SECONDS, Isolation
from smartpipe.consumer.leases import Lease
from smartpipe.message import Message
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.consumer.consumer import Consumer

SOON = 0.1
"""A suspect checks every twentieth of a second on average whether it may begin."""


class FakeConsumer:
    """A consumer with messages that the test adds and settles. Suspects are among them."""

    def __init__(self) -> None:
        self.open_work = 0
        self.returned = 0

    def return_waiting(self) -> None:
        self.returned += 1


class Turns:
    """An isolation of two consumers, and suspects that record when they begin."""

    def __init__(self) -> None:
        self.isolation = Isolation()
        self.consumers = [FakeConsumer(), FakeConsumer()]
        for consumer in self.consumers:
            self.isolation.join(cast("Consumer", consumer))
        self.woken = 0
        self.isolation.on_open(self._wake)
        self.begun: dict[str, float] = {}
        self.leases: dict[str, Lease] = {}

    def _wake(self) -> None:
        self.woken += 1

    def suspect(self, name: str, seconds: float = 10) -> asyncio.Task[None]:
        self.leases[name] = Lease(Message(name, name, "{}"), math.inf, math.inf, asyncio.get_running_loop().time)
        self.consumers[0].open_work += 1
        return asyncio.create_task(self._run(name, seconds))

    async def _run(self, name: str, seconds: float) -> None:
        try:
            async with self.isolation.alone(self.leases[name]):
                self.begun[name] = asyncio.get_running_loop().time()
                await asyncio.sleep(seconds)
        finally:
            self.consumers[0].open_work -= 1


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_suspect_without_others_begins_immediately_and_holds_receive_calls_back_until_it_ends() -> None:
    async def main() -> None:
        turns = Turns()
        for round_ in (1, 2):
            began = now()
            assert (turns.isolation.passive, turns.isolation.admit(7)) == (True, 7)
            task = turns.suspect("a")
            await asyncio.sleep(1)
            assert turns.begun["a"] == began
            assert turns.isolation.is_alone(turns.leases["a"])
            assert (turns.isolation.passive, turns.isolation.admit(7)) == (False, 0)
            assert turns.isolation.seconds_until_open() == PATIENCE_SECONDS - 1
            assert turns.woken == round_ - 1
            await task
            assert not turns.isolation.is_alone(turns.leases["a"])
            assert (turns.isolation.passive, turns.isolation.admit(7), turns.woken) == (True, 7, round_)
            assert [consumer.returned for consumer in turns.consumers] == [round_, round_]
            await asyncio.sleep(5)

    run_virtually(main())


def test_a_suspect_that_waits_for_others_begins_when_they_have_ended() -> None:
    async def main() -> None:
        turns = Turns()
        turns.consumers[1].open_work = 2
        task = turns.suspect("a")
        await asyncio.sleep(20)
        assert turns.isolation.is_alone(turns.leases["a"])
        assert turns.isolation.seconds_until_open() == 2 * PATIENCE_SECONDS - 20
        turns.consumers[1].open_work = 1
        await asyncio.sleep(20)
        assert turns.begun == {}
        turns.consumers[1].open_work = 0
        await task
        assert 40 <= turns.begun["a"] <= 40 + SOON

    run_virtually(main())


def test_a_suspect_waits_a_minute_at_most_and_holds_receive_calls_back_for_another_one() -> None:
    async def main() -> None:
        turns = Turns()
        turns.consumers[1].open_work = 1
        task = turns.suspect("a", seconds=100)
        await asyncio.sleep(PATIENCE_SECONDS + SOON)
        began = turns.begun["a"]
        assert PATIENCE_SECONDS <= began <= PATIENCE_SECONDS + SOON
        await asyncio.sleep(PATIENCE_SECONDS - 2 * SOON)
        assert (turns.isolation.admit(7), turns.isolation.passive) == (0, False)
        await asyncio.sleep(2 * SOON)
        assert (turns.isolation.admit(7), turns.isolation.passive, turns.isolation.seconds_until_open()) == (
            7,
            False,
            0,
        )
        await task
        assert turns.isolation.passive

    run_virtually(main())


def test_suspects_have_their_turns_one_after_the_other_and_the_last_one_lets_receive_calls_go() -> None:
    async def main() -> None:
        turns = Turns()
        tasks = [turns.suspect(name) for name in "abc"]
        await asyncio.sleep(25)
        assert len(turns.begun) == 3
        first, second, third = sorted(turns.begun.values())
        assert first == 0
        assert 10 <= second <= 10 + SOON
        assert 20 <= third <= 20 + 2 * SOON
        assert (turns.woken, turns.isolation.admit(7)) == (0, 0)
        await asyncio.gather(*tasks)
        assert (turns.woken, turns.isolation.admit(7), turns.isolation.passive) == (1, 7, True)

    run_virtually(main())


def test_a_suspect_whose_wait_is_cancelled_leaves_its_turn_to_the_next() -> None:
    async def main() -> None:
        turns = Turns()
        turns.consumers[1].open_work = 1
        for round_ in (1, 2):
            waiting = turns.suspect("cancelled")
            await asyncio.sleep(1)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert (turns.isolation.passive, turns.woken, turns.begun) == (True, round_, {})
        turns.consumers[1].open_work = 0
        began = now()
        task = turns.suspect("next")
        await asyncio.sleep(0.5)
        other = turns.suspect("other")
        await asyncio.sleep(0.5)
        assert turns.begun == {"next": began}
        task.cancel()  # in its turn
        await asyncio.sleep(1)
        assert began + 1 <= turns.begun["other"] <= began + 1 + SOON
        await other
        assert turns.isolation.passive

    run_virtually(main())


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_ends_the_wait_of_suspects_and_holds_nothing_back(begun: bool) -> None:
    async def main() -> None:
        turns = Turns()
        turns.consumers[1].open_work = 0 if begun else 1
        tasks = [turns.suspect(name) for name in "ab"]
        await asyncio.sleep(1)
        assert len(turns.begun) == begun
        assert not turns.isolation.stopped
        turns.isolation.stop()
        assert turns.isolation.stopped
        assert (turns.isolation.admit(7), turns.isolation.seconds_until_open()) == (7, 0)
        await asyncio.sleep(SOON)
        assert len(turns.begun) == 2
        await asyncio.gather(*tasks)
        began = now()
        await turns.suspect("late", seconds=0)
        assert turns.begun["late"] == began

    run_virtually(main())


def test_a_block_within_the_turn_of_its_message_does_not_wait() -> None:
    async def main() -> Any:
        turns = Turns()
        lease = Lease(Message("m", "r", "{}"), math.inf, math.inf, now)
        async with turns.isolation.alone(lease):
            turns.consumers[1].open_work = 9
            async with turns.isolation.alone(lease):
                assert now() == 0
            assert turns.isolation.is_alone(lease)
            assert not turns.isolation.passive
        assert turns.isolation.passive
        assert (turns.woken, turns.consumers[0].returned) == (1, 1)

    run_virtually(main())
