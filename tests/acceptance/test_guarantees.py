"""Every guarantee that the README gives, in the README's order. Hold both beside each other.

``@proves`` quotes the sentences. The first test compares them with the README, so a new sentence there needs a test.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from inspect import getsourcelines
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest

from smartpipe import Delivery, Publisher, Service
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.envelope import encode, wrap
from smartpipe.errors import PublishError
from smartpipe.testing import MemoryBroker, provision
from tests.acceptance.guarantee_services import Followed, Moved, Ordered
from tests.acceptance.guarantees import NOT_GUARANTEES, proved, proves, read_guarantees
from tests.acceptance.transaction_shop import kill
from tests.chaos.delivery_faults import DuplicateDelivery
from tests.support.answers import Refused, failing
from tests.support.proxy import Fault
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from tests.acceptance.guarantees import Guaranteed
    from tests.acceptance.transaction_shop import Shop
    from tests.support.calls import Call

BUDGET_SECONDS = 25


def test_every_guarantee_of_the_readme_is_proved_here_in_its_order_and_no_other() -> None:
    guarantees = [sentence for sentence in read_guarantees() if sentence not in NOT_GUARANTEES]
    lines = {sentence: min(getsourcelines(test)[1] for test in tests) for sentence, tests in proved.items()}

    assert sorted(proved) == sorted(guarantees)
    assert [lines[sentence] for sentence in guarantees] == sorted(lines.values())
    assert set(NOT_GUARANTEES) <= set(read_guarantees())


@proves(
    "At least once, never lost.",
    "The worker deletes a message only after your handler has returned, or after a copy is in the dead-letter queue.",
)
def test_a_message_is_deleted_only_after_its_handler_or_after_its_copy_in_the_dead_letter_queue(
    guaranteed: Guaranteed,
) -> None:
    found_at_delete: list[tuple[int, int]] = []

    def look(_: Call) -> bool:
        copies = sum(guaranteed.queues.depth("guarantees-dlq"))
        found_at_delete.append((len(guaranteed.find("done")), copies))
        return False

    guaranteed.inject("DeleteMessageBatch", when=look)
    worker = guaranteed.start_worker("--concurrency", "1")

    guaranteed.publish(Ordered(name="slow", seconds=1))
    guaranteed.wait_until_empty()
    assert found_at_delete == [(1, 0)]

    guaranteed.publish(Ordered(name="bad", fails=9))
    guaranteed.wait_until_empty()
    assert found_at_delete == [(1, 0), (1, 1)]

    guaranteed.inject("SendMessageBatch", answer=(403, "AccessDenied", "not into the dead-letter queue"))
    guaranteed.publish(Ordered(name="stays", fails=9))
    worker.wait_until(lambda: worker.logged("Cannot write to the dead-letter queue"))
    worker.signal(signal.SIGTERM)
    worker.wait()
    assert found_at_delete == [(1, 0), (1, 1)]
    assert sum(guaranteed.queues.depth("guarantees")) == 1


@proves("`publish` returns when SNS has accepted the event, and raises otherwise.")
@pytest.mark.parametrize("blocking", [False, True])
def test_publish_returns_when_sns_has_accepted_the_event_and_raises_otherwise(
    guaranteed: Guaranteed, blocking: bool
) -> None:
    def publish(name: str) -> str:
        event = Ordered(name=name)
        if blocking:
            with BlockingPublisher("test") as publisher:
                return publisher.publish(event)

        async def run() -> str:
            async with Publisher("test") as publisher:
                return await publisher.publish(event)

        return asyncio.run(run())

    event_id = publish("accepted")
    assert [json.loads(message["Body"])["id"] for message in guaranteed.queues.take("guarantees")] == [event_id]

    for fault in (
        {"answer": (403, "AuthorizationError", "not allowed")},
        {"rewrite": failing({0: Refused("InvalidParameter", True)})},
    ):
        guaranteed.inject("PublishBatch", times=1, **fault)
        with pytest.raises(PublishError) as raised:
            publish("refused")
        assert [failure.retryable for failure in raised.value.failures] == [False]


@proves("Closing a publisher sends all pending events, or raises an error that lists the events that remain.")
async def test_closing_a_publisher_sends_all_pending_events_or_lists_those_that_remain(guaranteed: Guaranteed) -> None:
    async def publish_and_close(timeout_seconds: float) -> tuple[list[str | BaseException], list[str]]:
        publisher = Publisher("test")
        tasks = [asyncio.create_task(publisher.publish(Ordered(name=f"pending{n}"))) for n in range(25)]
        await asyncio.sleep(0)  # all are pending, and none has been sent
        remaining: list[str] = []
        try:
            await publisher.aclose(timeout_seconds=timeout_seconds)
        except PublishError as error:
            remaining = [failure.event_id for failure in error.failures]
        return await asyncio.gather(*tasks, return_exceptions=True), remaining

    results, remaining = await publish_and_close(30)
    assert remaining == []
    assert all(isinstance(result, str) for result in results)
    taken = await asyncio.to_thread(guaranteed.queues.take, "guarantees")
    assert {json.loads(message["Body"])["id"] for message in taken} == set(results)

    guaranteed.proxy.refuse()
    results, remaining = await publish_and_close(1)
    assert all(isinstance(result, PublishError) for result in results)
    assert len(set(remaining)) == 25


@proves("Retries wait in SQS, with full jitter.")
def test_retries_wait_in_sqs_with_full_jitter(guaranteed: Guaranteed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    worker = guaranteed.start_worker()
    guaranteed.publish(Ordered(name="waiting", fails=1))
    guaranteed.wait_for("begun waiting")
    worker.wait_until(lambda: worker.logged("Handler failed, will retry"))
    worker.signal(signal.SIGKILL)
    worker.wait()
    guaranteed.start_worker()
    guaranteed.wait_for("done waiting")  # the retry did not die with the first worker
    assert [step.split()[-1] for step in guaranteed.find("begun waiting")][-1] == "2"

    waits = [seconds for run in _run_default_retries(100) for seconds in _waits(run)[4:5]]
    assert max(waits) <= 33  # base 2 s, doubled four times, and rounded up
    assert sum(wait < 11 for wait in waits) > 15  # a third of them
    assert sum(wait > 22 for wait in waits) > 15


@proves("By default there are eight attempts over two minutes on average.")
def test_by_default_there_are_eight_attempts_over_two_minutes_on_average() -> None:
    runs = _run_default_retries(200)

    assert {len(run) for run in runs} == {8}
    assert 90 < sum(run[-1] - run[0] for run in runs) / len(runs) < 150


def _run_default_retries(count: int) -> list[list[float]]:
    """Return the times of all attempts of *count* events whose handler always fails, on virtual time."""
    attempts: dict[str, list[float]] = {}
    service = Service("default")

    @service.subscribe(Followed)
    async def fail(event: Followed) -> None:
        attempts.setdefault(event.name, []).append(asyncio.get_running_loop().time())
        raise ValueError("always")

    async def run() -> None:
        async with MemoryBroker(service, concurrency=count) as broker:
            for number in range(count):
                await broker.publish(Followed(name=str(number)))
            await broker.drain()

    asyncio.run(run())
    return list(attempts.values())


def _waits(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


@proves("Then the message goes to the dead-letter queue, with the reason and the traceback in one attribute.")
def test_then_the_message_goes_to_the_dead_letter_queue_with_reason_and_traceback(guaranteed: Guaranteed) -> None:
    guaranteed.start_worker()
    event_ids = guaranteed.publish(Ordered(name="bad", fails=9))
    until_blocking(lambda: guaranteed.queues.depth("guarantees-dlq") == (1, 0))

    (message,) = guaranteed.queues.take("guarantees-dlq")
    assert json.loads(message["Body"])["id"] == event_ids[0]
    assert len(guaranteed.find("begun bad")) == 3
    reason = json.loads(message["MessageAttributes"][REASON_ATTRIBUTE]["StringValue"])
    assert (reason["kind"], reason["message"], reason["receive_count"]) == ("retries-exhausted", "bad fails", 3)
    assert "guarantee_services.py" in reason["traceback"]


@proves(
    "Bad messages neither loop nor vanish.",
    "A message that is not JSON, not a CloudEvent, of an unknown type or major version, or that fails validation goes "
    "to the dead-letter queue immediately, with the reason.",
)
def test_bad_messages_go_to_the_dead_letter_queue_immediately_with_the_reason(guaranteed: Guaranteed) -> None:
    good = json.loads(encode(wrap(Ordered(name="good"), source="test")))
    bodies = {
        "not-json": ["not JSON"],
        "not-cloudevent": ['{"no": "CloudEvent"}', "[]"],
        "unknown-event-type": [json.dumps({**good, "type": "none"}), json.dumps({**good, "dataversion": "2.0"})],
        "invalid-data": [json.dumps({**good, "data": {"name": 1}})],
    }
    expected = {body: kind for kind, found in bodies.items() for body in found}
    guaranteed.start_worker()
    guaranteed.queues.send("guarantees", *expected, json.dumps(good))
    guaranteed.wait_for("done good")
    until_blocking(lambda: guaranteed.queues.depth("guarantees-dlq") == (len(expected), 0))

    found = {message["Body"]: message for message in guaranteed.queues.take("guarantees-dlq")}
    reasons = {body: json.loads(m["MessageAttributes"][REASON_ATTRIBUTE]["StringValue"]) for body, m in found.items()}
    assert {body: reason["kind"] for body, reason in reasons.items()} == expected
    assert {reason["receive_count"] for reason in reasons.values()} == {1}
    guaranteed.wait_until_empty()


@proves(
    "A slow handler does not run twice while its process lives: the worker extends the message's visibility timeout.",
)
def test_a_slow_handler_does_not_run_twice_while_its_process_lives(
    guaranteed: Guaranteed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    guaranteed.start_worker()
    guaranteed.start_worker()
    guaranteed.publish(Ordered(name="slow", seconds=6))

    guaranteed.wait_for("done slow")
    guaranteed.wait_until_empty()

    assert len(guaranteed.find("begun slow")) == 1
    assert "ChangeMessageVisibilityBatch" in guaranteed.proxy.operations()


@proves(
    "A deployment loses nothing.",
    "On SIGTERM, the worker stops receiving, returns the messages that it has not started, lets handlers finish, "
    "deletes their messages and exits with 0, all within 25 seconds.",
)
def test_a_deployment_loses_nothing(guaranteed: Guaranteed) -> None:
    worker = guaranteed.start_worker("--concurrency", "10", "--wait-seconds", "10")
    guaranteed.publish(*(Ordered(name=f"started{number}", seconds=5) for number in range(4)))
    guaranteed.wait_for("begun", 4)
    until_blocking(lambda: any(call.operation == "ReceiveMessage" for call in guaranteed.proxy.open_calls))
    receives = guaranteed.proxy.operations().count("ReceiveMessage")

    worker.signal(signal.SIGTERM)
    started = time.monotonic()
    worker.wait_until(lambda: worker.logged("draining"))
    guaranteed.publish(*(Ordered(name=f"late{number}") for number in range(6)))
    code = worker.wait()

    assert code == 0
    assert time.monotonic() - started < BUDGET_SECONDS
    assert guaranteed.proxy.operations().count("ReceiveMessage") == receives
    assert len(guaranteed.find("done started")) == len(guaranteed.find("begun")) == 4
    assert guaranteed.queues.depth("guarantees") == (6, 0)  # the open call brought them, and they are visible again

    guaranteed.start_worker()
    guaranteed.wait_for("done late", 6)
    guaranteed.wait_until_empty()
    assert len(guaranteed.find("begun")) == 10


@proves(
    "Your handler can see an event more than once if:",
    "a worker is killed after the handler's work and before the delete",
)
def test_again_if_a_worker_is_killed_after_the_work_and_before_the_delete(
    guaranteed: Guaranteed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    lost = guaranteed.inject("DeleteMessageBatch", drop="request")
    worker = guaranteed.start_worker()
    guaranteed.publish(Ordered(name="again"))
    worker.wait_until(lambda: lost.hits)

    kill(worker)
    guaranteed.proxy.faults.clear()
    guaranteed.start_worker()

    guaranteed.wait_for("done again", 2)
    guaranteed.wait_until_empty()


@proves("a delete or its response is lost")
def test_again_if_a_delete_is_lost(guaranteed: Guaranteed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    guaranteed.inject("DeleteMessageBatch", drop="request")
    guaranteed.start_worker()
    guaranteed.publish(Ordered(name="again"))

    guaranteed.wait_for("done again", 2)
    guaranteed.proxy.faults.clear()
    guaranteed.wait_until_empty()


@proves("the event loop is blocked past the visibility timeout")
def test_again_if_the_event_loop_is_blocked_past_the_visibility_timeout(
    guaranteed: Guaranteed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    guaranteed.publish(Ordered(name="again", blocks=6))
    guaranteed.start_worker()
    guaranteed.wait_for("begun again")
    guaranteed.start_worker()

    guaranteed.wait_for("begun again", 2)


@proves("a drain cancels a handler at its deadline")
def test_again_if_a_drain_cancels_a_handler_at_its_deadline(guaranteed: Guaranteed) -> None:
    worker = guaranteed.start_worker("--drain-seconds", "6")
    guaranteed.publish(Ordered(name="again", seconds=60))
    guaranteed.wait_for("begun again")

    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert guaranteed.find("done") == []

    guaranteed.start_worker()
    guaranteed.wait_for("begun again", 2)


@proves("`publish` is repeated after a lost response")
def test_again_if_publish_is_repeated_after_a_lost_response(guaranteed: Guaranteed) -> None:
    lost = guaranteed.inject("PublishBatch", drop="reply", times=1)
    guaranteed.start_worker()
    event_ids = guaranteed.publish(Ordered(name="again"))

    guaranteed.wait_for("done again", 2)
    assert lost.hits == len(event_ids) == 1
    assert {step.split()[2] for step in guaranteed.find("done")} == set(event_ids)


@proves("SNS or SQS delivers a message again, which both may do")
def test_again_if_sqs_delivers_a_message_again(guaranteed: Guaranteed) -> None:
    guaranteed.inject("ReceiveMessage", rewrite=DuplicateDelivery(Random(1)))
    guaranteed.start_worker("--concurrency", "1")
    guaranteed.publish(*(Ordered(name=f"event{number}") for number in range(20)))

    until_blocking(lambda: len(guaranteed.find("done")) > len({step.split()[1] for step in guaranteed.find("done")}))


@proves("The event's id (`delivery.event_id`) is the same each time, and idempotent handlers use it.")
def test_the_id_of_an_event_is_the_same_each_time_and_idempotent_handlers_use_it(
    guaranteed: Guaranteed, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", postgres_url)
    envelope = wrap(Ordered(name="event", fails=1), source="test")
    guaranteed.start_worker()
    claiming = guaranteed.start_worker(target="claiming")
    for service, start in (("guarantees", "done"), ("guarantees-claiming", "claimed")):
        guaranteed.queues.send(service, encode(envelope))
        guaranteed.wait_for(f"{start} event")
        guaranteed.queues.send(service, encode(envelope))

    guaranteed.wait_for("begun event", 4)  # the first delivery of each message fails
    guaranteed.wait_until_empty("guarantees-claiming")
    claiming.signal(signal.SIGTERM)

    assert claiming.wait() == 0
    assert {step.split()[2] for step in guaranteed.find("begun event")} == {envelope.id}
    assert guaranteed.find("claimed") == [f"claimed event {envelope.id}"]


@proves("Order is kept only within each key on FIFO topics and queues.")
def test_order_is_kept_only_within_each_key_on_fifo_topics_and_queues(
    guaranteed: Guaranteed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    events = [Moved(account="ab"[number % 2], number=number, fails=int(number == 2)) for number in range(20)]
    guaranteed.publish(*events)
    guaranteed.start_worker(target="ordering")
    guaranteed.start_worker(target="ordering")
    guaranteed.wait_for("moved", 20)

    moved = [step.split()[1:] for step in guaranteed.find("moved")]
    for account, first in (("a", 0), ("b", 1)):
        assert [int(number) for found, number in moved if found == account] == list(range(first, 20, 2))
    assert _order_on_a_standard_queue() != list(range(20))


def _order_on_a_standard_queue() -> list[int]:
    """Return the order in which SQS may deliver 20 events, as the memory broker simulates it."""
    service, found = Service("standard"), list[int]()

    @service.subscribe(Followed)
    async def handle(event: Followed) -> None:
        found.append(int(event.name))

    async def run() -> None:
        async with MemoryBroker(service, concurrency=1, shuffle=True) as broker:
            await asyncio.gather(*(broker.publish(Followed(name=str(number))) for number in range(20)))
            await broker.drain()

    asyncio.run(run())
    return found


@proves(
    "Then one transaction commits the row that your handler writes, the record that this event has been handled, and "
    "the event that follows:",
)
def test_one_transaction_commits_the_row_the_record_and_the_event(shop: Shop) -> None:
    worker = shop.start_worker()
    shop.place_order()
    worker.wait_until(lambda: shop.database.column("SELECT order_id FROM charges"))

    tables = ("charges", "smartpipe_claims", "smartpipe_outbox")
    transactions = [shop.database.column(f"SELECT xmin::text FROM {table}") for table in tables]
    assert [len(found) for found in transactions] == [1, 1, 1]
    assert len({found[0] for found in transactions}) == 1


@proves("Kill the worker or the relay at any point: each of the three happens once, and `OrderCharged` has one id.")
@pytest.mark.timeout(120)  # a claim outlives its killed worker by half a minute
def test_each_of_the_three_happens_once_if_the_worker_and_the_relay_are_killed(shop: Shop) -> None:
    worker = shop.start_worker()
    shop.locks.execute("BEGIN; LOCK TABLE smartpipe_outbox")
    shop.place_order()
    shop.wait_until_stuck(worker, "INSERT INTO smartpipe_outbox")  # after its own row, and before the commit
    kill(worker)
    shop.locks.execute("ROLLBACK")

    lost = shop.proxy.add(Fault("DeleteMessageBatch", drop="request"))
    worker = shop.start_worker()
    worker.wait_until(lambda: lost.hits)  # after the commit, and before the delete
    kill(worker)

    unanswered = shop.proxy.add(Fault("PublishBatch", drop="reply"))
    relay = shop.start("relay")
    relay.wait_until(lambda: unanswered.hits)  # SNS has accepted the event, and the relay does not know
    kill(relay)

    shop.proxy.faults.clear()
    shop.finish()


@proves("Events that a handler publishes without a database also have the same id at every attempt.")
def test_events_that_a_handler_publishes_have_the_same_id_at_every_attempt(
    guaranteed: Guaranteed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPTANCE_LEASE", "2")
    listener = Service("listener")

    @listener.subscribe(Followed)
    async def listen(_: Followed, delivery: Delivery) -> None: ...

    asyncio.run(provision(listener))
    guaranteed.start_worker()
    guaranteed.publish(Ordered(name="publishes", fails=2, publishes=True))
    guaranteed.wait_for("done publishes")

    messages = guaranteed.queues.take("listener")
    assert len(messages) == 3
    assert len({json.loads(message["Body"])["id"] for message in messages}) == 1
