"""A service for scale.py. Its handler computes for ten milliseconds."""

from __future__ import annotations

import time

from smartpipe import Event, Service, Topic

COMPUTE_SECONDS = 0.01


class Placed(Event, topic=Topic("placed"), type="bench.placed", version="1.0"):
    number: int
    text: str = "x" * 200


service = Service("scale")


@service.subscribe(Placed)
async def compute(event: Placed) -> None:
    until = time.thread_time() + COMPUTE_SECONDS
    while time.thread_time() < until:
        pass
