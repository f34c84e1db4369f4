"""Services that worker processes run in these tests. What they did is in files of SMARTPIPE_TEST_DIR."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

from smartpipe import Delivery, Event, Queue, RetryPolicy, Service, Topic

jobs = Topic("jobs")
DIRECTORY = Path(os.environ.get("ACCEPTANCE_DIR", "."))


class JobPosted(Event, topic=jobs, type="job.posted", version="1.0"):
    name: str
    seconds: float = 0.0


class EffectWanted(Event, topic=jobs, type="effect.wanted", version="1.0"):
    name: str
    seconds: float = 0.0


service = Service(
    "jobs",
    queue=Queue(
        "jobs",
        visibility_timeout_seconds=int(os.environ.get("ACCEPTANCE_LEASE", "30")),
        max_receive_count=int(os.environ.get("ACCEPTANCE_RECEIVES", "10")),
    ),
    retry=RetryPolicy(attempts=int(os.environ.get("ACCEPTANCE_ATTEMPTS", "3")), base_seconds=0),
    publishes=[JobPosted],
)
effects = Service(
    "effects",
    queue=Queue("effects", visibility_timeout_seconds=int(os.environ.get("ACCEPTANCE_LEASE", "30"))),
    retry=RetryPolicy(attempts=3, base_seconds=0),
    publishes=[EffectWanted],
)
no_handlers = Service("idle")


def note(what: str) -> None:
    """One line a happening, appended at once, so that a kill loses none of it."""
    with (DIRECTORY / "happened").open("a") as file:
        file.write(f"{what}\n")


@service.subscribe(JobPosted)
async def work(event: JobPosted, delivery: Delivery) -> None:
    note(f"begun {event.name} {delivery.receive_count}")
    logging.getLogger("jobs").info("working", extra={"job": event.name})
    if event.name.startswith("killer"):
        os.kill(os.getpid(), signal.SIGKILL)
    if event.name.startswith("poison"):
        raise ValueError(f"{event.name} cannot be done")
    await asyncio.sleep(event.seconds)
    note(f"done {event.name} {delivery.receive_count}")


@effects.subscribe(EffectWanted, idempotent=True)
async def effect(event: EffectWanted, delivery: Delivery) -> None:
    note(f"begun {event.name}")
    async with delivery.transaction() as connection:
        await connection.execute("INSERT INTO acceptance_effects (name) VALUES ($1)", event.name)
    note(f"committed {event.name}")
    await asyncio.sleep(event.seconds)
