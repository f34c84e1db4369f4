"""Run one client in its own process on a new queue, and check afterwards that it has done all of the work."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
from benchmarks.compare.bodies import BODIES
from benchmarks.compare.clients.meter import BATCH, CONCURRENT, Job, split_range
from benchmarks.compare.table import Figures
from benchmarks.compare.venvs import CLIENTS, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.compare.broker import Broker
    from benchmarks.compare.contenders import Contender

WARM_UP = 2 * CONCURRENT
TIMEOUT_SECONDS = 90
MAX_ERROR_CHARACTERS = 300


class Resources:
    """A new topic and a new queue."""

    def __init__(self, broker: Broker) -> None:
        connect: Any = boto3.client  # its stubs have a type for each service, and no common one
        self._sqs = connect("sqs", **client_options(broker))
        self._sns = connect("sns", **client_options(broker))
        self.prefix = f"r{uuid4().hex[:8]}-"
        self.queue_name = f"{self.prefix}shop"
        self.queue_url = self._sqs.create_queue(QueueName=self.queue_name, Attributes={"VisibilityTimeout": "60"})[
            "QueueUrl"
        ]
        self.topic_arn = self._sns.create_topic(Name=f"{self.prefix}orders")["TopicArn"]

    def subscribe(self) -> None:
        """Subscribe the queue to all messages of the topic, with raw delivery."""
        response = self._sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])
        self._sns.subscribe(
            TopicArn=self.topic_arn,
            Protocol="sqs",
            Endpoint=response["Attributes"]["QueueArn"],
            Attributes={"RawMessageDelivery": "true"},
        )

    def fill(self, body_of: str, total: int) -> None:
        """Send events 0 to *total* to the queue."""
        for numbers in split_range(total, BATCH):
            entries = []
            for number in numbers:
                body = BODIES[body_of](number, self.queue_name)
                attributes = {name: {"DataType": "String", "StringValue": v} for name, v in body.attributes.items()}
                entries.append({"Id": str(number), "MessageBody": body.text, "MessageAttributes": attributes})
            response = self._sqs.send_message_batch(QueueUrl=self.queue_url, Entries=entries)
            if response.get("Failed"):
                msg = f"cannot fill the queue: {response['Failed'][0]}"
                raise RuntimeError(msg)

    def count_left(self) -> int:
        """Return the number of messages in the queue, visible or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)


def client_options(broker: Broker) -> dict[str, str]:
    """Return the arguments of a boto3 client for the broker."""
    return {
        "endpoint_url": broker.environment["AWS_ENDPOINT_URL"],
        "region_name": broker.environment["AWS_REGION"],
        "aws_access_key_id": broker.environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": broker.environment["AWS_SECRET_ACCESS_KEY"],
    }


def run(contender: Contender, mode: str, python: Path | None, broker: Broker, *, messages_per_weight: int) -> Figures:
    """Run the client once, and check whether it has done all of the work.

    Args:
        python: The interpreter of its venv; None if the client needs a newer one.
        broker: Its environment may lead the client over a distance. The queue is filled and counted without it.
        messages_per_weight: The number of messages for each unit of the contender's weight.
    """
    if python is None:
        return Figures.invalid("needs Python {}.{}".format(*contender.venv.needs))
    resources = Resources(broker)
    total = contender.weight * messages_per_weight + WARM_UP
    if mode.startswith("publish"):
        resources.subscribe()
    elif mode == "consume" and not contender.in_memory:
        resources.fill(contender.body, total)
    job = Job(mode, total, WARM_UP, resources.queue_name, resources.queue_url, resources.topic_arn)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SMARTPIPE_", "PYTHON"))},
        **broker.environment,
        **broker.distance,
        "SMARTPIPE_PREFIX": resources.prefix,
        **contender.variables,
    }
    command = [str(python), str(CLIENTS / f"{contender.script}.py"), json.dumps(job._asdict())]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Figures.invalid(f"was not done after {TIMEOUT_SECONDS} s, {resources.count_left()} messages left")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        output = (done.stderr or done.stdout).strip()[-MAX_ERROR_CHARACTERS:]
        return Figures.invalid(f"ended with {done.returncode}: {output}")
    figures = json.loads(lines[-1])
    error = find_error(mode, total, handled=figures["handled"], left=resources.count_left(), memory=contender.in_memory)
    if error:
        return Figures.invalid(error)
    return Figures(figures["messages"], figures["cpu_seconds"], figures["wall_seconds"], figures["versions"])


def find_error(mode: str, total: int, *, handled: int, left: int, memory: bool) -> str:
    """Return a text about missing work, or an empty string."""
    if mode == "consume" and handled != total:
        return f"handled {handled} of {total}"
    if mode == "consume" and left and not memory:
        return f"left {left} messages undeleted"
    if mode.startswith("publish") and left != total:
        return f"published {left} of {total}"
    return ""
