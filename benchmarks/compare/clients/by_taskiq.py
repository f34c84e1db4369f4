"""taskiq-aio-sqs: taskiq's receiver with its defaults, ten messages per receive call, on uvloop as its command."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import uvloop
from meter import BATCH, Job, Meter
from taskiq.api import run_receiver_task
from taskiq_aio_sqs import SQSBroker


class CountingBroker(SQSBroker):
    """Counts each response to a delete."""

    meter: Meter

    def build_ack_fnx(self, *arguments: Any, **named: Any) -> Any:
        acknowledge = super().build_ack_fnx(*arguments, **named)

        async def ack() -> None:
            await acknowledge()
            self.meter.count_settled()
            if self.meter.done:
                self.meter.stop()
                self.meter.report("taskiq-aio-sqs", "taskiq", "aiobotocore", "uvloop")

        ack.metadata = getattr(acknowledge, "metadata", None)  # type: ignore[attr-defined]
        return ack


async def main(job: Job) -> None:
    broker = CountingBroker(
        job.queue_name,
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        region_name=os.environ["AWS_REGION"],
        aws_access_key_id="local",
        aws_secret_access_key="local",
        wait_time_seconds=1,
        max_number_of_messages=BATCH,
    )
    meter = broker.meter = Meter(job)

    @broker.task(task_name="handle")
    async def handle(data: dict[str, Any]) -> None:
        meter.count_handled(data["number"])

    await asyncio.create_task(run_receiver_task(broker, run_startup=True))


if __name__ == "__main__":
    uvloop.run(main(Job.from_arguments()))
