"""Measure the CPU time of reading an event, and of reading a message of a raw handler on the same queue.

``python -m benchmarks.external`` prints the best of --rounds rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from pydantic import BaseModel

from smartpipe import Event, Service, Topic
from smartpipe.consumer.handlers import make_reader
from smartpipe.external import EventBridgeEvent, S3Notification, field
from smartpipe.message import Message
from smartpipe.payload_offload import PayloadOffload

CALLS = 2_000
orders = Topic("orders")
service = Service("billing")


class OrderPlaced(Event, topic=orders, type="order.placed", version="1.0"):
    order_id: str


class Invoice(BaseModel):
    kind: str
    number: int


class Payment(BaseModel):
    cents: int


async def take(message: Any) -> None: ...


service.subscribe(OrderPlaced)(take)
service.subscribe_raw(S3Notification)(take)
service.subscribe_raw(EventBridgeEvent[Payment])(take)
service.subscribe_raw(Invoice, match=field("kind", "invoice"))(take)

EVENT = {
    "specversion": "1.0",
    "type": "order.placed",
    "dataversion": "1.0",
    "source": "shop",
    "id": "0190f5e8-1c2a-7000-8000-000000000000",
    "time": "2026-11-27T10:00:00Z",
    "data": {"order_id": "1"},
}
EVENT_OF_EVENTBRIDGE = {
    "version": "0",
    "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718",
    "detail-type": "Payment Received",
    "source": "bank",
    "account": "111122223333",
    "time": "2026-11-27T10:00:00Z",
    "region": "eu-west-1",
    "resources": [],
    "detail": {"cents": 4200},
}
RECORD_OF_S3 = {
    "eventVersion": "2.1",
    "eventSource": "aws:s3",
    "awsRegion": "eu-west-1",
    "eventTime": "2026-11-27T10:00:00.000Z",
    "eventName": "ObjectCreated:Put",
    "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
    "requestParameters": {"sourceIPAddress": "192.0.2.1"},
    "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810", "x-amz-id-2": "FMyUVURIY8"},
    "s3": {
        "s3SchemaVersion": "1.0",
        "configurationId": "uploads",
        "bucket": {"name": "photos", "ownerIdentity": {"principalId": "A3NL1"}, "arn": "arn:aws:s3:::photos"},
        "object": {
            "key": "2026/photo.jpg",
            "size": 1024,
            "eTag": "d41d8cd98f00b204",
            "sequencer": "0055AED6DCD90281E5",
        },
    },
}
BODIES = {
    "event": EVENT,
    "JSON of another system": {"kind": "invoice", "number": 1},
    "event of EventBridge": EVENT_OF_EVENTBRIDGE,
    "notification of S3": {"Records": [RECORD_OF_S3]},
}


async def measure(body: str) -> float:
    """Return the seconds for each message of one round."""
    reader = make_reader(service.handlers, PayloadOffload())
    message = Message("1", "1", body)
    await reader.read(message)  # builds the validators
    started = time.process_time()
    for _ in range(CALLS):
        await reader.read(message)
    return (time.process_time() - started) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    for name, content in BODIES.items():
        body = json.dumps(content)
        best = min(asyncio.run(measure(body)) for _ in range(rounds))
        print(f"{name:<22} {best * 1e6:6.1f} µs for {len(body):,} bytes")


if __name__ == "__main__":
    main()
