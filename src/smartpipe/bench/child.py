"""A producer's or a worker's process: ``python -m smartpipe.bench.child``, started by a run only.

It reads its orders from standard input, a line each, and says what it does on standard output. It ends when its
input does, which the system closes however the run went.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from smartpipe.bench.handling import Handling
from smartpipe.bench.latencies import packed
from smartpipe.bench.messages import Assignment, Message, Order, Progress, Said, Tally, write
from smartpipe.bench.producing import Producer
from smartpipe.errors import SmartpipeError
from smartpipe.transports.open import open_transport
from smartpipe.worker.tuning import choose_loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRESS_SECONDS = 0.2
STANDARD_OUTPUT = 1


def say(message: Message) -> None:
    """Tell the run. It reads all the time, so that this does not wait."""
    line = write(message)
    while line:
        line = line[os.write(STANDARD_OUTPUT, line) :]


async def keep_saying(progress: Callable[[], Progress]) -> None:
    """Tell how far it is, whenever it got further."""
    told = Progress(done=0)
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        now = progress()
        if now != told:
            told = now
            say(now)


async def run() -> None:
    """Do what the lines say, from the first to the last."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    assignment = Assignment.model_validate_json(await lines.readline())
    if assignment.producer is None:
        await _work(assignment, lines)
    else:
        await _produce(assignment, assignment.producer, lines)


async def _produce(assignment: Assignment, number: int, lines: asyncio.StreamReader) -> None:
    producer = Producer(assignment.load, number, open_transport())
    say(Said(kind="ready"))
    async with asyncio.TaskGroup() as group:
        saying = group.create_task(keep_saying(lambda: Progress(done=producer.done)))
        while (order := await _order(lines)).what == "warm":
            await producer.warm_up()
            say(Said(kind="warm"))
        ending = group.create_task(_end_with(lines))
        published = await producer.produce(order.begin_at)
        ending.cancel()
        saying.cancel()
    await producer.aclose()
    say(published)


async def _work(assignment: Assignment, lines: asyncio.StreamReader) -> None:
    handling = Handling(assignment.load, assignment.queue, open_transport())
    ledger = handling.ledger
    await handling.ready()
    say(Said(kind="ready"))
    saying = asyncio.create_task(keep_saying(lambda: Progress(done=ledger.distinct, warm=ledger.warm)))
    while (order := await _order(lines)).what != "stop":
        if order.what == "measure":
            handling.measure()
            say(Said(kind="measuring"))
        else:
            say(Tally(seen=packed(ledger.seen)))
    handling.stop()
    ending = asyncio.create_task(_end_with(lines))
    report = await handling.report()
    ending.cancel()
    saying.cancel()
    say(report)


async def _order(lines: asyncio.StreamReader) -> Order:
    line = await lines.readline()
    if not line:
        os._exit(1)  # the run is gone, and nobody waits for anything of this
    return Order.model_validate_json(line)


async def _end_with(lines: asyncio.StreamReader) -> None:
    """End with the run, also in the middle of something."""
    await _order(lines)


def main() -> None:
    """Run, and tell in one line why not."""
    sys.stdout = sys.stderr  # whatever anybody prints must not stand between our lines
    try:
        with asyncio.Runner(loop_factory=choose_loop_factory()) as runner:
            runner.run(run())
    except (SmartpipeError, ExceptionGroup) as error:
        causes = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        print(str(causes[0]).splitlines()[0], file=sys.stderr, flush=True)  # noqa: T201 - the run reads the last line
        os._exit(1)  # before clients that were left open complain


if __name__ == "__main__":
    main()
