"""The cost of TLS: smartpipe and the bare loop through a proxy that ends TLS, and through the same proxy without it.

    python -m benchmarks.tls

The proxy has a certificate of a private authority, as a company's endpoint has. It counts connections, handshakes, and
those that resumed a session. Each line is the median of five rounds in which all runs take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import uvloop
from benchmarks.compare.broker import run_broker
from benchmarks.compare.contenders import BARE, CONSUMERS, DEFAULT, PUBLISHERS, SMARTPIPE
from benchmarks.compare.runs import run
from benchmarks.compare.venvs import ROOT, install_python
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 5
MESSAGES_PER_WEIGHT = 500
MEASURED = (("consume", CONSUMERS, DEFAULT), ("consume", CONSUMERS, BARE),
            ("publish", PUBLISHERS, f"{SMARTPIPE}, publish_many"), ("publish", PUBLISHERS, BARE))  # fmt: skip


class Counts(NamedTuple):
    """The connections of a client, its completed handshakes, and those that resumed a session."""

    connections: int = 0
    handshakes: int = 0
    resumed: int = 0


async def serve(upstream: str, certificate: str) -> None:
    """Forward connections until stdin ends. Print the port first, and the counts in the end."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    url = urlsplit(upstream)
    counts = [0, 0, 0]
    streams: set[asyncio.StreamWriter] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counts[0] += 1
        if tls := writer.get_extra_info("ssl_object"):
            counts[1] += 1
            counts[2] += bool(tls.session_reused)
        streams.add(writer)
        broker = await asyncio.open_connection(url.hostname, url.port)
        await asyncio.gather(pipe(reader, broker[1]), pipe(broker[0], writer))
        streams.discard(writer)

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(counts), flush=True)
    server.close()


@contextmanager
def run_proxy(upstream: str, certificate: str = "") -> Iterator[tuple[int, list[Counts]]]:
    """Yield the port of a proxy in a process of its own, and a list to which its counts are added in the end."""
    command = [sys.executable, "-m", "benchmarks.tls", "--serve", upstream, certificate]
    found: list[Counts] = []
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline()), found
        process.stdin.close()
        found.append(Counts(*json.loads(process.stdout.readline())))
        process.kill()


def measure(cache: Path) -> None:
    """Print a line for each client, and the connections of the runs with TLS."""
    results: dict[tuple[str, str, bool], list[float]] = {}
    counts: dict[tuple[str, str], list[Counts]] = {}
    with TemporaryDirectory() as directory, run_broker(cache / "node") as broker:
        authority = Authority(Path(directory))
        authority.server()
        certificate, bundle = str(Path(directory) / "server.pem"), str(authority.bundle)
        for _ in range(ROUNDS):
            for mode, contenders, name in MEASURED:
                one = next(contender for contender in contenders if contender.name == name)
                python = install_python(one.venv, cache)
                for tls in (False, True):
                    with run_proxy(broker.environment["AWS_ENDPOINT_URL"], certificate if tls else "") as (port, found):
                        url = f"https://localhost:{port}" if tls else f"http://localhost:{port}"
                        placed = broker._replace(distance={"AWS_ENDPOINT_URL": url, "AWS_CA_BUNDLE": bundle})
                        figures = run(one, mode, python, placed, messages_per_weight=MESSAGES_PER_WEIGHT)
                    if figures.error:
                        raise SystemExit(f"{name}: {figures.error}")
                    results.setdefault((mode, name, tls), []).append(figures.microseconds)
                    if tls:
                        counts.setdefault((mode, name), []).extend(found)
    for mode, _, name in MEASURED:
        plain, encrypted = results[mode, name, False], results[mode, name, True]
        seen = counts[mode, name]
        print(
            f"{mode:8} {name:30} {median(plain):5.0f} µs plain, {median(encrypted):5.0f} with TLS: "
            f"{median(b / a for a, b in zip(plain, encrypted, strict=True)):.2f} times; "
            f"{median(one.connections for one in seen):.0f} connections, "
            f"{median(one.handshakes for one in seen):.0f} handshakes, "
            f"{median(one.resumed for one in seen):.0f} resumed"
        )


def main() -> Any:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls", description="Measure the cost of TLS.")
    parser.add_argument("--serve", nargs=2, metavar=("UPSTREAM", "CERTIFICATE"), help="run the proxy")
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-compare", help="directory for venvs and fauxqs")
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(*options.serve))
    else:
        measure(options.cache)


if __name__ == "__main__":
    main()
