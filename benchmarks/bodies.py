"""Measure the cost of bodies that fit into one SQS message: the longest pause of the event loop, and the memory.

Each body is decoded in its own process, plain and as gzip, while the event loop measures its longest pause.
``python -m benchmarks.bodies`` prints the table with the largest values of --rounds rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import time

from tests.support.bodies import VALID, WRONG, Demanding, Measured, full

from smartpipe.envelope.compression import ENCODING_ATTRIBUTE, compress
from smartpipe.envelope.decode import MessageReader
from smartpipe.errors import SmartpipeError
from smartpipe.message import Attribute, Message
from smartpipe.payload_offload import PayloadOffload
from smartpipe.worker.tuning import tune_garbage_collector

TICK_SECONDS = 0.001
EXPANDED = {
    "8 MiB of lists, decompressed": lambda: full("unheard_of", "[]", wanted=8 * 2**20),
    "3.9 MiB of models, decompressed": lambda: full("points", '{"x":1}', wanted=39 * 2**20 // 10),
    "3.9 MiB of text, decompressed": lambda: full("unheard_of", '"' + "€" * 50_000 + '"', wanted=2**20),
    "63 MiB of zeros, decompressed": lambda: full("unheard_of", '"' + "0" * 1_000_000 + '"', wanted=63 * 2**20),
}
BODIES = {**WRONG, **VALID, **EXPANDED}


async def measure(body: str, attributes: dict[str, Attribute]) -> tuple[str, float, float]:
    """Return the outcome, the longest pause of the event loop in ms, and the additional memory in MiB."""
    reader = MessageReader([Measured, Demanding], PayloadOffload())
    await reader.read(Message("0", "0", full("numbers", "1", wanted=70_000)))  # builds validators, starts the thread
    longest, decoding = 0.0, True

    async def watch() -> None:
        nonlocal longest
        while decoding:
            started = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            longest = max(longest, time.perf_counter() - started - TICK_SECONDS)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.05)
    longest, memory = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    try:
        await reader.read(Message("1", "1", body, attributes=attributes))
        outcome = "decoded"
    except SmartpipeError as error:
        outcome = getattr(error, "kind", type(error).__name__)
    seconds = time.perf_counter() - started
    await asyncio.sleep(2 * TICK_SECONDS)
    decoding = False
    await watching
    added_memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    return f"{outcome}\t{seconds * 1_000:.0f}", longest * 1_000, added_memory


def run_one(name: str, encoding: str) -> None:
    body = BODIES[name]()
    attributes = {}
    if encoding != "plain":
        body, attributes = compress(body, encoding), {ENCODING_ATTRIBUTE: Attribute("String", encoding)}
    size = len(body)
    tune_garbage_collector()
    outcome, longest, added_memory = asyncio.run(measure(body, attributes))
    print(f"{size}\t{outcome}\t{longest:.1f}\t{added_memory:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "ENCODING"))
    arguments = parser.parse_args()
    if arguments.one:
        run_one(*arguments.one)
        return
    print(f"{'body':42} {'':6} {'bytes':>9}  {'outcome':16} {'ms':>6} {'longest pause, ms':>18} {'added MiB':>9}")
    for name in BODIES:
        for encoding in ("plain", "gzip") if name not in EXPANDED else ("gzip",):
            command = [sys.executable, "-m", "benchmarks.bodies", "--one", name, encoding]
            rows = [
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split("\t")
                for _ in range(arguments.rounds)
            ]
            size, outcome = rows[0][0], rows[0][1]
            milliseconds, longest, added_memory = (max(float(row[column]) for row in rows) for column in (2, 3, 4))
            figures = f"{milliseconds:6.0f} {longest:18.1f} {added_memory:9.1f}"
            print(f"{name:42} {encoding:6} {int(size):9,}  {outcome:16} {figures}")


if __name__ == "__main__":
    main()
