"""The time of ``smartpipe schema check`` for many events and versions, as a whole command.

    python -m benchmarks.contracts [--events N] [--versions N] [--breaks N]

Run it from the root of the checkout. Each event has nested models, a union and a list, and one more optional field in
each version.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAD = """
from typing import Annotated, Literal
from uuid import UUID
from datetime import datetime
from pydantic import BaseModel, Field
from smartpipe import Event, Topic

class Line(BaseModel):
    sku: str
    count: Annotated[int, Field(ge=1)]

class Card(BaseModel):
    kind: Literal["card"]
    number: str

class Cash(BaseModel):
    kind: Literal["cash"]

"""
EVENT = """
class Event{number}(Event, topic=Topic("orders"), type="event.{number}", version="1.{minor}"):
    order_id: UUID
    placed_at: datetime
    lines: list[Line]
    paid_by: Annotated[Card | Cash, Field(discriminator="kind")]
    notes: dict[str, str] = {{}}
    changed: {changed} = 0
"""


def write_module(directory: Path, events: int, minor: int, breaks: int) -> None:
    """Write the module with all events at one minor version. *breaks* of them have another type of one field."""
    parts = [HEAD]
    for number in range(events):
        parts.append(EVENT.format(number=number, minor=minor, changed="float" if number < breaks else "int"))
        parts += [f"    added_{index}: str | None = None\n" for index in range(minor)]
    (directory / "events.py").write_text("".join(parts))


def run(directory: Path, command: str) -> float:
    """Run a command of ``smartpipe schema``, and return its time in seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "smartpipe", "schema", command, "events"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    print(f"schema {command}: {seconds:.2f} s, exit code {done.returncode}")
    print("\n".join((done.stdout + done.stderr).splitlines()[-1:]))
    return seconds


def main() -> None:
    """Export all versions but the last, and check the last one."""
    parser = argparse.ArgumentParser(prog="benchmarks.contracts", description=__doc__)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--versions", type=int, default=5)
    parser.add_argument("--breaks", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for minor in range(options.versions):
            write_module(directory, options.events, minor, 0)
            run(directory, "export")
        write_module(directory, options.events, options.versions, options.breaks)
        run(directory, "check")


if __name__ == "__main__":
    main()
