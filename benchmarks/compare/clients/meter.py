"""What a measured process knows of its job, and how it measures: standard library only, for every venv.

The first messages are a warm-up: imports, clients and connections are paid for when the clock starts. It
stops when the last message has been handled and its delete has been answered. CPU is user and system time
of the whole process, all threads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple
from uuid import uuid4

BATCH = 10
TASKS = 8
TOGETHER = 100
EVENT_TYPE = "order.placed"
ATTRIBUTES = {"type": {"DataType": "String", "StringValue": EVENT_TYPE}}
"""What filter policies match, with each publication."""


class Job(NamedTuple):
    """One run of one client: an argument of the command line, as JSON.

    Args:
        what: ``consume``, ``publish``, ``publish-single`` or ``idle``.
        total: How many messages there are, the warm-up included.
        warm: After how many of them the clock starts.
    """

    what: str
    total: int
    warm: int
    queue_name: str = ""
    queue_url: str = ""
    topic_arn: str = ""

    @classmethod
    def given(cls) -> Job:
        """The one of this process."""
        return cls(**json.loads(sys.argv[1]))


class Meter:
    """Counts what is handled and deleted, and takes the CPU time in between."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._handled: set[int] = set()
        self._settled = 0
        self.cpu_seconds = self.wall_seconds = 0.0

    def handled(self, number: int) -> None:
        """Note the event of this number; the last one of the warm-up starts the clock."""
        self._handled.add(number)
        if len(self._handled) == self._job.warm:
            self.start()

    def settled(self, count: int = 1) -> None:
        """Note that so many deletes, or publishes, have been answered."""
        self._settled += count

    @property
    def all_handled(self) -> bool:
        return len(self._handled) >= self._job.total

    @property
    def done(self) -> bool:
        """Whether all has been handled and deleted."""
        return self.all_handled and self._settled >= self._job.total

    def start(self) -> None:
        self.cpu_seconds, self.wall_seconds = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_seconds, self.wall_seconds = (
            time.process_time() - self.cpu_seconds,
            time.perf_counter() - self.wall_seconds,
        )

    def report(self, *packages: str) -> None:
        """Print the figures as the last line of standard output, and end the process."""
        figures = {
            "messages": max(self._job.total - self._job.warm, 0),
            "handled": len(self._handled),
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "versions": {package: version(package) for package in packages},
        }
        print(json.dumps(figures), flush=True)
        os._exit(0)


def event(number: int) -> dict[str, object]:
    """The data of one event, 300 bytes of JSON; all clients carry the same."""
    return {
        "number": number,
        "order_id": f"order-{number:08d}",
        "customer": {"name": "Ada Lovelace", "email": "ada@example.com", "country": "GB"},
        "lines": [
            {"sku": "notebook-a5", "quantity": 2, "cents": 1290},
            {"sku": "pencil-2b", "quantity": 12, "cents": 90},
        ],
        "total_cents": 3660,
        "note": "leave it with the neighbours if nobody answers",
    }


def cloudevent(number: int) -> str:
    """The same as a CloudEvent in JSON, some 600 bytes: what smartpipe publishes, and the bare loops with it."""
    identity = str(uuid4())
    envelope = {
        "specversion": "1.0",
        "type": EVENT_TYPE,
        "dataversion": "1.0",
        "datacontenttype": "application/json",
        "source": "bench",
        "id": identity,
        "time": datetime.now(UTC).isoformat()[:-6] + "Z",
        "traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01",
        "correlationid": identity,
        "data": event(number),
    }
    return json.dumps(envelope, separators=(",", ":"))


def slices(count: int, size: int) -> list[range]:
    """0 to *count*, so many at a time."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
