"""The same event in the format of each client: body and message attributes, for SendMessageBatch."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from benchmarks.compare.clients import meter
from benchmarks.compare.clients.meter import event

from smartpipe.filter_policy import TYPE_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Callable


class Body(NamedTuple):
    """The text of a message, and its attributes by name."""

    text: str
    attributes: dict[str, str]


def cloudevent(number: int, _: str) -> Body:
    """Build the message that smartpipe publishes and SNS delivers raw. The bare loops read the same message."""
    return Body(meter.cloudevent(number), {TYPE_ATTRIBUTE: meter.EVENT_TYPE})


def sqs_workers(number: int, _: str) -> Body:
    """Build the arguments of a job, with its name and codec as attributes."""
    attributes = {"ContentType": "json", "JobContext": "{}", "JobName": "handle"}
    return Body(json.dumps({"data": event(number)}), attributes)


def kombu(number: int, queue_name: str) -> Body:
    """Wrap a Base64 body in AMQP properties, and encode it in Base64 again: kombu's default for SQS."""
    payload = {
        "body": _encode_base64(json.dumps(event(number))),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue_name},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }
    return Body(_encode_base64(json.dumps(payload)), {})


def taskiq(number: int, _: str) -> Body:
    """Build a task with one argument."""
    message: dict[str, Any] = {
        "task_id": uuid4().hex,
        "task_name": "handle",
        "labels": {},
        "labels_types": {},
        "args": [event(number)],
        "kwargs": {},
    }
    return Body(json.dumps(message), {})


def tomodachi(number: int, _: str) -> Body:
    """Build tomodachi's JSON envelope inside that of SNS, because tomodachi does not use raw delivery."""
    identity = str(uuid4())
    payload = {
        "service": {"name": "shop", "uuid": identity},
        "metadata": {
            "message_uuid": f"{identity}.{uuid4()}",
            "protocol_version": "tomodachi-json-base--1.0.0",
            "compatible_protocol_versions": ["json_base-wip"],
            "timestamp": datetime.now(UTC).timestamp(),
            "topic": "orders",
            "data_encoding": "raw",
        },
        "data": event(number),
    }
    notification = {
        "Type": "Notification",
        "MessageId": str(uuid4()),
        "TopicArn": "arn:aws:sns:us-east-1:000000000000:orders",
        "Message": json.dumps(payload),
        "Timestamp": datetime.now(UTC).isoformat(),
    }
    return Body(json.dumps(notification), {})


def fanferro(number: int, _: str) -> Body:
    """Build a plain JSON body, with its type and id as attributes."""
    return Body(json.dumps(event(number)), {"fanferro.id": str(uuid4()), "fanferro.type": meter.EVENT_TYPE})


BODIES: dict[str, Callable[[int, str], Body]] = {
    "cloudevent": cloudevent,
    "sqs-workers": sqs_workers,
    "kombu": kombu,
    "taskiq": taskiq,
    "tomodachi": tomodachi,
    "fanferro": fanferro,
}


def _encode_base64(text: str) -> str:
    return b64encode(text.encode()).decode()
