"""Another service of the events in ``tests.acceptance.services``."""

from __future__ import annotations

from smartpipe import Service
from tests.acceptance.services import JobPosted, note

service = Service("second")


@service.subscribe(JobPosted)
async def work(event: JobPosted) -> None:
    note(f"second {event.name}")
