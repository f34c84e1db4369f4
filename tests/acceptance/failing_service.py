"""A service that reports its failures: to a file, slowly, and wrongly."""

from __future__ import annotations

import asyncio
import logging

from smartpipe import DeliveryFailure, Queue, RetryPolicy, Service
from tests.acceptance.services import JobPosted, note

service = Service("failing", queue=Queue("failing"), retry=RetryPolicy(attempts=2, base_seconds=0))


@service.subscribe(JobPosted)
async def work(event: JobPosted) -> None:
    logging.getLogger("shop").info("working", extra={"job": event.name})
    raise ValueError(f"{event.name} cannot be done")


@service.on_failure
def report(failure: DeliveryFailure) -> None:
    name = failure.event.name if isinstance(failure.event, JobPosted) else "nothing"
    note(f"reported {name} {failure.outcome} {failure.attempt} {failure.error}")


@service.on_failure
async def report_slowly(failure: DeliveryFailure) -> None:
    if isinstance(failure.event, JobPosted) and failure.event.name == "slow":
        note("slow report")
        await asyncio.sleep(60)


@service.on_failure
async def report_wrongly(failure: DeliveryFailure) -> None:
    raise RuntimeError("no connection")
