"""The broker of a run: fauxqs where npm is at hand, which answers some 2,500 calls a second; else the embedded one."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from smartpipe import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAUXQS = "1.9.2"
"""The last version that Node.js 20 can load; 2.x wants 22.5."""
SERVE = """
const { buildApp } = await import(process.argv[1]);
const app = buildApp({ logger: false, host: "127.0.0.1" });
console.log(await app.listen({ host: "127.0.0.1", port: 0 }));
process.stdin.on("end", () => process.exit(0)).resume();
"""
STOP_SECONDS = 5


class Broker(NamedTuple):
    """One that runs.

    Args:
        name: With its version.
        environment: AWS's own variables that lead clients there.
    """

    name: str
    environment: dict[str, str]


@contextmanager
def running(directory: Path) -> Iterator[Broker]:
    """Run the fastest broker at hand on loopback, until the block ends or this process does.

    Args:
        directory: Where fauxqs is installed.
    """
    if shutil.which("npm") is None:
        with EmbeddedBroker() as embedded:
            yield Broker(f"ministack {embedded.version}", _environment(embedded.endpoint_url))
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
