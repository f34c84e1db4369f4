"""The delay of the event loop, as a worker reports it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from smartpipe import Worker
from smartpipe.settings import WorkerSettings
from smartpipe.telemetry.loop_lag import EVERY_SECONDS, LAG_BOUNDS, LoopLag
from smartpipe.worker.group import WorkerGroup
from tests.support.consumers import make_service
from tests.support.events import UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import VirtualTimeLoop, run_virtually
from tests.support.waiting import until


def counts_of(lag: LoopLag) -> dict[float, int]:
    """Return the number of values of each bucket that has some, by its upper bound."""
    lag.seconds.fold()
    return {bound: n for bound, n in zip((*LAG_BOUNDS, 99.0), lag.seconds.counts, strict=True) if n}


def test_an_idle_loop_is_never_late_and_is_measured_twice_a_second() -> None:
    lag = LoopLag()

    async def main() -> None:
        with lag:
            await asyncio.sleep(10.1)
        await asyncio.sleep(100)  # measured no more

    run_virtually(main())
    assert counts_of(lag) == {0.001: 20}


def test_a_blocked_loop_makes_one_late_timer() -> None:
    lag = LoopLag()

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        with lag:
            await asyncio.sleep(EVERY_SECONDS * 2 + 0.1)
            loop._virtual_selector.now += 3.0  # as a handler that blocks
            await asyncio.sleep(EVERY_SECONDS / 2)

    run_virtually(main())
    assert counts_of(lag) == {0.001: 2, 5.0: 1}
    assert lag.seconds.sum == pytest.approx(2.6)


@pytest.mark.parametrize("metrics", [True, False])
@pytest.mark.parametrize("group", [True, False])
async def test_a_process_measures_its_loop_once_unless_metrics_are_off(metrics: bool, group: bool) -> None:
    services = [make_service()]
    services[0].subscribe(UserSignedUp)(_handle)
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, drain_seconds=5, metrics=metrics)
    worker: Any = (WorkerGroup if group else Worker)(services if group else services[0], FakeTransport(), settings)  # type: ignore[arg-type]
    running = asyncio.create_task(worker.run())
    await until(lambda: all(one.ready for one in (worker.workers if group else [worker])))

    families = {family.name: family for family in worker._report.collect()}

    assert ("smartpipe_event_loop_lag_seconds" in families) == metrics
    if metrics:
        [sample] = families["smartpipe_event_loop_lag_seconds"].samples
        assert sample.labels == {"service": "mailer"}
        await until(lambda: worker._report.lag.seconds.count > 0)
    worker.stop()
    assert await running == 0


async def _handle(_: UserSignedUp) -> None: ...
