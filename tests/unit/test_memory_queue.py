"""A queue in memory keeps to the rules and limits of SQS, to the second."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from smartpipe.message import Attribute, Failure, OutgoingMessage
from smartpipe.transports.memory.queue import DeliveryFaults, MemoryQueue

PLAIN = DeliveryFaults(Random(1))


@dataclass
class World:
    """Queues that share a clock."""

    now: float = 1_000.0
    queues: dict[str, MemoryQueue] = field(default_factory=dict)
    redriven: list[tuple[str, str]] = field(default_factory=list)

    def queue(self, name: str = "q", faults: DeliveryFaults = PLAIN, **attributes: Any) -> MemoryQueue:
        self.queues[name] = MemoryQueue(
            name,
            attributes,
            clock=lambda: self.now,
            find_queue=lambda arn: self.queues.get(arn.rpartition(":")[2]),
            on_redrive=lambda queue, stored: self.redriven.append((queue, stored.content.body)),
            faults=faults,
        )
        return self.queues[name]


@pytest.fixture
def world() -> World:
    return World()


def message(body: str = "a", group: str | None = None, **fields: Any) -> OutgoingMessage:
    if group is not None:
        fields = {"group_id": group, "deduplication_id": body, **fields}
    return OutgoingMessage(body, len(body), **fields)


def send(queue: MemoryQueue, bodies: str, group: str | None = None) -> None:
    for body in bodies:
        assert queue.send(message(body, group)) is None


def receive(queue: MemoryQueue, count: int = 10, seconds: float = 30) -> str:
    return "".join(stored.content.body for stored in queue.receive(count, seconds))


def receipts(queue: MemoryQueue, seconds: float = 30) -> list[str]:
    return [stored.receipt for stored in queue.receive(10, seconds)]


def test_a_message_is_hidden_until_its_timeout_and_no_longer(world: World) -> None:
    queue = world.queue()
    send(queue, "abc")

    assert (receive(queue, 2, 30), receive(queue, 2, 40), receive(queue)) == ("ab", "c", "")
    assert (queue.depth, queue.next_visible_at()) == ((0, 3, 0), 1_030)
    world.now = 1_029.9
    assert receive(queue) == ""
    world.now = 1_030.0
    assert (receive(queue), queue.depth) == ("ab", (0, 3, 0))
    world.now = 1_040.0
    assert (queue.depth, receive(queue)) == ((1, 2, 0), "c")
    assert [stored.receive_count for stored in queue.contents()] == [2, 2, 2]
    assert [stored.first_received_at for stored in queue.contents()] == [1_000] * 3
    assert [stored.received_at for stored in queue.contents()] == [1_030, 1_030, 1_040]


@pytest.mark.parametrize(("own", "default", "expected"), [(0, 0, 0), (5, 0, 5), (0, 7, 7), (5, 7, 5)])
def test_a_message_is_delayed_by_its_own_delay_or_that_of_the_queue(
    own: int, default: int, expected: int, world: World
) -> None:
    queue = world.queue(DelaySeconds=str(default))
    queue.send(message(delay_seconds=own))

    assert queue.depth == ((0, 0, 1) if expected else (1, 0, 0))
    assert queue.next_visible_at() == (1_000 + expected if expected else None)
    world.now += expected - 0.1
    assert receive(queue) == ("" if expected else "a")
    if expected:
        world.now += 0.1
        assert receive(queue) == "a"


def test_after_the_last_allowed_receive_a_message_moves_with_its_id_its_count_and_its_age(world: World) -> None:
    policy = {"deadLetterTargetArn": "arn:aws:sqs:r:1:dead", "maxReceiveCount": 2}
    queue, dead = world.queue(RedrivePolicy=policy), world.queue("dead")
    send(queue, "ab")
    for _ in range(2):
        assert receive(queue, seconds=10) == "ab"
        world.now += 10

    send(queue, "c")
    assert receive(queue, count=2) == "c"  # the moved messages take no place in the response
    assert (len(queue), len(dead), world.redriven) == (1, 2, [("q", "a"), ("q", "b")])
    [first, _] = dead.contents()
    assert (first.sent_at, first.receive_count, first.first_received_at) == (1_000, 2, 1_000)
    assert first.moved_from == "arn:aws:sqs:r:1:q"
    assert receive(dead) == "ab"
    assert [stored.receive_count for stored in dead.contents()] == [3, 3]


def test_a_message_stays_where_its_dead_letter_queue_does_not_exist(world: World) -> None:
    queue = world.queue(RedrivePolicy={"deadLetterTargetArn": "arn:aws:sqs:r:1:none", "maxReceiveCount": 1})
    send(queue, "a")

    assert [receive(queue, seconds=0) for _ in range(3)] == ["a"] * 3


def test_on_a_fifo_queue_a_moved_message_begins_a_new_life(world: World) -> None:
    policy = {"deadLetterTargetArn": "arn:aws:sqs:r:1:dead.fifo", "maxReceiveCount": 1}
    queue, dead = world.queue("q.fifo", RedrivePolicy=policy), world.queue("dead.fifo")
    send(queue, "ab", "g")
    assert receive(queue, 1, seconds=10) == "a"
    world.now += 10

    assert receive(queue) == "b"
    assert [stored.sent_at for stored in dead.contents()] == [1_010]
    assert dead.contents()[0].moved_from == "arn:aws:sqs:r:1:q.fifo"


@pytest.mark.parametrize("attributes", [{}, {"MessageRetentionPeriod": "345600"}])
def test_a_message_is_kept_for_the_retention_period(attributes: dict[str, Any], world: World) -> None:
    queue = world.queue(**attributes)
    send(queue, "a")
    world.now += 10
    send(queue, "b")

    world.now = 1_000 + 345_600
    assert (queue.depth.visible, len(queue)) == (2, 2)
    world.now += 0.1
    assert queue.depth.visible == 1
    world.now += 9.9
    assert receive(queue, seconds=0) == "b"
    world.now += 0.1
    assert (receive(queue), queue.contents(), len(queue)) == ("", [], 0)


def test_a_moved_message_expires_by_its_age_on_a_standard_queue(world: World) -> None:
    policy = {"deadLetterTargetArn": "arn:aws:sqs:r:1:dead", "maxReceiveCount": 1}
    queue, dead = world.queue(RedrivePolicy=policy), world.queue("dead", MessageRetentionPeriod="100")
    send(queue, "a")
    receive(queue, seconds=90)
    world.now += 90
    receive(queue)

    assert len(dead.contents()) == 1
    world.now += 10.1
    assert dead.contents() == []


def test_only_the_latest_receipt_deletes_from_a_standard_queue(world: World) -> None:
    queue = world.queue()
    send(queue, "a")
    [first] = receipts(queue, seconds=5)
    world.now += 5
    [second] = receipts(queue, seconds=5)
    world.now += 5  # visible again: the receipt is still the latest

    assert (queue.delete(first), len(queue)) == (None, 1)
    assert (queue.delete(second), len(queue)) == (None, 0)
    assert queue.delete(second) is None


@pytest.mark.parametrize("receipt", ["", "x", "#", "id#1#other", "id#1#notq", "id#1q"])
def test_a_receipt_of_another_queue_is_invalid(receipt: str, world: World) -> None:
    queue = world.queue()

    for refused in (queue.delete(receipt), queue.change_visibility(receipt, 5)):
        assert refused is not None
        assert refused[0] == "ReceiptHandleIsInvalid"


def test_on_a_fifo_queue_a_receipt_expires_with_its_visibility_timeout(world: World) -> None:
    queue = world.queue("q.fifo")
    send(queue, "a", "g")
    [first] = receipts(queue, seconds=5)
    world.now += 5
    assert (queue.delete(first) or ("",))[0] == "InvalidParameterValue"
    [second] = receipts(queue, seconds=5)
    assert (queue.delete(first) or ("",))[0] == "InvalidParameterValue"
    world.now += 4.9

    assert (queue.delete(second), len(queue)) == (None, 0)


def test_a_visibility_timeout_counts_from_the_call(world: World) -> None:
    queue = world.queue()
    send(queue, "a")
    [receipt] = receipts(queue, seconds=10)
    world.now += 9
    assert queue.change_visibility(receipt, 20) is None
    world.now += 19.9
    assert (receive(queue), queue.next_visible_at()) == ("", 1_029)
    world.now = 1_029
    assert (queue.change_visibility(receipt, 5) or ("",))[0] == "MessageNotInflight"
    assert receive(queue) == "a"
    assert (queue.change_visibility(receipt, 5) or ("",))[0] == "MessageNotInflight"


def test_a_message_may_be_made_visible_at_once(world: World) -> None:
    queue = world.queue()
    send(queue, "ab")
    [first, second] = receipts(queue)

    assert queue.change_visibility(second, 0) is None
    assert receive(queue) == "b"
    assert queue.delete(first) is None
    assert (queue.change_visibility(first, 5) or ("",))[0] == "MessageNotInflight"


@pytest.mark.parametrize(("after", "seconds", "allowed"), [
    (0, 43_200, True), (0, 43_201, False), (0, -1, False), (100, 43_100, True), (100, 43_101, False),
])  # fmt: skip
def test_a_message_is_hidden_for_at_most_twelve_hours(
    after: float, seconds: float, allowed: bool, world: World
) -> None:
    queue = world.queue()
    send(queue, "a")
    [receipt] = receipts(queue, seconds=1_000)
    world.now += after

    refused = queue.change_visibility(receipt, seconds)

    assert (refused is None) is allowed
    assert refused is None or refused[0] == "InvalidParameterValue"


def test_a_group_of_a_fifo_queue_waits_for_its_first_message_and_other_groups_do_not(world: World) -> None:
    queue = world.queue("q.fifo")
    send(queue, "abc", "g")
    send(queue, "xy", "h")

    assert receive(queue, 1) == "a"
    assert receive(queue) == "xy"
    world.now += 30
    assert receive(queue, 4) == "abcx"
    assert queue.next_visible_at() == 1_060


def test_the_next_message_of_a_group_follows_the_deletion_of_the_one_before(world: World) -> None:
    queue = world.queue("q.fifo")
    send(queue, "ab", "g")
    [stored] = queue.receive(1, 30)

    assert (receive(queue), queue.delete(stored.receipt), receive(queue)) == ("", None, "b")


def test_a_fifo_queue_accepts_an_id_again_after_five_minutes(world: World) -> None:
    queue = world.queue("q.fifo")
    send(queue, "a", "g")
    [receipt] = receipts(queue)
    queue.delete(receipt)
    for now, length in ((1_299.9, 0), (1_300.0, 1), (1_599.9, 1), (1_600.0, 2)):
        world.now = now
        assert queue.send(message("a", "g")) is None
        assert len(queue) == length


@pytest.mark.parametrize(("name", "fields", "code"), [
    ("q", {}, None),
    ("q", {"deduplication_id": "x"}, "InvalidParameterValue"),
    ("q", {"group_id": "x"}, None),
    ("q", {"delay_seconds": 900}, None),
    ("q", {"delay_seconds": 901}, "InvalidParameterValue"),
    ("q", {"delay_seconds": -1}, "InvalidParameterValue"),
    ("q", {"body": "\x00"}, "InvalidMessageContents"),
    ("q", {"body": ""}, "InvalidMessageContents"),
    ("q", {"size_bytes": 1_048_576}, None),
    ("q", {"size_bytes": 1_048_577}, "InvalidParameterValue"),
    ("q", {"attributes": {f"a{n}": Attribute("String", "x") for n in range(10)}}, None),
    ("q", {"attributes": {f"a{n}": Attribute("String", "x") for n in range(11)}}, "InvalidParameterValue"),
    ("q.fifo", {"group_id": "g", "deduplication_id": "x"}, None),
    ("q.fifo", {"deduplication_id": "x"}, "MissingParameter"),
    ("q.fifo", {"group_id": "g"}, "InvalidParameterValue"),
    ("q.fifo", {"group_id": "g", "deduplication_id": "x", "delay_seconds": 5}, "InvalidParameterValue"),
], ids=str)  # fmt: skip
def test_a_message_that_sqs_would_refuse_is_refused(
    name: str, fields: dict[str, Any], code: str | None, world: World
) -> None:
    failure = world.queue(name).send(OutgoingMessage(**{"body": "a", "size_bytes": 1, **fields}))

    assert (None if failure is None else failure.code) == code
    assert failure is None or (failure.position, failure.retryable) == (0, False)


def test_a_queue_may_have_a_lower_limit_of_its_own(world: World) -> None:
    queue = world.queue(MaximumMessageSize="1024")

    assert queue.send(OutgoingMessage("a", 1_024)) is None
    assert isinstance(queue.send(OutgoingMessage("a", 1_025)), Failure)


def test_a_duplicate_of_a_standard_queue_is_delivered_as_often_as_the_share_says(world: World) -> None:
    queue = world.queue(faults=DeliveryFaults(Random(1), duplicate_share=0.3))
    plain, fifo = world.queue("plain"), world.queue("q.fifo", faults=DeliveryFaults(Random(1), duplicate_share=0.999))
    for number in range(1_000):
        for one in (queue, plain):
            one.send(message(str(number)))
    send(fifo, "a", "g")

    for one in (queue, plain):
        while one.receive(10, 30):
            pass
    counts = [stored.receive_count for stored in queue.contents()]
    assert 350 < sum(counts) - 1_000 < 520  # 0.3 / 0.7 of 1,000
    assert {stored.receive_count for stored in plain.contents()} == {1}
    assert (receive(fifo), receive(fifo)) == ("a", "")


def test_a_shuffled_queue_delivers_every_message_in_another_order(world: World) -> None:
    queue = world.queue(faults=DeliveryFaults(Random(1), shuffle=True))
    send(queue, "abcdefghij")

    found = receive(queue, 4) + receive(queue, 4) + receive(queue, 4)

    assert sorted(found) == list("abcdefghij")
    assert found != "abcdefghij"
    assert [stored.content.body for stored in queue.contents()] == list("abcdefghij")
