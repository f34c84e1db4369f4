"""What SQS's standard queues may do with messages on their way to a worker, and no broker here does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.support.calls import Call

    Message = dict[str, Any]

SHARE = 0.5
HANDLES_EXPIRED = ("ReceiptHandleIsInvalid", "InvalidParameterValue")


class Deliveries:
    """Changes the messages of ReceiveMessage's answers; a Rewrite of ``tests.support.proxy``.

    No answer gets more messages than it had. What is left out comes again when its visibility timeout ends.
    """

    def __init__(self, random: Random) -> None:
        self.hits = 0
        self._random = random
        self._kept: list[Message] = []

    def __call__(self, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        answer = json.loads(body)
        if status == 200 and answer.get("Messages"):
            answer["Messages"] = self.change(answer["Messages"])
            return status, headers, json.dumps(answer).encode()
        return status, headers, body

    def change(self, messages: list[Message]) -> list[Message]:
        raise NotImplementedError


class Doubled(Deliveries):
    """Delivers a message a second time, to whoever polls then: "at least once" (SQS Developer Guide)."""

    def change(self, messages: list[Message]) -> list[Message]:
        if self._kept and self._random.random() < SHARE:
            self.hits += 1
            return [self._kept.pop(), *messages[1:]]
        self._kept.append(self._random.choice(messages))
        return messages


class Reordered(Deliveries):
    """Mixes the messages of an answer, and swaps one with an earlier answer: "best-effort ordering"."""

    def change(self, messages: list[Message]) -> list[Message]:
        if len(messages) == 1 and (not self._kept or self._random.random() < SHARE):
            return messages  # the last of all must come through
        self.hits += 1
        self._random.shuffle(messages)
        self._kept.append(messages.pop())
        return [*messages, *([self._kept.pop(0)] if len(self._kept) > 1 else [])]


def handles_expired(random: Random) -> Callable[[Call], tuple[int, dict[str, str], bytes]]:
    """Answer a delete as SQS does when the messages are not the caller's any more; nothing is deleted."""

    def respond(call: Call) -> tuple[int, dict[str, str], bytes]:
        said = {"SenderFault": True, "Message": "The receipt handle has expired."}
        failed = [{"Id": entry["Id"], "Code": random.choice(HANDLES_EXPIRED), **said} for entry in call.entries]
        body = json.dumps({"Successful": [], "Failed": failed}).encode()
        return 200, {"Content-Type": "application/x-amz-json-1.0"}, body

    return respond
