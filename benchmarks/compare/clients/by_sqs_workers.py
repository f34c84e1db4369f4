"""sqs-workers: a job queue with the JSON codec. It receives ten messages, and deletes them in one call."""

from __future__ import annotations

from meter import Job, Meter
from sqs_workers import SQSEnv


def main(job: Job) -> None:
    meter = Meter(job)
    queue = SQSEnv(codec="json").queue(job.queue_name)

    @queue.processor("handle")
    def handle(data: dict[str, int]) -> None:
        meter.count_handled(data["number"])

    while not meter.all_handled:
        queue.process_batch(wait_seconds=1)  # returns after the responses to the deletes
    meter.stop()
    meter.report("sqs-workers", "boto3")


if __name__ == "__main__":
    main(Job.from_arguments())
