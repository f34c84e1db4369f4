"""One run of one client: a fresh queue, filled; the client in a process of its own; and a look at what is left."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
from benchmarks.compare.bodies import BODIES
from benchmarks.compare.clients.meter import BATCH, TOGETHER, Job, slices
from benchmarks.compare.table import Figures
from benchmarks.compare.venvs import CLIENTS, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.compare.broker import Broker
    from benchmarks.compare.contenders import Contender

WARM = 2 * TOGETHER
TIMEOUT_SECONDS = 90
SAID = 300


class Place:
    """A topic and a queue that nobody has used before."""

    def __init__(self, broker: Broker) -> None:
        connect: Any = boto3.client  # its stubs know every service, and not what they have in common
        self._sqs = connect("sqs", **keys(broker))
        self._sns = connect("sns", **keys(broker))
        self.prefix = f"r{uuid4().hex[:8]}-"
        self.queue_name = f"{self.prefix}shop"
        self.queue_url = self._sqs.create_queue(QueueName=self.queue_name, Attributes={"VisibilityTimeout": "60"})[
            "QueueUrl"
        ]
        self.topic_arn = self._sns.create_topic(Name=f"{self.prefix}orders")["TopicArn"]

    def subscribe(self) -> None:
        """Let the queue take everything of the topic, raw."""
        asked = self._sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])
        self._sns.subscribe(
            TopicArn=self.topic_arn,
            Protocol="sqs",
            Endpoint=asked["Attributes"]["QueueArn"],
            Attributes={"RawMessageDelivery": "true"},
        )

    def fill(self, body_of: str, total: int) -> None:
        """Send events 0 to *total* to the queue."""
        for numbers in slices(total, BATCH):
            entries = []
            for number in numbers:
                body = BODIES[body_of](number, self.queue_name)
                attributes = {name: {"DataType": "String", "StringValue": v} for name, v in body.attributes.items()}
                entries.append({"Id": str(number), "MessageBody": body.text, "MessageAttributes": attributes})
            answer = self._sqs.send_message_batch(QueueUrl=self.queue_url, Entries=entries)
            if answer.get("Failed"):
                msg = f"the broker took not all that the queue was to be filled with: {answer['Failed'][0]}"
                raise RuntimeError(msg)

    def left(self) -> int:
        """How many messages are in the queue, visible or not; all that are, after publishing."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)


def keys(broker: Broker) -> dict[str, str]:
    """What a client of boto3 needs to know of the broker."""
    return {
        "endpoint_url": broker.environment["AWS_ENDPOINT_URL"],
        "region_name": broker.environment["AWS_REGION"],
        "aws_access_key_id": broker.environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": broker.environment["AWS_SECRET_ACCESS_KEY"],
    }


def run(contender: Contender, what: str, python: Path, broker: Broker, *, thousand: int) -> Figures:
    """Run it once, and judge whether it has done all of the work.

    Args:
        thousand: How many messages the contender's weight counts in.
    """
    place = Place(broker)
    total = contender.weight * thousand + WARM
    if what.startswith("publish"):
        place.subscribe()
    elif what == "consume" and contender.transport != "memory":
        place.fill(contender.body, total)
    job = Job(what, total, WARM, place.queue_name, place.queue_url, place.topic_arn)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SMARTPIPE_", "PYTHON"))},
        **broker.environment,
        "SMARTPIPE_PREFIX": place.prefix,
    }
    if contender.transport:
        environment["SMARTPIPE_TRANSPORT"] = contender.transport
        environment["SMARTPIPE_CONCURRENCY"] = str(contender.concurrency)
    command = [str(python), str(CLIENTS / f"{contender.script}.py"), json.dumps(job._asdict())]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Figures.refused(f"was not done after {TIMEOUT_SECONDS} s, {place.left()} messages left")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        said = (done.stderr or done.stdout).strip()[-SAID:]
        return Figures.refused(f"ended with {done.returncode}: {said}")
    figures = json.loads(lines[-1])
    wrong = fault(what, total, handled=figures["handled"], left=place.left(), memory=contender.transport == "memory")
    if wrong:
        return Figures.refused(wrong)
    return Figures(figures["messages"], figures["cpu_seconds"], figures["wall_seconds"], figures["versions"])


def fault(what: str, total: int, *, handled: int, left: int, memory: bool) -> str:
    """Say what was not done, or nothing."""
    if what == "consume" and handled != total:
        return f"handled {handled} of {total}"
    if what == "consume" and left and not memory:
        return f"left {left} messages undeleted"
    if what.startswith("publish") and left != total:
        return f"published {left} of {total}"
    return ""
