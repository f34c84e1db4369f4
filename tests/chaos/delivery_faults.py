"""Faults that SQS permits and local brokers do not show: duplicates, disorder, and expired receipt handles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.support.calls import Call

    Message = dict[str, Any]

SHARE = 0.5
EXPIRED_HANDLE_CODES = ("ReceiptHandleIsInvalid", "InvalidParameterValue")


class DeliveryFault:
    """Changes the messages in responses to ReceiveMessage. It is a Rewrite of ``tests.support.proxy``.

    No response gets more messages than it had. A message that is left out reappears after its visibility timeout.
    """

    def __init__(self, random: Random) -> None:
        self.hits = 0
        self._random = random
        self._withheld: list[Message] = []

    def __call__(self, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        response = json.loads(body)
        if status == 200 and response.get("Messages"):
            response["Messages"] = self.change(response["Messages"])
            return status, headers, json.dumps(response).encode()
        return status, headers, body

    def change(self, messages: list[Message]) -> list[Message]:
        raise NotImplementedError


class DuplicateDelivery(DeliveryFault):
    """Delivers a message a second time, in a later response: "at least once" (SQS Developer Guide)."""

    def change(self, messages: list[Message]) -> list[Message]:
        if self._withheld and self._random.random() < SHARE:
            self.hits += 1
            return [self._withheld.pop(), *messages[1:]]
        self._withheld.append(self._random.choice(messages))
        return messages


class ReorderedDelivery(DeliveryFault):
    """Shuffles the messages of a response, and exchanges one with an earlier response: "best-effort ordering"."""

    def change(self, messages: list[Message]) -> list[Message]:
        if len(messages) == 1 and (not self._withheld or self._random.random() < SHARE):
            return messages  # the last message must be delivered
        self.hits += 1
        self._random.shuffle(messages)
        self._withheld.append(messages.pop())
        return [*messages, *([self._withheld.pop(0)] if len(self._withheld) > 1 else [])]


def create_expired_handles(random: Random) -> Callable[[Call], tuple[int, dict[str, str], bytes]]:
    """Return a function that responds to a delete as SQS does for expired receipt handles. It deletes nothing."""

    def respond(call: Call) -> tuple[int, dict[str, str], bytes]:
        error = {"SenderFault": True, "Message": "The receipt handle has expired."}
        failed = [{"Id": entry["Id"], "Code": random.choice(EXPIRED_HANDLE_CODES), **error} for entry in call.entries]
        body = json.dumps({"Successful": [], "Failed": failed}).encode()
        return 200, {"Content-Type": "application/x-amz-json-1.0"}, body

    return respond
