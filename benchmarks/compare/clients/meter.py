"""The job of a measured process, and its meter. It uses only the standard library, so that it runs in every venv.

The first messages are a warm-up, so that imports and the setup of clients and connections do not count. The clock stops
after the last message has been handled and SQS has responded to its delete. CPU time is the user and system time of all
threads of the process.
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
CONCURRENT = 100
EVENT_TYPE = "order.placed"
ATTRIBUTES = {"type": {"DataType": "String", "StringValue": EVENT_TYPE}}
"""The attributes of each published message, for filter policies."""


class Job(NamedTuple):
    """One run of one client. It is passed as JSON on the command line.

    Args:
        mode: ``consume``, ``publish``, ``publish-single`` or ``idle``.
        total: The number of messages, with the warm-up.
        warm: The number of messages of the warm-up, after which the clock starts.
    """

    mode: str
    total: int
    warm: int
    queue_name: str = ""
    queue_url: str = ""
    topic_arn: str = ""

    @classmethod
    def from_arguments(cls) -> Job:
        """Return the job of this process."""
        return cls(**json.loads(sys.argv[1]))


class Meter:
    """Counts handled and deleted messages, and measures the CPU time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._handled: set[int] = set()
        self._settled = 0
        self.cpu_seconds = self.wall_seconds = 0.0

    def count_handled(self, number: int) -> None:
        """Count the event with this number. The last event of the warm-up starts the clock."""
        self._handled.add(number)
        if len(self._handled) == self._job.warm:
            self.start()

    def count_settled(self, count: int = 1) -> None:
        """Count responses to deletes or publishes."""
        self._settled += count

    @property
    def all_handled(self) -> bool:
        return len(self._handled) >= self._job.total

    @property
    def done(self) -> bool:
        """Whether all messages have been handled and deleted."""
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
    """Return the data of one event, 300 bytes of JSON. It is the same for all clients."""
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
    """Return the event as a CloudEvent in JSON, about 600 bytes. smartpipe and the bare loops publish this format."""
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


def split_range(count: int, size: int) -> list[range]:
    """Split the range from 0 to *count* into ranges of *size*."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
