"""A supervisor with fake children in virtual time: their starts, their drain, and its exit code."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import tempfile
from typing import TYPE_CHECKING, Any, Self

import pytest

from smartpipe import ConfigError
from smartpipe.worker.supervisor import supervisor as supervisor_module
from smartpipe.worker.supervisor.child import Command
from smartpipe.worker.supervisor.restarts import ProcessExit
from smartpipe.worker.supervisor.supervisor import Address, Supervisor
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DRAIN_SECONDS = 10.0


def now() -> float:
    return asyncio.get_running_loop().time()


class Plan:
    """What a child does: when it becomes ready, when it gives up and with which code, and how it drains."""

    def __init__(
        self,
        *,
        ready_after: float | None = 0.0,
        gives_up_after: float | None = None,
        code: int | None = None,
        drains_in: float = 1.0,
        exit_code: int = 0,
    ) -> None:
        self.ready_after, self.gives_up_after, self.code = ready_after, gives_up_after, code
        self.drains_in, self.exit_code = drains_in, exit_code


class FakeChild:
    plans: dict[str, Plan]
    all: list[FakeChild]

    def __init__(self, command: Command, socket: Path, *, reloading: bool) -> None:
        self.name, self.external, self.socket, self.reloading = command.name, command.external, socket, reloading
        self.plan = self.plans.get(self.name, Plan())
        self.ready = asyncio.Event()
        self.exit_after_stop: ProcessExit | None = None
        self.pid: int | None = None
        self.began_at = -1.0
        self.signals: list[tuple[float, signal.Signals]] = []
        self._stopping, self._killed = asyncio.Event(), asyncio.Event()
        self.any_was_ready = False
        self.all.append(self)

    async def run(self, any_was_ready: Callable[[], bool]) -> int | None:
        self.began_at, self.pid = now(), 100
        readying = asyncio.create_task(self._become_ready())
        try:
            async with asyncio.timeout(self.plan.gives_up_after):
                await self._stopping.wait()
        except TimeoutError:
            self.any_was_ready = any_was_ready()
            self.pid = None
            return self.plan.code
        finally:
            readying.cancel()
        code = self.plan.exit_code
        try:
            async with asyncio.timeout(self.plan.drains_in):
                await self._killed.wait()
            code = -signal.SIGKILL
        except TimeoutError:
            pass
        self.pid = None
        self.exit_after_stop = ProcessExit(code, now() - self.began_at, self.ready.is_set())
        return None

    async def _become_ready(self) -> None:
        if self.plan.ready_after is not None:
            await asyncio.sleep(self.plan.ready_after)
            self.ready.set()

    def stop(self) -> None:
        self._stopping.set()

    def signal(self, signum: signal.Signals) -> None:
        self.signals.append((now(), signum))
        if signum is signal.SIGKILL:
            self._killed.set()


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[FakeChild]:
    """The children in the order of their creation."""
    FakeChild.plans, FakeChild.all = {}, []
    monkeypatch.setattr(supervisor_module, "Child", FakeChild)
    return FakeChild.all


def make_supervisor(*names: str, external: tuple[str, ...] = (), **options: Any) -> Supervisor:
    commands = [Command(name, ("worker", name), external=name in external) for name in names]
    return Supervisor(commands, drain_seconds=DRAIN_SECONDS, liveness_seconds=30, **options)


async def run_for(supervisor: Supervisor, seconds: float) -> int:
    asyncio.get_running_loop().call_later(seconds, supervisor.stop, "SIGTERM")
    return await supervisor.run()


def test_children_run_until_the_stop_and_drain_together(
    children: list[FakeChild], caplog: pytest.LogCaptureFixture
) -> None:
    FakeChild.plans = {"b": Plan(ready_after=2)}

    async def main() -> None:
        supervisor = make_supervisor("a", "b")
        assert await run_for(supervisor, 5) == 0
        assert now() == 6
        supervisor.stop()

    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        run_virtually(main())
    assert [(child.name, child.began_at, child.reloading) for child in children] == [("a", 0, False), ("b", 0, False)]
    assert [child.socket.name for child in children] == ["1.sock", "2.sock"]
    assert not children[0].socket.parent.exists()  # it is removed at the end
    assert caplog.messages == [
        "ready: all 2 processes",
        "draining all processes: SIGTERM; a second signal stops them hard, a third kills them",
        "stopped: all processes have ended",
    ]


def test_a_single_process_is_not_said_to_be_all_of_them(
    children: list[FakeChild], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        run_virtually(run_for(make_supervisor("a", "vite", external=("vite",)), 5))

    assert len(children) == 2
    assert not any("ready" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("first", "others"),
    [
        (Plan(ready_after=1), 1.0),  # as soon as the first is ready
        (Plan(ready_after=None), 3.0),  # after three seconds at the latest
    ],
)
def test_of_equal_processes_the_first_starts_alone(first: Plan, others: float, children: list[FakeChild]) -> None:
    FakeChild.plans = {"a": first}

    assert run_virtually(run_for(make_supervisor("a", "b", "c", same_service=True), 9)) == 0
    assert [child.began_at for child in children] == [0, others, others]


def test_an_error_of_the_first_of_equal_processes_ends_all_before_the_others_start(children: list[FakeChild]) -> None:
    FakeChild.plans = {"a": Plan(ready_after=None, gives_up_after=0.5, code=2)}

    async def main() -> None:
        assert await make_supervisor("a", "b", same_service=True).run() == 2
        assert now() == 0.5

    run_virtually(main())
    assert [child.began_at for child in children] == [0, -1]
    assert not children[0].any_was_ready


def test_a_child_that_gives_up_drains_the_others_and_its_code_is_returned(children: list[FakeChild]) -> None:
    FakeChild.plans = {"a": Plan(gives_up_after=4, code=2), "b": Plan(drains_in=3, exit_code=1)}

    async def main() -> None:
        assert await make_supervisor("a", "b").run() == 2
        assert now() == 7

    run_virtually(main())
    assert children[0].any_was_ready


def test_a_child_that_ends_by_itself_without_a_code_does_not_end_the_others(children: list[FakeChild]) -> None:
    FakeChild.plans = {"a": Plan(gives_up_after=2, code=None)}

    async def main() -> None:
        assert await run_for(make_supervisor("a", "b", external=("a",)), 20) == 0
        assert now() == 21

    run_virtually(main())


@pytest.mark.parametrize(
    ("exit_code", "external", "expected"), [(0, False, 0), (1, False, 1), (3, False, 1), (3, True, 0)]
)
def test_the_exit_code_is_1_if_a_worker_did_not_drain_cleanly(
    exit_code: int, external: bool, expected: int, children: list[FakeChild]
) -> None:
    FakeChild.plans = {"b": Plan(exit_code=exit_code)}

    assert run_virtually(run_for(make_supervisor("a", "b", external=("b",) if external else ()), 5)) == expected


def test_a_child_that_does_not_drain_in_time_is_killed(
    children: list[FakeChild], caplog: pytest.LogCaptureFixture
) -> None:
    FakeChild.plans = {"b": Plan(drains_in=DRAIN_SECONDS + 5.1), "c": Plan(drains_in=DRAIN_SECONDS + 4.9)}

    async def main() -> None:
        assert await run_for(make_supervisor("a", "b", "c"), 5) == 1
        assert now() == 5 + DRAIN_SECONDS + 5

    run_virtually(main())
    assert children[1].signals == [(20, signal.SIGKILL)]
    assert caplog.messages == ["killing b: not drained within 15 s"]


@pytest.mark.parametrize(
    ("method", "signum", "line"),
    [
        ("stop_hard", signal.SIGINT, "stopping all processes hard: SIGINT"),
        ("kill", signal.SIGKILL, "killing all processes: SIGINT"),
    ],
)
def test_a_second_signal_goes_to_all_children(
    method: str, signum: signal.Signals, line: str, children: list[FakeChild], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        supervisor = make_supervisor("a", "b")
        asyncio.get_running_loop().call_later(3, getattr(supervisor, method), "SIGINT")
        await supervisor.run()  # it stops, even without a signal before

    run_virtually(main())
    assert [child.signals for child in children] == [[(3, signum)]] * 2
    assert caplog.messages == [line]


class FakeWatcher:
    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.open = 0

    async def __aenter__(self) -> Self:
        self.open += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open -= 1

    def take_paths(self) -> list[str]:
        self.changed.clear()
        return ["a.py", "b.py"]


def test_changed_sources_drain_all_children_and_start_them_again(
    children: list[FakeChild], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        watcher = FakeWatcher()
        supervisor = make_supervisor("a", "b", watcher=watcher)
        for at in (5, 10):
            asyncio.get_running_loop().call_later(at, watcher.changed.set)
        assert await run_for(supervisor, 20) == 0
        assert watcher.open == 0

    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        run_virtually(main())
    assert [child.began_at for child in children] == [0, 0, 6, 6, 11, 11]
    assert all(child.reloading for child in children)
    assert caplog.messages.count("changed: a.py, b.py; restarting") == 2
    assert caplog.messages.count("ready: all 2 processes") == 3


def test_after_a_preparation_that_fails_nothing_starts_until_the_sources_change(
    children: list[FakeChild], caplog: pytest.LogCaptureFixture
) -> None:
    codes = [3, 0]
    prepared: list[float] = []

    async def prepare() -> int:
        prepared.append(now())
        await asyncio.sleep(1)
        return codes.pop(0)

    async def main() -> None:
        watcher = FakeWatcher()
        supervisor = make_supervisor("a", watcher=watcher, prepare=prepare)
        asyncio.get_running_loop().call_later(5, watcher.changed.set)
        assert await run_for(supervisor, 20) == 0

    run_virtually(main())
    assert prepared == [0, 5]
    assert [child.began_at for child in children] == [6]
    assert caplog.messages[0] == "not starting any process; waiting for a change of the sources"


def test_a_stop_cancels_the_preparation(children: list[FakeChild]) -> None:
    cancelled: list[float] = []

    async def prepare() -> int:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            cancelled.append(now())
            raise
        return 0

    assert run_virtually(run_for(make_supervisor("a", prepare=prepare), 3)) == 0
    assert (cancelled, children) == ([3], [])


@pytest.mark.parametrize(("directory", "expected"), [("/" + "x" * 69, None), ("/" + "x" * 70, "/tmp")])
def test_sockets_are_in_tmp_if_the_usual_directory_has_a_path_too_long_for_them(
    directory: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: directory)

    assert supervisor_module._socket_directory() == expected


def test_a_file_system_without_a_writable_temporary_directory_is_an_error_with_a_remedy(
    children: list[FakeChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)

    with pytest.raises(ConfigError) as raised:
        run_virtually(run_for(make_supervisor("a"), 3))

    assert str(raised.value) == (
        "the supervisor needs a temporary directory for its sockets: No usable temporary directory found in "
        "['/tmp']; mount a writable one at /tmp, or set TMPDIR"
    )
    assert children == []


def test_the_health_of_all_children_is_served_until_the_end(
    children: list[FakeChild], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> int:
        supervisor = make_supervisor("a", address=Address("127.0.0.1", 0))
        running = asyncio.create_task(run_for(supervisor, 5))
        await asyncio.sleep(1)
        assert supervisor.health is not None
        assert supervisor.health._server is not None
        assert supervisor.health._server.is_serving()
        assert await running == 0
        assert not supervisor.health._server.is_serving()
        assert make_supervisor("a").health is None
        return supervisor.health.port

    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        port = run_virtually(main())
    assert port > 0
    assert caplog.messages[0] == f"serving /livez, /readyz and /metrics on 127.0.0.1:{port}"
    assert len(children) == 1
