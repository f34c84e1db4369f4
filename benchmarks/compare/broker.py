"""The broker of a run: fauxqs, with about 2,500 calls per second, if npm is installed, or else the local broker."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from smartpipe import EmbeddedBroker
from smartpipe.bench.distance import open_distance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FAUXQS = "1.9.2"
"""The last version that supports Node.js 20. Versions 2.x need Node.js 22.5."""
SERVE = """
const { buildApp } = await import(process.argv[1]);
const app = buildApp({ logger: false, host: "127.0.0.1" });
console.log(await app.listen({ host: "127.0.0.1", port: 0 }));
process.stdin.on("end", () => process.exit(0)).resume();
"""
STOP_SECONDS = 5


class Broker(NamedTuple):
    """A running broker.

    Args:
        name: The name with the version.
        environment: AWS's own variables that lead clients to the broker.
        distance: Those that lead the measured client there over a distance.
    """

    name: str
    environment: dict[str, str]
    distance: Mapping[str, str] = {}


@contextmanager
def put_at_distance(broker: Broker, milliseconds: float) -> Iterator[Broker]:
    """Yield *broker* behind a round trip of *milliseconds*, which is the proxy of ``smartpipe bench`` in a thread."""
    if not milliseconds:
        yield broker
        return
    loop = uvloop.new_event_loop()
    thread = Thread(target=loop.run_forever)
    distance = open_distance(broker.environment, milliseconds)
    thread.start()
    try:
        environment = asyncio.run_coroutine_threadsafe(distance.__aenter__(), loop).result()
        try:
            yield broker._replace(distance=environment)
        finally:
            asyncio.run_coroutine_threadsafe(distance.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def run_broker(directory: Path) -> Iterator[Broker]:
    """Run the fastest available broker on loopback until the block or this process ends.

    Args:
        directory: The directory to install fauxqs in.
    """
    if shutil.which("npm") is None:
        with EmbeddedBroker() as local:
            yield Broker(f"ministack {local.version}", _environment(local.endpoint_url))
        return
    module = directory / "node_modules" / "fauxqs" / "dist" / "app.js"
    if not module.exists():
        install = ["npm", "install", "--prefix", str(directory), "--no-audit", "--no-fund", "--silent"]
        subprocess.run([*install, f"fauxqs@{FAUXQS}"], check=True)
    command = ["node", "--input-type=module", "--eval", SERVE, str(module)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Broker(f"fauxqs {FAUXQS}", _environment(process.stdout.readline().strip()))
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _environment(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "SMARTPIPE_ACCOUNT_ID": "000000000000",
    }
