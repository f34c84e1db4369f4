"""When a worker is alive and ready, how its drain divides its time, and what it logs and returns at the end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Delivery, Queue, Service, TopologyError, TransportError, Worker
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.settings import WorkerSettings
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import UNREACHABLE, FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DRAIN_SECONDS, FLUSH_SECONDS = 20.0, 3.0


class Running:
    """A worker with two queues, whose handler takes *seconds*. It runs without a health port."""

    def __init__(
        self, *, seconds: float = 0, verify: Callable[[], Awaitable[None]] | None = None, **settings: Any
    ) -> None:
        self.transport = FakeTransport()
        self.seconds = seconds
        self.ended: list[float] = []
        service = Service("mailer", queue=Queue("mailer"), timeout_seconds=None)
        service.subscribe(UserSignedUp, **settings.pop("options", {}))(self.handle)
        service.subscribe(UserLeft, queue=Queue("audit"))(self.leave)
        chosen: dict[str, Any] = {"drain_seconds": DRAIN_SECONDS, "wait_seconds": 1, **settings}
        store = chosen.pop("store", None)
        self.worker = Worker(
            service, self.transport, WorkerSettings.load(port=0, host="127.0.0.1", **chosen), verify=verify, store=store
        )

    async def handle(self, event: UserSignedUp, delivery: Delivery) -> None:
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.ended.append(asyncio.get_running_loop().time())

    async def leave(self, event: UserLeft) -> None: ...

    async def start(self) -> asyncio.Task[None]:
        running = asyncio.create_task(self.worker.run_service())
        await asyncio.sleep(0.5)
        return running

    async def end(self, running: asyncio.Task[None]) -> int:
        self.worker.stop()
        await running
        return self.worker.report()


def test_a_worker_is_alive_while_every_queue_was_received_from_within_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        one = Running(liveness_seconds=30)
        assert one.worker.alive  # before it has consumers
        running = await one.start()
        assert len(one.worker.consumers) == 2
        for seconds, alive in ((29.9, True), (30.0, False), (31.0, False)):
            monkeypatch.setattr(one.worker.consumers[1], "seconds_since_success", lambda seconds=seconds: seconds)
            assert one.worker.alive == alive
        monkeypatch.undo()
        assert one.worker.alive
        for call in range(20):
            one.worker.capacity.add(call, "slow")
        assert not one.worker.alive
        assert not one.worker.ready
        for call in range(20):
            one.worker.capacity.remove(call)
        assert one.worker.alive
        assert one.worker.ready
        assert await one.end(running) == 0

    run_virtually(main())


def test_a_worker_is_ready_while_receive_calls_succeed_and_until_it_drains() -> None:
    async def main() -> None:
        one = Running()
        assert not one.worker.ready
        running = await one.start()
        for _ in range(2):
            assert one.worker.ready
            one.transport.script["receive"].extend([UNREACHABLE] * 4)
            await asyncio.sleep(1.1)
            assert not one.worker.ready
            assert one.worker.alive
            one.transport.script["receive"].clear()
            await asyncio.sleep(60)
            assert one.worker.ready
            one.worker.capacity.record_shortage("memory")
            assert not one.worker.ready
            await asyncio.sleep(2)
            one.worker.capacity.record_success()
            assert one.worker.ready
        one.worker.stop()
        assert not one.worker.ready
        await running
        assert not one.worker.ready

    run_virtually(main())


def test_a_worker_is_not_ready_while_the_idempotency_store_fails() -> None:
    async def main() -> None:
        one = Running(options={"idempotent": True}, store=MemoryStore())
        running = await one.start()
        assert one.worker.ready
        assert one.worker._runtime is not None
        claims = one.worker._runtime.claims
        assert claims is not None
        claims.failures = 1
        assert not one.worker.ready
        claims.failures = 0
        assert one.worker.ready
        assert await one.end(running) == 0

    run_virtually(main())


def test_a_drain_gives_handlers_its_time_without_that_for_the_deletes(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for seconds, code in ((DRAIN_SECONDS - FLUSH_SECONDS + 0.9, 0), (DRAIN_SECONDS - FLUSH_SECONDS + 1.1, 1)):
            one = Running(seconds=seconds)
            one.transport.put(ADA)
            running = await one.start()
            await asyncio.sleep(0.5)  # the handler has run for a second
            stopped_at = asyncio.get_running_loop().time()
            assert await one.end(running) == code
            took = asyncio.get_running_loop().time() - stopped_at
            assert one.ended[0] - stopped_at == pytest.approx(17 if code else 16.9)
            assert 16.9 <= took <= 17.2
            assert one.worker.consumers[0].counters.cancelled == code

    with caplog.at_level(logging.INFO, "smartpipe.worker"):
        run_virtually(main())
    assert [line for line in caplog.messages if line.startswith("stopped: ")] == [
        "stopped: received 1, handled 1",
        "stopped: received 1, cancelled 1",
    ]
    assert "handlers have ended, deletes are flushed" in caplog.messages


def test_a_stop_is_logged_once_with_the_times_that_it_takes(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        one = Running(wait_seconds=5)
        running = await one.start()
        await asyncio.sleep(1.5)
        one.worker.stop("SIGTERM")
        one.worker.stop("SIGTERM")
        await running
        assert one.worker.report() == 0

        early = Running()
        early.worker.stop("SIGINT")
        assert await early.end(await early.start()) == 0

    with caplog.at_level(logging.INFO, "smartpipe.worker"):
        run_virtually(main())
    drains = [line for line in caplog.messages if line.startswith("draining: ")]
    assert drains == [
        "draining: SIGTERM; open receive calls end within 3 s, the drain within 20 s; a second signal stops hard",
        "draining: SIGINT; open receive calls end within 0 s, the drain within 20 s; a second signal stops hard",
    ]
    assert caplog.messages[0] == "ready: mailer polls mailer, audit, concurrency 10 for each queue"
    assert caplog.messages.count("stopped: nothing received") == 2


def test_a_hard_stop_cancels_the_handlers_immediately(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for stop_first in (True, False):
            one = Running(seconds=1_000)
            one.transport.put(ADA)
            running = await one.start()
            began = asyncio.get_running_loop().time()
            if stop_first:
                one.worker.stop()
                await asyncio.sleep(2)
            one.worker.kill("SIGINT")
            await running
            assert asyncio.get_running_loop().time() - began <= (2 if stop_first else 0) + 1.1
            assert one.worker.report() == 1

    with caplog.at_level(logging.WARNING, "smartpipe.worker"):
        run_virtually(main())
    assert caplog.messages.count("stopping hard: SIGINT") == 2


def test_an_overdue_handler_at_the_end_makes_the_exit_code_1() -> None:
    async def main() -> None:
        one = Running()
        running = await one.start()
        one.worker.capacity.add("call", "slow")
        assert await one.end(running) == 1

    run_virtually(main())


def test_the_topology_is_checked_again_after_temporary_errors_and_nothing_is_received_before() -> None:
    answers: list[TransportError | None] = [UNREACHABLE, UNREACHABLE, None]

    async def verify() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    async def main() -> None:
        one = Running(verify=verify)
        running = asyncio.create_task(one.worker.run_service())
        await asyncio.sleep(0)
        while answers:
            assert (one.worker.ready, one.transport.calls) == (False, [])
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        assert one.worker.ready
        assert await one.end(running) == 0

    run_virtually(main())


@pytest.mark.parametrize(
    ("code", "verify", "expected"),
    [
        ("NoCredentials", "missing", ConfigError),
        ("NoCredentials", "strict", ConfigError),
        ("AccessDenied", "strict", TopologyError),
        ("AccessDenied", "missing", None),
    ],
)
def test_credentials_that_may_not_read_the_topology_end_a_strict_worker_only(
    code: str, verify: str, expected: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def deny() -> None:
        raise TransportError(code, "needs a\nneeds b", retryable=False)

    async def main() -> None:
        one = Running(verify=deny)
        one.worker._settings = one.worker._settings.model_copy(update={"verify": verify})
        if expected is None:
            assert await one.end(await one.start()) == 0
            return
        with pytest.raises(expected) as raised:
            await one.worker.run_service()
        problems = getattr(raised.value, "problems", [])
        assert list(problems) == (["needs a", "needs b"] if expected is TopologyError else ["needs a\nneeds b"])

    with caplog.at_level(logging.INFO, "smartpipe.worker"):
        run_virtually(main())
    unverified = [line for line in caplog.messages if line.startswith("The topology is not verified")]
    assert len(unverified) == (expected is None)


def test_one_queue_or_all_can_be_paused_and_an_unknown_one_is_an_error_that_names_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        one = Running()
        with pytest.raises(ConfigError, match="does not receive from queue None; its queues are: none, because it"):
            one.worker.pause()
        running = await one.start()
        with pytest.raises(ConfigError, match="does not receive from queue 'other'; its queues are: mailer, audit"):
            one.worker.resume("other")
        slots = [consumer.slots for consumer in one.worker.consumers]
        one.worker.pause("audit")
        assert [slot.paused for slot in slots] == [False, True]
        one.worker.pause()
        assert [slot.paused for slot in slots] == [True, True]
        one.worker.resume("mailer")
        assert [slot.paused for slot in slots] == [False, True]
        one.worker.resume()
        assert [slot.paused for slot in slots] == [False, False]
        assert await one.end(running) == 0

    with caplog.at_level(logging.INFO, "smartpipe.worker"):
        run_virtually(main())
    assert [line for line in caplog.messages if "queue" in line.lower() and "draining" not in line][1:5] == [
        "Queue audit is paused",
        "Queue mailer is paused",
        "Queue audit is paused",
        "Receiving from queue mailer again",
    ]


def test_consumers_get_the_settings_of_the_worker() -> None:
    async def main() -> None:
        one = Running(concurrency=3, wait_seconds=7, prefetch=False)
        running = await one.start()
        consumer = one.worker.consumers[0]
        assert (consumer.slots.size, consumer._ahead._prefetch) == (3, None)
        assert consumer.seconds_until_closed() == 6.5
        assert one.worker._service.slots(3) == 6
        assert one.worker.capacity._limit == 6
        assert await one.end(running) == 0

    run_virtually(main())


def test_the_publisher_may_close_for_the_rest_of_the_drain_and_at_least_a_second() -> None:
    async def main() -> None:
        one = Running()
        running = await one.start()
        one.worker.stop()
        assert one.worker._seconds_to_close() == DRAIN_SECONDS
        await asyncio.sleep(15)
        assert one.worker._seconds_to_close() == 5
        await asyncio.sleep(4.5)
        assert one.worker._seconds_to_close() == 1
        await asyncio.sleep(100)
        assert one.worker._seconds_to_close() == 1
        await running

    run_virtually(main())
