"""A supervisor and its children in virtual time: restarts, their waits and their health, without any process."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from smartpipe.telemetry.prometheus import OPENMETRICS
from smartpipe.worker.supervisor import child as child_module
from smartpipe.worker.supervisor import children_health
from smartpipe.worker.supervisor.child import Child, Command, run_command
from smartpipe.worker.supervisor.children_health import ChildrenHealth
from smartpipe.worker.supervisor.query import NoResponseError, Response
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.worker.supervisor.restarts import ProcessExit
    from smartpipe.worker.supervisor.supervisor import Supervisor


class FakeProcess:
    """A process that ends with its code after a number of seconds, or at a signal."""

    def __init__(self, number: int, code: int, seconds: float) -> None:
        self.pid = 1_000 + number
        self.returncode: int | None = None
        self.signals: list[signal.Signals] = []
        self._code, self._seconds = code, seconds
        self._signalled = asyncio.Event()

    def send_signal(self, signum: signal.Signals) -> None:
        self.signals.append(signum)
        self._signalled.set()

    async def wait(self) -> int:
        try:
            async with asyncio.timeout(self._seconds):
                await self._signalled.wait()
            self.returncode = -self.signals[0]
        except TimeoutError:
            self.returncode = self._code
        return self.returncode


class Processes:
    """Starts fake processes with the given ends, and records when. The last end is used again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: tuple[int, float]) -> None:
        self.ends = list(ends)
        self.started: list[float] = []
        self.running: list[FakeProcess] = []
        self.arguments: list[tuple[str, ...]] = []
        self.ready_after: float | None = None
        monkeypatch.setattr(child_module, "_spawn", self._spawn)
        monkeypatch.setattr(child_module, "_wait_for_exit", lambda process, _: process.wait())
        monkeypatch.setattr(child_module, "query", self._query)

    async def _spawn(self, command: Command, *more: str) -> FakeProcess:
        self.started.append(asyncio.get_running_loop().time())
        self.arguments.append((*command.arguments, *more))
        code, seconds = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        process = FakeProcess(len(self.started), code, seconds)
        self.running.append(process)
        return process

    async def _query(self, socket: Path, path: str) -> Response:
        assert path == "/readyz"
        age = asyncio.get_running_loop().time() - self.started[-1]
        if self.ready_after is None or age < self.ready_after / 2:  # it does not listen yet
            raise NoResponseError(listening=False)
        return Response(200 if age >= self.ready_after else 503, "")


def make_child(*, external: bool = False, reloading: bool = False) -> Child:
    return Child(Command("mail", ("worker", "shop"), external=external), Path("/nowhere/1.sock"), reloading=reloading)


async def run_for(child: Child, seconds: float, *, any_was_ready: bool = True) -> int | None:
    running = asyncio.create_task(child.run(lambda: any_was_ready))
    await asyncio.wait([running], timeout=seconds)
    child.stop()
    return await running


def test_a_process_that_keeps_ending_is_restarted_after_waits_that_double(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processes = Processes(monkeypatch, (9, 2.0))

    async def main() -> None:
        child = make_child()
        assert await run_for(child, 100) is None
        assert child.restarts == len(processes.started) - 1
        assert child.pid is None

    run_virtually(main())
    gaps = [later - earlier - 2 for earlier, later in zip(processes.started, processes.started[1:], strict=False)]
    assert gaps == pytest.approx([1, 2, 4, 8, 16, 30])
    assert processes.arguments[0] == ("worker", "shop", "--supervised", "/nowhere/1.sock")
    assert caplog.messages[0] == "process mail ended unexpectedly: exit code 9; will restart it in 1 s"


def test_a_process_that_cannot_be_started_again_is_tried_again_and_is_no_restart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processes = Processes(monkeypatch, (9, 2.0), (9, 1_000.0))
    spawn, failures = child_module._spawn, [OSError(errno.EMFILE, "Too many open files")] * 2

    async def fail_twice(command: Command, *more: str) -> Any:
        if processes.started and failures:
            raise failures.pop()
        return await spawn(command, *more)

    monkeypatch.setattr(child_module, "_spawn", fail_twice)

    async def main() -> None:
        child = make_child()
        assert await run_for(child, 100) is None
        assert child.restarts == 1

    run_virtually(main())
    assert processes.started == pytest.approx([0, 2 + 1 + 2 + 4])
    assert caplog.messages[1:] == [
        f"process mail cannot be started, retrying in {seconds} s: [Errno 24] Too many open files" for seconds in (2, 4)
    ]


def test_a_first_process_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(child_module, "_spawn", fail)

    with pytest.raises(PermissionError):
        run_virtually(make_child().run(lambda: False))


def test_after_a_minute_the_waits_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, (9, 1.0), (9, 1.0), (9, 60.0), (9, 59.9), (9, 5.0))

    run_virtually(run_for(make_child(), 142))

    assert processes.started == pytest.approx([0, 2, 5, 66, 127.9, 136.9])


@pytest.mark.parametrize(
    ("code", "any_was_ready", "reloading", "result", "restarts"),
    [
        (1, False, False, 1, 0),
        (2, False, False, 2, 0),
        (3, False, False, None, 1),
        (2, True, False, None, 1),
        (2, False, True, None, 0),
        (2, True, True, None, 0),
        (3, False, True, None, 1),
        (-9, False, False, None, 1),
    ],
)
def test_a_configuration_error_before_any_process_was_ready_is_not_retried(
    code: int,
    any_was_ready: bool,
    reloading: bool,
    result: int | None,
    restarts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Processes(monkeypatch, (code, 0.5), (0, 1_000))

    async def main() -> None:
        child = make_child(reloading=reloading)
        assert await run_for(child, 10, any_was_ready=any_was_ready) == result
        assert child.restarts == restarts

    run_virtually(main())


@pytest.mark.parametrize(("external", "restarts"), [(True, 0), (False, 1)])
def test_only_another_program_may_end_by_itself(external: bool, restarts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Processes(monkeypatch, (0, 0.5), (0, 1_000))

    async def main() -> None:
        child = make_child(external=external)
        assert await run_for(child, 10) is None
        assert child.restarts == restarts
        assert (child.exit_after_stop is None) == external

    run_virtually(main())


def test_a_process_is_ready_when_it_says_so_and_after_a_restart_not_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, (9, 10.0))
    processes.ready_after = 3.0

    async def main() -> None:
        child = make_child()
        running = asyncio.create_task(child.run(lambda: True))
        for _ in range(2):
            await asyncio.sleep(2.9)
            assert not child.ready.is_set()
            await asyncio.sleep(0.5)
            assert child.ready.is_set()
            assert child.pid == processes.running[-1].pid
            assert 3.3 < child.running_seconds < 3.5
            await asyncio.sleep(10 - 3.4 + 0.5 * len(processes.started))  # until it ended, and half of the wait
            assert child.pid is None
            await asyncio.sleep(0.5 * len(processes.started))
        child.stop()
        await running

    run_virtually(main())


def test_a_stop_ends_the_process_and_its_exit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, (9, 1_000.0))
    processes.ready_after = 0

    async def main() -> None:
        child = make_child()
        assert await run_for(child, 7) is None
        assert processes.running[0].signals == [signal.SIGTERM]
        assert child.exit_after_stop == (-signal.SIGTERM, 7, True)
        child.signal(signal.SIGKILL)  # the process has ended
        assert len(processes.running) == 1

    run_virtually(main())


def test_a_stop_during_the_wait_for_a_restart_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, (9, 1.0))

    async def main() -> None:
        child = make_child()
        await run_for(child, 1.5)
        assert asyncio.get_running_loop().time() == 1.5
        assert (len(processes.started), child.restarts, child.exit_after_stop) == (1, 0, None)

    run_virtually(main())


class FakeChild:
    """A child with an answer of its worker, or none."""

    def __init__(
        self, name: str, answer: Response | NoResponseError, *, pid: int | None = 7, running_seconds: float = 100.0
    ) -> None:
        self.name, self.answer, self.pid, self.running_seconds = name, answer, pid, running_seconds
        self.restarts = 2
        self.socket = Path(name)
        self.ends_meanwhile = False
        self.exit_after_stop: ProcessExit | None = None


def health_of(monkeypatch: pytest.MonkeyPatch, *children: FakeChild) -> ChildrenHealth:
    by_socket = {child.socket: child for child in children}

    async def query(socket: Path, path: str, *, accept: str) -> Response:
        assert (accept == "*/*") == (path != "/metrics")
        found = by_socket[socket]
        if found.ends_meanwhile:
            found.pid = None
        if isinstance(found.answer, NoResponseError):
            raise found.answer
        return found.answer

    monkeypatch.setattr(children_health, "query", query)

    supervised: Any = SimpleNamespace()
    supervised.children = list(children)
    return ChildrenHealth(cast("Supervisor", supervised), 30)


DEAF, BUSY = NoResponseError(listening=False), NoResponseError(listening=True)


@pytest.mark.parametrize(
    ("child", "state", "alive"),
    [
        (FakeChild("a", DEAF, pid=None), "restarting", True),
        (FakeChild("a", DEAF, running_seconds=29.9), "starting", True),
        (FakeChild("a", DEAF, running_seconds=30.0), "silent", False),
        (FakeChild("a", BUSY, running_seconds=1.0), "silent", False),
        (FakeChild("a", Response(200, '{"alive": true, "ready": true}')), "answering", True),
        (FakeChild("a", Response(503, '{"alive": false, "ready": false}')), "answering", False),
    ],
)
async def test_a_child_that_does_not_answer_is_alive_only_while_it_starts(
    child: FakeChild, state: str, alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = FakeChild("b", Response(200, '{"alive": true, "ready": true}'))
    health = health_of(monkeypatch, child, answering)

    live, ready = await health.livez(), await health.readyz()

    assert (live.ok, live.body["alive"]) == (alive, alive)
    expected = state == "answering" and alive
    assert (ready.ok, ready.body["ready"]) == (expected, expected)
    shown = live.body["processes"]["a"]
    assert (shown["pid"], shown["restarts"], shown["state"], shown["alive"]) == (child.pid, 2, state, alive)
    assert live.body["processes"]["b"]["state"] == "answering"


async def test_a_child_that_ends_while_it_is_asked_is_restarting(monkeypatch: pytest.MonkeyPatch) -> None:
    child = FakeChild("a", BUSY)
    child.ends_meanwhile = True

    result = await health_of(monkeypatch, child).livez()

    assert (result.ok, result.body["processes"]["a"]["state"]) == (True, "restarting")


async def test_without_children_nothing_is_alive_or_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    health = health_of(monkeypatch)

    assert await health.livez() == (False, {"alive": False, "processes": {}})
    assert await health.readyz() == (False, {"ready": False, "processes": {}})


async def test_the_metrics_of_all_children_are_merged_with_their_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# HELP up Up.\n# TYPE up gauge\nup 1\n"
    health = health_of(monkeypatch, FakeChild("a", Response(200, text)), FakeChild("b", BUSY))

    metrics = await health.metrics()

    assert (
        'smartpipe_process_restarts_total{process="a"} 2\nsmartpipe_process_restarts_total{process="b"} 2\n' in metrics
    )
    assert 'up{process="a"} 1\n' in metrics
    assert 'up{process="b"}' not in metrics
    assert 'smartpipe_log_lines_dropped_total{process="supervisor"} 0\n' in metrics
    assert "# TYPE smartpipe_process_restarts_total counter\n" in metrics


async def test_the_metrics_of_all_children_are_openmetrics_if_they_are_wanted_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "# HELP up Up.\n# TYPE up gauge\nup 1\n# EOF\n"
    health = health_of(monkeypatch, FakeChild("a", Response(200, text)), FakeChild("b", Response(200, text)))

    metrics = await health.metrics(OPENMETRICS)

    assert metrics.endswith("\n# EOF\n")
    assert metrics.count("# EOF") == 1
    assert 'up{process="b"} 1\n' in metrics
    assert "# TYPE smartpipe_process_restarts counter\n" in metrics


class FakeSubprocess:
    """A subprocess of asyncio that ends after a number of seconds, or a second after SIGTERM."""

    def __init__(self, stdout: asyncio.StreamReader | None, seconds: float = 2) -> None:
        self.stdout, self.terminated = stdout, False
        self.returncode: int | None = None
        self._seconds = seconds

    async def wait(self) -> int:
        await asyncio.sleep(1 if self.terminated else self._seconds)
        self.returncode = -15 if self.terminated else 3
        return self.returncode

    def terminate(self) -> None:
        self.terminated = True


class Spawned:
    """Starts fake subprocesses, and records their arguments and the lines that they print."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 2) -> None:
        self.calls: list[tuple[tuple[str, ...], dict[str, Any]]] = []
        self.written: list[str] = []
        self.seconds = seconds
        self.process: FakeSubprocess | None = None
        self.reader: asyncio.StreamReader | None = None
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self._start)
        monkeypatch.setattr(child_module, "standard_output", lambda: SimpleNamespace(write=self.written.append))

    async def _start(self, *words: str, **options: Any) -> FakeSubprocess:
        self.calls.append((words, options))
        self.reader = None if options["stdout"] is None else asyncio.StreamReader()
        self.process = FakeSubprocess(self.reader, self.seconds)
        return self.process


def test_a_command_of_ours_runs_with_this_python_and_another_program_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned = Spawned(monkeypatch)

    async def main() -> None:
        assert await run_command(Command("a", ("worker", "shop"))) == 3
        await run_command(Command("b", ("vite", "dev"), {"A": "b"}, external=True))

    run_virtually(main())
    (ours, options), (other, with_environment) = spawned.calls
    assert ours == (sys.executable, "-m", "smartpipe", "worker", "shop")
    assert other == ("vite", "dev")
    assert (options["env"], with_environment["env"]) == (None, {"A": "b"})
    assert (options["stdout"], options["stderr"], options["start_new_session"]) == (None, None, True)
    assert options["stdin"] == asyncio.subprocess.PIPE


@pytest.mark.parametrize(("closes", "seconds"), [(True, 2), (False, 3)])
def test_the_output_of_a_command_gets_its_prefix_and_is_awaited_for_a_second(
    closes: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned = Spawned(monkeypatch)

    async def main() -> None:
        running = asyncio.create_task(run_command(Command("a", ("worker",), prefix="a | ")))
        await asyncio.sleep(1)
        assert spawned.reader is not None
        spawned.reader.feed_data(b"one\ntwo")
        await asyncio.sleep(0.5)
        assert spawned.written == ["a | one\n"]
        if closes:  # otherwise a process that it has started keeps the pipe open
            spawned.reader.feed_eof()
        assert await running == 3
        assert asyncio.get_running_loop().time() == seconds

    run_virtually(main())
    assert spawned.written == ["a | one\n", "a | two\n"][: 1 + closes]
    [(_, options)] = spawned.calls
    assert (options["stdout"], options["stderr"]) == (asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT)


def test_a_command_that_is_cancelled_is_terminated_and_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned = Spawned(monkeypatch, seconds=1_000)

    async def main() -> None:
        running = asyncio.create_task(run_command(Command("a", ("worker",))))
        await asyncio.sleep(5)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert spawned.process is not None
        assert (spawned.process.terminated, spawned.process.returncode) == (True, -15)
        assert asyncio.get_running_loop().time() == 6

    run_virtually(main())
