"""The process of a producer or a worker: ``python -m smartpipe.bench.child``. Only a run starts it.

It reads commands from standard input, one line each, and writes messages to standard output. It ends when its standard
input ends, which the operating system closes even if the run is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from smartpipe.bench.latencies import encode_seen
from smartpipe.bench.messages import Assignment, ChildMessage, Command, Progress, SeenEvents, StepDone, format_message
from smartpipe.bench.producer import Producer
from smartpipe.bench.worker import BenchWorker
from smartpipe.errors import SmartpipeError
from smartpipe.settings import TransportSettings
from smartpipe.transports.open import open_transport
from smartpipe.worker.tuning import choose_loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRESS_SECONDS = 0.2
STANDARD_OUTPUT = 1


def send(message: ChildMessage) -> None:
    """Send a message to the run. The run reads all the time, so this does not block for long."""
    line = format_message(message)
    while line:
        line = line[os.write(STANDARD_OUTPUT, line) :]


async def send_progress(progress: Callable[[], Progress]) -> None:
    """Send the progress every 0.2 s, if it has changed."""
    sent = Progress(done=0)
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        now = progress()
        if now != sent:
            sent = now
            send(now)


async def run() -> None:
    """Read the assignment, and carry out the commands that follow."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    assignment = Assignment.model_validate_json(await lines.readline())
    if assignment.producer is None:
        await _run_worker(assignment, lines)
    else:
        await _run_producer(assignment, assignment.producer, lines)


async def _run_producer(assignment: Assignment, number: int, lines: asyncio.StreamReader) -> None:
    producer = Producer(assignment.load, number, open_transport(), TransportSettings.load().transport)
    send(StepDone(kind="ready"))
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(send_progress(lambda: Progress(done=producer.done)))
        while (command := await _read_command(lines)).action == "warm_up":
            await producer.warm_up()
            send(StepDone(kind="warmed_up"))
        watching = group.create_task(_exit_with_run(lines))
        report = await producer.publish(command.begin_at)
        watching.cancel()
        sending.cancel()
    await producer.aclose()
    send(report)


async def _run_worker(assignment: Assignment, lines: asyncio.StreamReader) -> None:
    worker = BenchWorker(assignment.load, assignment.queue, open_transport(), TransportSettings.load().transport)
    handled = worker.handled
    await worker.wait_until_polling()
    send(StepDone(kind="ready"))
    sending = asyncio.create_task(send_progress(lambda: Progress(done=handled.distinct, warm=handled.warm)))
    while (command := await _read_command(lines)).action != "stop":
        if command.action == "measure":
            worker.measure()
            send(StepDone(kind="measuring"))
        else:
            send(SeenEvents(seen=encode_seen(handled.seen)))
    worker.stop()
    watching = asyncio.create_task(_exit_with_run(lines))
    report = await worker.drain()
    watching.cancel()
    sending.cancel()
    send(report)


async def _read_command(lines: asyncio.StreamReader) -> Command:
    line = await lines.readline()
    if not line:
        os._exit(1)  # the run has ended, so nothing waits for this process
    return Command.model_validate_json(line)


async def _exit_with_run(lines: asyncio.StreamReader) -> None:
    """End this process when the run ends, even in the middle of a step."""
    await _read_command(lines)


def main() -> None:
    """Run, and print one line about an error."""
    sys.stdout = sys.stderr  # a line that other code prints must not appear between the messages
    try:
        with asyncio.Runner(loop_factory=choose_loop_factory()) as runner:
            runner.run(run())
    except (SmartpipeError, ExceptionGroup) as error:
        causes = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        print(str(causes[0]).splitlines()[0], file=sys.stderr, flush=True)  # noqa: T201 - the run reads the last line
        os._exit(1)  # before clients that are still open print warnings


if __name__ == "__main__":
    main()
