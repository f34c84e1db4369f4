"""The waits between attempts, counted over a long outage, and the groups that a batcher remembers."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from smartpipe.batching.batcher import Batcher, Chunker
from smartpipe.batching.resend import retry, retry_until_stopped, send_with_retries
from smartpipe.batching.timers import Timers
from smartpipe.errors import StoreError
from tests.support.fakes import UNREACHABLE, throttled
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.message import Failure


def test_a_call_that_is_repeated_until_stopped_is_made_less_and_less_often_and_logged_once_for_each_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[float] = []

    async def attempt() -> None:
        calls.append(asyncio.get_running_loop().time())
        raise UNREACHABLE if calls[-1] < 1_800 else StoreError("the store is down")

    async def main() -> None:
        stopping = asyncio.Event()
        running = asyncio.create_task(retry_until_stopped("check the topology", attempt, stopping=stopping))
        await asyncio.sleep(3_600)
        stopping.set()
        await running

    with caplog.at_level(logging.ERROR):
        run_virtually(main())

    assert 100 <= len(calls) <= 700  # up to 30 s apart, at random
    assert sum(time < 10 for time in calls) >= 3
    assert len(caplog.records) == 2


def test_a_call_that_is_repeated_until_stopped_ends_with_its_first_success() -> None:
    answers: list[Exception | None] = [UNREACHABLE, StoreError("down"), None, UNREACHABLE]

    async def attempt() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    run_virtually(retry_until_stopped("x", attempt, stopping=asyncio.Event()))

    assert answers == [UNREACHABLE]


@pytest.mark.parametrize("deadline_seconds", [10.0, 60.0])
def test_entries_are_sent_again_until_the_deadline_and_not_in_a_busy_loop(deadline_seconds: float) -> None:
    calls: list[tuple[float, list[str]]] = []

    async def call(entries: list[str]) -> list[Failure]:
        calls.append((asyncio.get_running_loop().time(), entries))
        return [throttled(len(entries) - 1)]  # all others are accepted

    async def main() -> float:
        failed = await send_with_retries(call, ["a", "b", "c"], deadline_seconds=deadline_seconds)
        assert [entry for entry, _ in failed] == ["c"]
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) <= deadline_seconds
    assert [entries for _, entries in calls] == [["a", "b", "c"], *[["c"]] * (len(calls) - 1)]
    assert 4 <= len(calls) <= 2 * deadline_seconds + 10
    assert calls[-1][0] >= deadline_seconds - 5


def test_a_batcher_forgets_groups_whose_batches_have_been_sent() -> None:
    """A publisher with many keys would otherwise grow for as long as it lives."""

    async def main() -> tuple[int, int]:
        timers, sent, most = Timers(), list[str](), 0

        async def send(batch: list[str]) -> None:
            await asyncio.sleep(0.01)
            sent.extend(batch)

        chunker: Chunker[str] = Chunker(1_000, len, lambda item: item)
        batcher = Batcher(send, timers, linger_seconds=0.001, chunker=chunker)
        for round_ in range(20):
            for number in range(50):
                batcher.add(f"group {round_} {number}")
            await asyncio.sleep(1)
            most = max(most, len(batcher._last))
        await batcher.drain()
        timers.close()
        return len(sent), most

    assert run_virtually(main()) == (1_000, 0)


def gaps_of(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def test_the_first_waits_for_aws_are_between_a_fifth_and_half_of_a_second() -> None:
    firsts: list[float] = []

    async def main() -> None:
        for _ in range(60):
            times: list[float] = []

            async def attempt(times: list[float] = times) -> None:
                times.append(asyncio.get_running_loop().time())
                if len(times) < 2:
                    raise UNREACHABLE

            await retry_until_stopped("x", attempt, stopping=asyncio.Event())
            firsts.extend(gaps_of(times))

    run_virtually(main())
    assert 0.2 <= min(firsts) <= max(firsts) <= 0.51
    assert max(firsts) > 0.35  # 60 uniform draws miss the upper half once in 10^18


def test_the_waits_of_a_repeated_call_begin_at_a_fifth_of_a_second_and_double() -> None:
    gaps: list[list[float]] = []

    async def main() -> None:
        for _ in range(60):
            times: list[float] = []

            async def call(times: list[float] = times) -> None:
                times.append(asyncio.get_running_loop().time())
                if len(times) < 9:
                    raise UNREACHABLE

            await retry(call, deadline_seconds=600)
            gaps.append(gaps_of(times))

    run_virtually(main())
    for number, longest in ((0, 0.2), (1, 0.4), (2, 0.8), (7, 5.0)):
        waits = [one[number] for one in gaps]
        assert longest / 2 < max(waits) <= longest + 0.001
