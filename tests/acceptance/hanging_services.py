"""A service whose handlers hang, or run out of something, in worker processes of these tests."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from smartpipe import Event, RetryPolicy, Service, Topic

tasks = Topic("hanging-tasks")
DIRECTORY = Path(os.environ.get("ACCEPTANCE_DIR", "."))


class SyncTask(Event, topic=tasks, type="task.sync", version="1.0"):
    name: str


class AsyncTask(Event, topic=tasks, type="task.async", version="1.0"):
    name: str


class FilesTask(Event, topic=tasks, type="task.files", version="1.0"):
    name: str


service = Service("hanging", retry=RetryPolicy(attempts=50, base_seconds=0), publishes=[SyncTask, AsyncTask, FilesTask])


def released() -> bool:
    return (DIRECTORY / "release").exists()


def note(what: str) -> None:
    with (DIRECTORY / "happened").open("a") as file:
        file.write(f"{what}\n")


@service.subscribe(SyncTask, timeout_seconds=0.3)
def sync(event: SyncTask) -> None:
    while event.name == "hang" and not released():
        time.sleep(0.1)
    note(f"done {event.name} {threading.active_count()}")


@service.subscribe(AsyncTask, timeout_seconds=0.3)
async def deaf(event: AsyncTask) -> None:
    while event.name == "hang" and not released():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.1)
    note(f"done {event.name}")


@service.subscribe(FilesTask, retry=RetryPolicy(attempts=1))
async def open_files(event: FilesTask) -> None:
    """Open more files than the process may have, if several of these run at once."""
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(open(os.devnull))  # noqa: PTH123, ASYNC230 - it costs nothing but its number
        await asyncio.sleep(0.05)
    note(f"done {event.name}")
