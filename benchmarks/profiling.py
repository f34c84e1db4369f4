"""Where the time of a message goes: a worker, or a publisher, under a profiler.

    python -m benchmarks.profiling consume|publish [--by pyinstrument] [--broker] [--messages N]

From the root of the checkout. Without ``--broker`` the transport does nothing, so the profile shows smartpipe itself.
With it, the profile includes the direct transport. The embedded broker is a separate process, so its time does not
count. cProfile counts calls and exaggerates small ones; pyinstrument (``pip install pyinstrument``) samples, and draws
a tree.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import logging
import os
import pstats
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.scale import Endless
from benchmarks.scale_service import Placed

from smartpipe import EmbeddedBroker, Publisher, Service, Worker
from smartpipe.settings import WorkerSettings
from smartpipe.testing import provision
from smartpipe.transports.open import open_transport
from smartpipe.worker.garbage import spare_collections
from smartpipe.worker.loops import loop_factory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.transport import Transport

LINES = 40


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.profiling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("consume", "publish"))
    parser.add_argument("--by", choices=("cProfile", "pyinstrument"), default="cProfile")
    parser.add_argument("--broker", action="store_true", help="with the direct transport and the embedded broker")
    parser.add_argument("--messages", type=int, default=20_000)
    return parser.parse_args()


@contextmanager
def counted(messages: int) -> Iterator[None]:
    """Print, for each function, its own time for each message, and how often it was called."""
    profile = cProfile.Profile()
    profile.enable()
    yield
    profile.disable()
    found = pstats.Stats(profile).get_stats_profile().func_profiles
    print(f"{'µs each':>8} {'calls':>7}  where, and what")
    for name, one in sorted(found.items(), key=lambda item: -item[1].tottime)[:LINES]:
        calls = int(one.ncalls.partition("/")[0])
        where = "" if one.file_name == "~" else f"{Path(one.file_name).name}:{one.line_number}"
        print(f"{one.tottime / messages * 1e6:8.2f} {calls / messages:7.2f}  {where} {name}")


@contextmanager
def sampled(_: int) -> Iterator[None]:
    """Print the tree of calls."""
    profiler = import_module("pyinstrument").Profiler(interval=0.0005, async_mode="disabled")
    profiler.start()
    yield
    profiler.stop()
    print(profiler.output_text(unicode=True, color=False, short_mode=True))


async def consume(transport: Transport, messages: int, *, fill: bool) -> None:
    service, done = Service("profile"), asyncio.Event()
    left = messages

    @service.subscribe(Placed)
    async def handle(event: Placed) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    if fill:
        await provision(service)
        await publish(transport, messages)
    spare_collections()
    settings = WorkerSettings.load(host="127.0.0.1", port=0, concurrency=80, wait_seconds=1, log_level="warning")
    worker = Worker(service, transport, settings)
    running = asyncio.create_task(worker.run())
    await done.wait()
    worker.stop()
    await running


async def publish(transport: Transport, messages: int) -> None:
    async with Publisher("profile", transport=transport) as publisher:
        await publisher.publish_many(Placed(number=number) for number in range(messages))


async def work(arguments: argparse.Namespace) -> None:
    transport = open_transport() if arguments.broker else Endless(arguments.messages)
    if arguments.what == "consume":
        await consume(transport, arguments.messages, fill=arguments.broker)
    else:
        if arguments.broker:
            service = Service("profile")
            service.subscribe(Placed)(_ignore)
            await provision(service)
        await publish(transport, arguments.messages)
    await transport.aclose()


async def _ignore(event: Placed) -> None: ...


def main() -> None:
    arguments = options()
    logging.basicConfig(level=logging.WARNING)
    with ExitStack() as stack:
        if arguments.broker:
            os.environ.update(stack.enter_context(EmbeddedBroker("ministack")).environment)
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory()))
        with sampled(arguments.messages) if arguments.by == "pyinstrument" else counted(arguments.messages):
            runner.run(work(arguments))


if __name__ == "__main__":
    main()
