"""What a producer or a worker of a benchmark does in its process, as the run commands it."""

from __future__ import annotations

import asyncio
import io
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from smartpipe import ConfigError
from smartpipe.bench import child as bench_child
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
from smartpipe.errors import SmartpipeError
from tests.support.bench_messages import HANDLED, MEASURING, PRODUCED, READY, WARM
from tests.support.virtual_time import run_virtually


class Child:
    """Runs the code of a child process with scripted commands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Any] = []
        self.exited: list[int] = []
        self.happened: list[Any] = []
        self.lines = asyncio.StreamReader()
        child = self

        def leave(code: int) -> None:
            child.exited.append(code)
            raise asyncio.CancelledError

        class Producer:
            done = 3

            def __init__(self, load: Load, number: int, transport: str, name: str) -> None:
                child.happened.append((number, transport, name))

            async def warm_up(self) -> None:
                child.happened.append("warm up")

            async def publish(self, begin_at: float) -> ProducerReport:
                child.happened.append(begin_at)
                await asyncio.sleep(1.0)
                return PRODUCED

            async def aclose(self) -> None:
                child.happened.append("closed")

        class Worker:
            handled = SimpleNamespace(distinct=0, warm=2, seen=b"\x01")

            def __init__(self, load: Load, queue: int, transport: str, name: str) -> None:
                child.happened.append((queue, transport, name))

            async def wait_until_polling(self) -> None:
                child.happened.append("polling")

            def measure(self) -> None:
                child.happened.append("measure")

            def stop(self) -> None:
                child.happened.append("stop")

            async def drain(self) -> WorkerReport:
                await asyncio.sleep(1.0)
                return HANDLED

        async def connect(_: Any, make: Any, __: Any) -> None: ...

        monkeypatch.setattr(bench_child, "Producer", Producer)
        monkeypatch.setattr(bench_child, "BenchWorker", Worker)
        monkeypatch.setattr(bench_child, "open_transport", lambda: "a transport")
        monkeypatch.setattr(bench_child, "send", self.sent.append)
        monkeypatch.setattr(bench_child, "os", SimpleNamespace(_exit=leave))
        monkeypatch.setattr(asyncio.SelectorEventLoop, "connect_read_pipe", connect, raising=False)
        monkeypatch.setattr(asyncio, "StreamReader", lambda: self.lines)

    def feed(self, *commands: Command | Assignment, end: bool = False) -> None:
        for command in commands:
            self.lines.feed_data(command.model_dump_json().encode() + b"\n")
        if end:
            self.lines.feed_eof()


def test_a_producer_warms_up_as_often_as_it_is_asked_and_sends_its_progress_and_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> Child:
        child = Child(monkeypatch)
        warm_up = Command(action="warm_up")
        child.feed(Assignment(load=Load(), producer=4), warm_up, warm_up, Command(action="measure", begin_at=2.5))
        await bench_child.run()
        return child

    child = run_virtually(main())

    assert child.happened == [(4, "a transport", "direct"), "warm up", "warm up", 2.5, "closed"]
    assert child.sent == [READY, WARM, WARM, Progress(done=3), PRODUCED]
    assert child.exited == []


def test_a_worker_measures_reports_and_drains_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> Child:
        child = Child(monkeypatch)
        commands = (Command(action=action) for action in ("measure", "report_seen", "stop"))
        child.feed(Assignment(load=Load(), queue=2), *commands)
        await bench_child.run()
        return child

    child = run_virtually(main())

    assert child.happened == [(2, "a transport", "direct"), "polling", "measure", "stop"]
    assert child.sent == [READY, MEASURING, SeenEvents(seen=encode_seen(b"\x01")), Progress(done=0, warm=2), HANDLED]
    assert child.exited == []


@pytest.mark.parametrize(
    "commands",
    [
        (Assignment(load=Load(), queue=2),),
        (Assignment(load=Load(), queue=2), Command(action="stop")),
        (Assignment(load=Load(), producer=0),),
        (Assignment(load=Load(), producer=0), Command(action="measure")),
    ],
)
def test_a_process_ends_with_the_run_at_any_step(commands: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> Child:
        child = Child(monkeypatch)
        child.feed(*commands, end=True)
        with suppress(asyncio.CancelledError):
            await bench_child.run()
        return child

    assert run_virtually(main()).exited == [1]


def test_progress_is_sent_five_times_a_second_if_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[float, Progress]] = []

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        monkeypatch.setattr(bench_child, "send", lambda progress: sent.append((round(clock(), 3), progress)))
        sending = asyncio.create_task(bench_child.send_progress(lambda: Progress(done=int(clock() / 0.45))))
        await asyncio.sleep(1.3)
        sending.cancel()

    run_virtually(main())

    assert sent == [(0.6, Progress(done=1)), (1.0, Progress(done=2))]


def test_a_message_is_written_whole_even_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        assert fd == 1
        written.append(bytes(data[:5]))
        return len(written[-1])

    monkeypatch.setattr(bench_child, "os", SimpleNamespace(write=write))

    bench_child.send(READY)

    assert b"".join(written) == format_message(READY)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError(["first", "second"]), "first\n"),
        (ExceptionGroup("two", [SmartpipeError("inner\nmore"), ValueError("x")]), "inner\n"),
    ],
)
def test_an_error_of_a_process_is_one_line_and_exit_code_1(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exited: list[int] = []

    async def fail() -> None:
        raise error

    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(bench_child, "run", fail)
    monkeypatch.setattr(bench_child, "choose_loop_factory", lambda: None)
    monkeypatch.setattr(bench_child, "os", SimpleNamespace(_exit=exited.append))

    bench_child.main()

    assert (stderr.getvalue(), exited) == (line, [1])
    assert sys.stdout is stderr
