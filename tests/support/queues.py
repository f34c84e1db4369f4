"""Send to queues and inspect them, with boto3."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE

if TYPE_CHECKING:
    from types_boto3_sqs import SQSClient


class Queues:
    """Queues by their logical names, under the environment's prefix."""

    def __init__(self, sqs: SQSClient) -> None:
        self._sqs = sqs

    def url(self, name: str) -> str:
        return self._sqs.get_queue_url(QueueName=os.environ["SMARTPIPE_PREFIX"] + name)["QueueUrl"]

    def depth(self, name: str) -> tuple[int, int]:
        """Return the number of visible messages, and of those in flight."""
        names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes: Any = self._sqs.get_queue_attributes(QueueUrl=self.url(name), AttributeNames=names)["Attributes"]
        return int(attributes[names[0]]), int(attributes[names[1]])

    def send(self, name: str, *bodies: str) -> None:
        for body in bodies:
            self._sqs.send_message(QueueUrl=self.url(name), MessageBody=body)

    def take(self, name: str) -> list[dict[str, Any]]:
        """Receive and delete all visible messages."""
        url, found = self.url(name), list[dict[str, Any]]()
        while True:
            answer: Any = self._sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], MessageSystemAttributeNames=["All"]
            )
            if not answer.get("Messages"):
                return found
            for message in answer["Messages"]:
                self._sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                found.append(message)

    def dead_letter_reasons(self, service: str) -> list[dict[str, Any]]:
        """Receive and delete the dead-letter messages of the service, and return their reasons."""
        return [
            json.loads(message["MessageAttributes"][REASON_ATTRIBUTE]["StringValue"])
            for message in self.take(f"{service}-dlq")
        ]
