"""A model of one queue, driven by Hypothesis, against the memory broker and the embedded one.

Every step of the machine is one verb; the model says what may come of it. It says no more than SQS
promises: a receive may bring fewer messages than there are, but none that is hidden, gone or foreign.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule, run_state_machine_as_test

from smartpipe import EmbeddedBroker, Queue, RetryPolicy, Service
from smartpipe.message import Message, OutgoingMessage
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.derive import derive
from smartpipe.transports.aws.transport import AwsTransport
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from smartpipe.transports.open import open_aws_transport
from tests.support.events import UserSignedUp
from tests.support.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from smartpipe import Transport

MAX_RECEIVES = 3
HIDDEN_SECONDS = 3
SLACK_SECONDS = 1.0
"""What is due so soon may be there or not: brokers look at their clocks when they like."""
QUEUE = "model"
SHORT = 15
"""Steps of a run whose seconds are real; it is not shrunk, which would take minutes."""
numbers = count()


async def handle(_: UserSignedUp) -> None: ...


def service(name: str) -> Service:
    made = Service(name, queue=Queue(name, max_receive_count=MAX_RECEIVES), retry=RetryPolicy(attempts=1))
    made.subscribe(UserSignedUp)(handle)
    return made


@dataclass
class Expected:
    """What the model knows of a message."""

    visible_at: float
    receives: int = 0
    receipt: str = ""
    deleted: bool = False
    dead: bool = False
    unknown: bool = False


class QueueModel(RuleBasedStateMachine):
    """Send, receive, delete, extend and release, let time pass; what is received too often is dead."""

    receipts = Bundle("receipts")
    loop: asyncio.AbstractEventLoop
    transport: Transport
    most_seconds: int

    def __init__(self) -> None:
        super().__init__()
        self.queue = f"{QUEUE}{next(numbers)}"
        self.messages: dict[str, Expected] = {}
        self.run(self.provision())

    async def provision(self) -> None:
        if isinstance(self.transport, MemoryTransport):
            self.transport.apply(derive([service(self.queue)], NAMING))
        elif isinstance(self.transport, AwsTransport):
            provisioner = Provisioner(self.transport.session)
            await provisioner.apply(await provisioner.plan([service(self.queue)]))

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    @property
    def now(self) -> float:
        return self.loop.time()

    @rule(how_many=st.integers(1, 4))
    def send(self, how_many: int) -> None:
        bodies = [f"{self.queue}-{len(self.messages) + number}" for number in range(how_many)]
        assert self.run(self.transport.send(self.queue, [OutgoingMessage(body, len(body)) for body in bodies])) == []
        self.messages.update({body: Expected(self.now) for body in bodies})

    @rule(target=receipts, most=st.integers(1, 10))
    def receive(self, most: int) -> Any:
        before = self.now
        messages = self.receive_from(self.queue, most)
        assert len(messages) <= most
        assert len({message.message_id for message in messages}) == len(messages)
        for message in messages:
            expected = self.messages[message.body]
            assert not expected.deleted, "received after it was deleted"
            assert not expected.dead, "received after it was moved to the dead-letter queue"
            assert expected.visible_at <= self.now + SLACK_SECONDS, "received while it was hidden"
            expected.receives += 1
            assert message.receive_count == expected.receives <= MAX_RECEIVES
            expected.visible_at = before + HIDDEN_SECONDS
            expected.receipt = message.receipt_handle
        return multiple(*((message.body, message.receipt_handle) for message in messages))

    @rule(receipt=consumes(receipts))
    def delete(self, receipt: tuple[str, str]) -> None:
        body, handle_ = receipt
        expected = self.messages[body]
        failures = self.run(self.transport.delete(self.queue, [handle_]))
        if self.held(expected, handle_):
            assert failures == []
            expected.deleted = True
        elif not expected.deleted:  # an older handle: SQS may delete by it or do nothing
            expected.unknown = True

    @rule(receipt=receipts, seconds=st.sampled_from([0, 2, 6]))
    def change_visibility(self, receipt: tuple[str, str], seconds: int) -> None:
        body, handle_ = receipt
        expected = self.messages[body]
        if not self.held(expected, handle_):
            return
        assert self.run(self.transport.change_visibility(self.queue, [(handle_, seconds)])) == []
        expected.visible_at = self.now + seconds

    @rule(seconds=st.integers(1, 8))
    def let_time_pass(self, seconds: int) -> None:
        self.run(asyncio.sleep(min(seconds, self.most_seconds)))

    @rule()
    def look_for_the_dead(self) -> None:
        for message in self.receive_from(f"{self.queue}-dlq", 10):
            expected = self.messages[message.body]
            assert expected.receives == MAX_RECEIVES, "moved before it was received too often"
            assert not expected.deleted
            expected.dead = True

    def teardown(self) -> None:
        """At the end every message is somewhere: gone because it was deleted, or to be had."""
        wanted = {
            body
            for body, expected in self.messages.items()
            if not (expected.deleted or expected.dead or expected.unknown)
        }
        found: set[str] = set()
        for _ in range(20):
            for queue in (self.queue, f"{self.queue}-dlq"):
                found |= {message.body for message in self.receive_from(queue, 10)}
            if wanted <= found:
                break
            self.run(asyncio.sleep(1))
        assert wanted <= found, f"lost: {wanted - found}"
        assert found.isdisjoint(body for body, expected in self.messages.items() if expected.deleted)

    def receive_from(self, queue: str, most: int) -> list[Message]:
        receive = self.transport.receive
        found: list[Message] = self.run(
            receive(queue, max_messages=most, wait_seconds=0, visibility_timeout_seconds=HIDDEN_SECONDS)
        )
        return found

    def held(self, expected: Expected, handle_: str) -> bool:
        """Whether this handle is the latest, and the message surely still hidden."""
        return expected.receipt == handle_ and not expected.deleted and expected.visible_at > self.now + SLACK_SECONDS


def run_model(
    transport: Transport, loop: asyncio.AbstractEventLoop, *, examples: int, steps: int, most_seconds: int
) -> None:
    machine = type("Machine", (QueueModel,), {"transport": transport, "loop": loop, "most_seconds": most_seconds})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("SMARTPIPE_TEST_EXAMPLES", examples)),
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if steps > SHORT else [Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )


def test_the_memory_broker_does_what_the_model_of_a_queue_allows() -> None:
    loop = VirtualTimeLoop()
    try:
        run_model(MemoryTransport(), loop, examples=150, steps=40, most_seconds=100)
    finally:
        loop.close()


@pytest.mark.usefixtures("fast_broker")
def test_the_embedded_broker_does_what_the_model_of_a_queue_allows(fast_broker: EmbeddedBroker) -> None:
    loop = asyncio.new_event_loop()
    transport = open_aws_transport()
    try:
        run_model(transport, loop, examples=4, steps=SHORT, most_seconds=1)
    finally:
        loop.run_until_complete(transport.aclose())
        loop.close()
    assert fast_broker.backend == "ministack"
