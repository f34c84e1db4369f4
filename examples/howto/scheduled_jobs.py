"""A nightly job that EventBridge Scheduler starts, and a reminder that is sent ten minutes later."""

import asyncio
import datetime as dt
import json

from smartpipe import Delivery, Event, Idempotency, Queue, Service, Topic
from smartpipe.testing import MemoryBroker

jobs = Topic("jobs")
reminders = Queue("reminders", direct=True)


class ReportDue(Event, topic=jobs, type="report.due", version="1.0"):
    scheduled_at: dt.datetime


class ReminderDue(Event, topic=jobs, type="reminder.due", version="1.0"):
    day: dt.date


service = Service("reports", publishes=[reminders])


@service.subscribe(ReportDue, idempotent=Idempotency(key="scheduled_at"))
async def write_report(event: ReportDue, delivery: Delivery) -> None:
    day = event.scheduled_at.date() - dt.timedelta(days=1)
    print("writing the report of", day)
    await delivery.publish(ReminderDue(day=day), queue=reminders, delay_seconds=600)


@service.subscribe(ReminderDue, queue=reminders)
async def remind(event: ReminderDue) -> None:
    print("has anyone read the report of", event.day)


def from_scheduler(scheduled_time: str) -> str:
    """Return the message that EventBridge Scheduler sends, with its keyword replaced."""
    envelope = {"specversion": "1.0", "type": "report.due", "source": "scheduler", "id": f"report-{scheduled_time}"}
    return json.dumps({**envelope, "time": scheduled_time, "data": {"scheduled_at": scheduled_time}})


async def main() -> None:
    async with MemoryBroker(service) as broker:
        for _ in range(2):  # Scheduler delivers at least once
            await broker.send("reports", from_scheduler("2026-11-26T02:00:00Z"))
        await broker.drain()


if __name__ == "__main__":
    asyncio.run(main())
