"""The processes of a benchmark: how a run starts them, leads them through its steps, and ends them."""

from __future__ import annotations

import asyncio
import io
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

from smartpipe.bench import children, run
from smartpipe.bench.children import ChildProcess, ChildProcesses
from smartpipe.bench.latencies import encode_seen
from smartpipe.bench.load import Load
from smartpipe.bench.messages import (
    Assignment,
    Command,
    ProducerReport,
    Progress,
    SeenEvents,
    WorkerReport,
    format_message,
)
from smartpipe.bench.run import RunProgress, _Run, assign_processes
from smartpipe.errors import SmartpipeError
from tests.support.bench_messages import HANDLED, MEASURING, PRODUCED, READY, WARM
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Sequence


class Input:
    """The standard input of a process."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.closing = False

    def write(self, line: bytes) -> None:
        self.lines.append(line)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


class Started:
    """A process that ends when its input is closed, unless it hangs."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.stdin = Input()
        self.stdout = asyncio.StreamReader()
        self.pid = 7
        self.returncode: int | None = None
        self.hangs = hangs
        self.killed = False

    def kill(self) -> None:
        self.killed, self.returncode = True, -9

    def end(self, code: int) -> None:
        self.returncode = code
        self.stdout.feed_eof()

    async def wait(self) -> int:
        while self.returncode is None:
            if self.stdin.closing and not self.hangs:
                self.returncode = 0
            await asyncio.sleep(0.1)
        return self.returncode


class Spawning:
    """Starts processes that run nothing."""

    def __init__(self, *processes: Started) -> None:
        self.left = list(processes)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    async def __call__(self, *words: Any, **options: Any) -> Started:
        self.calls.append((words, options))
        return self.left.pop(0)


ROLES = [("producer 1", Assignment(load=Load(), producer=0)), ("worker 1", Assignment(load=Load(), queue=1))]


def spawn(monkeypatch: pytest.MonkeyPatch, *processes: Started) -> Spawning:
    spawning = Spawning(*processes)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawning)
    return spawning


def test_each_process_gets_its_assignment_and_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first, second = Started(), Started()
        spawning = spawn(monkeypatch, first, second)
        async with ChildProcesses(ROLES, {"A": "1"}) as processes:
            words, options = spawning.calls[0]
            assert words == (sys.executable, "-m", "smartpipe.bench.child")
            assert (options["env"], options["start_new_session"], options["limit"]) == ({"A": "1"}, True, 1 << 28)
            assert [one.name for one in processes.children] == ["producer 1", "worker 1"]
            assert first.stdin.lines == [ROLES[0][1].model_dump_json().encode() + b"\n"]
            stop = Command(action="stop")
            processes.send(stop, processes.children[1:])
            second.stdin.closing = True
            processes.send(stop, processes.children)
            line = stop.model_dump_json().encode() + b"\n"
            assert (first.stdin.lines[1:], second.stdin.lines[1:]) == ([line], [line])
            files = [one.stderr for one in processes.children]
        assert all(file.closed for file in files)
        assert (first.stdin.closing, first.killed, second.killed) == (True, False, False)

    run_virtually(main())


def test_messages_arrive_with_their_process_and_a_silent_one_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first, second = Started(), Started()
        spawn(monkeypatch, first, second)
        async with ChildProcesses(ROLES, {}) as processes:
            second.stdout.feed_data(format_message(READY) + format_message(Progress(done=3)))
            assert [await processes.receive(1.0) for _ in range(2)] == [
                (processes.children[1], READY),
                (processes.children[1], Progress(done=3)),
            ]
            began = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                await processes.receive(30.0)
            assert asyncio.get_running_loop().time() - began == 30

    run_virtually(main())


@pytest.mark.parametrize(
    ("code", "output", "error"),
    [
        (3, b"first\nlast\n", "worker 1 (process 7) ended with exit code 3: last"),
        (0, b"", "worker 1 (process 7) ended with exit code 0: it printed no error"),
        (-9, b"\xff\n", "worker 1 (process 7) was ended by signal 9: \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_process_that_ends_before_its_report_is_an_error(
    code: int, output: bytes, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        first, second = Started(), Started()
        spawn(monkeypatch, first, second)
        async with ChildProcesses(ROLES, {}) as processes:
            processes.children[1].stderr.write(output)
            second.stdout.feed_data(format_message(READY))
            second.end(code)
            await processes.receive(1.0)
            with pytest.raises(SmartpipeError) as raised:
                await processes.receive(1.0)
            assert str(raised.value) == error

    run_virtually(main())


@pytest.mark.parametrize("report", [PRODUCED, HANDLED])
def test_a_process_may_end_after_its_report(
    report: ProducerReport | WorkerReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        first, second = Started(), Started()
        spawn(monkeypatch, first, second)
        async with ChildProcesses(ROLES, {}) as processes:
            first.stdout.feed_data(format_message(report))
            first.end(0)
            assert (await processes.receive(1.0))[1] == report
            with pytest.raises(TimeoutError):
                await processes.receive(1.0)

    run_virtually(main())


def test_a_process_that_hangs_is_killed_after_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first, second = Started(hangs=True), Started()
        spawn(monkeypatch, first, second)
        async with ChildProcesses(ROLES, {}):
            began = asyncio.get_running_loop().time()
        assert 5 <= asyncio.get_running_loop().time() - began < 6
        assert (first.killed, second.killed) == (True, False)

    run_virtually(main())


def test_without_processes_there_is_nothing_to_stop() -> None:
    async def main() -> None:
        async with ChildProcesses([], {}) as processes:
            assert processes.children == []

    run_virtually(main())


def test_processes_are_assigned_by_queue_and_workers_start_first() -> None:
    load = Load(queues=2, processes=2, producers=2)

    assert [(name, role.queue, role.producer) for name, role in assign_processes(load)] == [
        ("worker 1 of queue 1", 1, None),
        ("worker 2 of queue 1", 1, None),
        ("worker 1 of queue 2", 2, None),
        ("worker 2 of queue 2", 2, None),
        ("producer 1", 0, 0),
        ("producer 2", 0, 1),
    ]


class Scripted:
    """Stands for ChildProcesses: it returns the messages of a script, and records the steps and the timeouts."""

    def __init__(self, load: Load, *script: tuple[int, Any] | None) -> None:
        self.children: list[Any] = [
            SimpleNamespace(assignment=role, process=SimpleNamespace(pid=number))
            for number, (_, role) in enumerate(assign_processes(load))
        ]
        self.script = list(script)
        self.commands: list[tuple[str, list[int]]] = []
        self.begin_at: list[float] = []
        self.timeouts: list[float] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.timeouts.append(-1)

    def send(self, command: Command, to: Sequence[Any]) -> None:
        self.commands.append((command.action, [one.process.pid for one in to]))
        self.begin_at.append(command.begin_at)

    async def receive(self, timeout_seconds: float) -> tuple[Any, Any]:
        self.timeouts.append(timeout_seconds)
        step = self.script.pop(0) if self.script else None
        if step is None:
            raise TimeoutError
        return self.children[step[0]], step[1]


ONE = Load(events=2, warmup=3, queues=1, patience_seconds=40)
STARTED: list[tuple[int, Any]] = [(0, READY), (1, READY)]
WARMED: list[tuple[int, Any]] = [(1, WARM), (0, Progress(done=0, warm=3))]


async def test_a_run_waits_for_each_step_and_returns_the_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunProgress] = []
    processes = Scripted(
        ONE,
        *STARTED,
        *WARMED,
        (0, MEASURING),
        (1, Progress(done=1)),
        (1, PRODUCED),
        (0, Progress(done=2, warm=3)),
        (0, HANDLED),
    )
    monkeypatch.setattr(run, "ChildProcesses", lambda _, environment: processes if environment == {"A": "1"} else None)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: 100.0))

    found = await run.run(ONE, {"A": "1"}, seen.append)

    assert (found.published, found.handled) == ([PRODUCED], [HANDLED])
    assert processes.commands == [("warm_up", [1]), ("measure", [0]), ("measure", [1]), ("stop", [0])]
    assert processes.begin_at == [0.0, 0.0, 100.1, 0.0]
    assert processes.timeouts == [60.0] * 2 + [10.0] * 2 + [40] + [40] * 3 + [50.0] + [-1]
    assert list(dict.fromkeys(one.phase for one in seen)) == ["starting", "warming up", "measuring", "draining"]
    assert RunProgress("measuring", 1, 0) in seen
    assert seen[-1] == RunProgress("draining", 2, 2)


async def start(load: Load, *script: tuple[int, Any] | None) -> tuple[Any, Scripted]:
    processes = Scripted(load, *script)
    found: Any = None
    try:
        found = await _Run(load, processes, lambda _: None).run()  # type: ignore[arg-type]
    except SmartpipeError as error:
        found = str(error)
    return found, processes


async def test_processes_that_do_not_start_are_an_error_after_a_minute() -> None:
    found, processes = await start(ONE, (0, READY))

    assert found == "while starting, nothing happened for 60 s"
    assert processes.timeouts == [60.0, 60.0]


@pytest.mark.parametrize(
    ("patience", "timeouts"),
    [(30, [10.0, 10.0, 10.0]), (25, [10.0, 10.0, 5.0]), (10, [10.0]), (4, [4.0]), (11, [10.0, 1.0])],
)
async def test_a_warm_up_is_repeated_every_ten_seconds_until_the_patience_ends(
    patience: float, timeouts: list[float]
) -> None:
    found, processes = await start(replace(ONE, patience_seconds=patience), *STARTED)

    assert found == f"while warming up, nothing happened for {timeouts[-1]:g} s"
    assert processes.timeouts[2:] == timeouts
    assert processes.commands == [("warm_up", [1])] * len(timeouts)


@pytest.mark.parametrize("warm", [(1, WARM), (0, Progress(done=0, warm=3))])
async def test_a_warm_up_is_over_when_it_is_published_and_has_arrived(warm: tuple[int, Any]) -> None:
    found, processes = await start(replace(ONE, patience_seconds=5), *STARTED, warm, (0, Progress(done=0, warm=2)))

    assert found == "while warming up, nothing happened for 5 s"
    assert processes.commands == [("warm_up", [1])]


async def test_deliveries_that_do_not_arrive_end_the_run_without_an_error() -> None:
    found, processes = await start(
        ONE, *STARTED, *WARMED, (0, MEASURING), (1, PRODUCED), (0, Progress(done=1)), None, (0, HANDLED)
    )

    assert found.handled == [HANDLED]
    assert processes.commands[-1] == ("stop", [0])


async def test_events_that_could_not_be_published_are_not_waited_for() -> None:
    failed = replace(PRODUCED, published=1, failed=1)
    found, processes = await start(
        ONE, *STARTED, *WARMED, (0, MEASURING), (1, failed), (0, Progress(done=1)), (0, HANDLED)
    )

    assert found.published == [failed]
    assert processes.script == []


async def test_the_progress_of_the_warm_up_does_not_count() -> None:
    found, processes = await start(
        ONE, *STARTED, (0, Progress(done=9, warm=3)), (1, WARM), (0, MEASURING), (1, PRODUCED), None, (0, HANDLED)
    )

    assert found.handled == [HANDLED]
    assert processes.script == []


async def test_a_queue_of_several_workers_is_asked_again_only_after_progress() -> None:
    load = replace(ONE, processes=2, warmup=0)
    found, processes = await start(
        load,
        *((number, READY) for number in range(3)),
        (2, WARM),
        *((number, MEASURING) for number in range(2)),
        (2, PRODUCED),
        (0, Progress(done=2)),
        (0, SeenEvents(seen=encode_seen(b"\x01\x00"))),
        (1, SeenEvents(seen=encode_seen(b"\x00\x00"))),
        (0, Progress(done=2, warm=1)),
        (1, Progress(done=1)),
        (1, SeenEvents(seen=encode_seen(b"\x00\x01"))),
        (0, SeenEvents(seen=encode_seen(b"\x01\x00"))),
        (0, HANDLED),
        (1, HANDLED),
    )

    assert len(found.handled) == 2
    assert [action for action, _ in processes.commands] == [
        *("warm_up", "measure", "measure", "report_seen", "report_seen", "stop"),
    ]


def test_the_last_line_of_a_process_is_that_of_its_standard_error() -> None:
    process: Any = SimpleNamespace(stdin=None)
    child = ChildProcess("x", ROLES[0][1], process, io.BytesIO(b"one\ntwo\n\n"))

    child.send(Command(action="stop"))  # a process without an input gets no steps

    assert child.read_last_line() == "two"
    assert children.STOP_SECONDS == 5.0


async def test_a_process_that_ends_without_a_word_is_noticed() -> None:
    processes, output = ChildProcesses([], {}), asyncio.StreamReader()
    output.feed_eof()
    child: Any = SimpleNamespace(process=SimpleNamespace(stdout=output))

    await processes._read_messages(child)

    assert processes._messages.get_nowait() == (child, None)
