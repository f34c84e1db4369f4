"""Run a worker or a publisher under a profiler, to see where the time for a message goes.

    python -m benchmarks.profiling consume|publish [--by pyinstrument] [--broker] [--messages N]

Run it from the root of the checkout. By default, the transport does nothing, so the profile shows smartpipe itself.
With ``--broker`` it shows the direct transport too. The local broker runs in its own process, so its time does not
count. cProfile counts calls and exaggerates small ones. pyinstrument (``pip install pyinstrument``) samples, and prints
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

from benchmarks.scale import EndlessTransport
from benchmarks.scale_service import Placed

from smartpipe import EmbeddedBroker, Publisher, Service, Worker
from smartpipe.settings import WorkerSettings
from smartpipe.testing import provision
from smartpipe.transports.open import open_transport
from smartpipe.worker.tuning import choose_loop_factory, tune_garbage_collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.transport import Transport

LINES = 40


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.profiling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("consume", "publish"))
    parser.add_argument("--by", choices=("cProfile", "pyinstrument"), default="cProfile")
    parser.add_argument("--broker", action="store_true", help="use the direct transport and the local broker")
    parser.add_argument("--messages", type=int, default=20_000)
    return parser.parse_args()


@contextmanager
def profile_calls(messages: int) -> Iterator[None]:
    """Print the time in each function per message, without its callees, and the number of calls per message."""
    profile = cProfile.Profile()
    profile.enable()
    yield
    profile.disable()
    found = pstats.Stats(profile).get_stats_profile().func_profiles
    print(f"{'µs each':>8} {'calls':>7}  function")
    for name, function in sorted(found.items(), key=lambda item: -item[1].tottime)[:LINES]:
        calls = int(function.ncalls.partition("/")[0])
        place = "" if function.file_name == "~" else f"{Path(function.file_name).name}:{function.line_number}"
        print(f"{function.tottime / messages * 1e6:8.2f} {calls / messages:7.2f}  {place} {name}")


@contextmanager
def sample_calls(_: int) -> Iterator[None]:
    """Print a tree of calls."""
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
    tune_garbage_collector()
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
    transport = open_transport() if arguments.broker else EndlessTransport(arguments.messages)
    if arguments.mode == "consume":
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
    arguments = parse_options()
    logging.basicConfig(level=logging.WARNING)
    with ExitStack() as stack:
        if arguments.broker:
            os.environ.update(stack.enter_context(EmbeddedBroker("ministack")).environment)
        runner = stack.enter_context(asyncio.Runner(loop_factory=choose_loop_factory()))
        with sample_calls(arguments.messages) if arguments.by == "pyinstrument" else profile_calls(arguments.messages):
            runner.run(work(arguments))


if __name__ == "__main__":
    main()
