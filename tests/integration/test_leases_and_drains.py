"""What a consumer does with time: long handlers, slow neighbours, stops. On every broker."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError, Delivery, Publisher, Queue, Service, TransportError
from smartpipe.envelope import encode, wrap
from smartpipe.testing import provision, working
from smartpipe.transports.open import open_aws_transport
from tests.support.events import ADA, UserSignedUp
from tests.support.waiting import until

if TYPE_CHECKING:
    from smartpipe import EmbeddedBroker
    from tests.support.queues import Queues

pytestmark = pytest.mark.usefixtures("broker")
BODY = encode(wrap(ADA, source="test"))


def service_with_lease(seconds: int) -> Service:
    return Service("mailer", queue=Queue("mailer", visibility_timeout_seconds=seconds))


async def test_fault_01_a_handler_of_three_visibility_timeouts_runs_once(queues: Queues) -> None:
    service, runs = service_with_lease(2), list[int]()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        runs.append(delivery.receive_count)
        await asyncio.sleep(6)
        assert not delivery.lease_lost

    await provision(service)
    queues.send("mailer", BODY)
    async with working(service) as worker:
        await until(lambda: worker.consumers and worker.consumers[0].counters.handled == 1)

    assert runs == [1]
    assert queues.depth("mailer") == (0, 0)


async def test_fault_09_an_async_handler_that_blocks_the_loop_can_see_its_lost_lease(queues: Queues) -> None:
    service, lost = service_with_lease(1), list[bool]()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        time.sleep(1.5)  # noqa: ASYNC251 - the very fault
        lost.append(delivery.lease_lost)

    await provision(service)
    queues.send("mailer", BODY)
    async with working(service):
        await until(lambda: lost)

    assert lost[0] is True


async def test_fault_09_a_sync_handler_that_blocks_keeps_its_lease(queues: Queues) -> None:
    service, lost = service_with_lease(1), list[bool]()

    @service.subscribe(UserSignedUp)
    def handle(_: UserSignedUp, delivery: Delivery) -> None:
        time.sleep(2.5)
        lost.append(delivery.lease_lost)

    await provision(service)
    queues.send("mailer", BODY)
    async with working(service) as worker:
        await until(lambda: lost and worker.consumers[0].counters.handled == 1)

    assert lost == [False]


async def test_fault_21_one_slow_message_of_ten_does_not_delay_the_others(queues: Queues) -> None:
    service, release, done = service_with_lease(30), asyncio.Event(), list[int]()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        done.append(1)
        if len(done) == 1:
            await release.wait()

    await provision(service)
    queues.send("mailer", *[BODY] * 30)
    async with working(service) as worker:
        await until(lambda: len(done) >= 30)
        await until(lambda: worker.consumers[0].in_flight == 1)
        release.set()


async def test_fault_03_a_message_that_arrives_during_the_last_receive_call_is_not_stranded(queues: Queues) -> None:
    service = service_with_lease(30)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    await provision(service)
    async with working(service, wait_seconds=3) as worker:
        await until(lambda: worker.consumers and worker.consumers[0].open_calls == 1)
        worker.stop("now")
        await asyncio.sleep(0.5)
        await asyncio.to_thread(queues.send, "mailer", BODY)

    assert queues.depth("mailer") == (1, 0)


async def test_fault_07_deletes_do_not_wait_behind_open_receive_calls(queues: Queues) -> None:
    service = service_with_lease(30)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    await provision(service)
    transport = open_aws_transport()
    polls = [
        asyncio.create_task(transport.receive("mailer", max_messages=1, wait_seconds=8, visibility_timeout_seconds=30))
        for _ in range(12)
    ]
    await asyncio.sleep(1)

    started = time.monotonic()
    await transport.change_visibility("mailer", [("no-such-receipt", 5)])
    took = time.monotonic() - started
    pending = sum(not poll.done() for poll in polls)
    await asyncio.gather(*polls)
    await transport.aclose()

    assert pending == 12
    assert took < 5  # on a shared pool of ten it would take what is left of the polls, 7 s


async def test_fault_30_of_a_batch_of_extensions_only_the_lost_lease_is_reported(queues: Queues) -> None:
    service = service_with_lease(30)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    await provision(service)
    queues.send("mailer", *[BODY] * 3)
    transport = open_aws_transport()
    messages = await transport.receive("mailer", max_messages=10, wait_seconds=1, visibility_timeout_seconds=30)
    receipts = [message.receipt_handle for message in messages]
    await transport.delete("mailer", receipts[1:2])

    failures = await transport.change_visibility("mailer", [(receipt, 30) for receipt in receipts])
    await transport.aclose()

    assert [(failure.position, failure.retryable) for failure in failures] == [(1, False)]


async def test_fault_54_an_extension_beyond_twelve_hours_is_refused_by_the_broker_and_never_retried(
    queues: Queues, broker: EmbeddedBroker
) -> None:
    if broker.backend == "ministack":
        pytest.skip("ministack has no 12-hour limit")
    service = service_with_lease(30)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    await provision(service)
    queues.send("mailer", BODY)
    transport = open_aws_transport()
    [message] = await transport.receive("mailer", max_messages=1, wait_seconds=1, visibility_timeout_seconds=30)

    try:
        failures = await transport.change_visibility("mailer", [(message.receipt_handle, 43_201)])
        retryable = [failure.retryable for failure in failures]
    except TransportError as error:
        retryable = [error.retryable]
    await transport.aclose()

    assert retryable == [False]


async def test_fault_16_while_its_queue_is_deleted_a_worker_is_not_ready(queues: Queues) -> None:
    import boto3

    service, seen = service_with_lease(30), list[str]()

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        seen.append(event.name)

    await provision(service)
    async with working(service) as worker:
        await until(lambda: worker.ready)
        boto3.client("sqs").delete_queue(QueueUrl=queues.url("mailer"))
        await until(lambda: not worker.ready)
        await provision(service)
        async with Publisher("test") as publisher:
            await publisher.publish(ADA)
        await until(lambda: seen == ["Ada"])
        await until(lambda: worker.ready)


def test_fault_60_using_a_transport_from_another_event_loop_is_an_error() -> None:
    transport = None

    async def first() -> None:
        nonlocal transport
        transport = open_aws_transport()
        await transport.session.addresses.naming()

    async def second() -> None:
        assert transport is not None
        await transport.receive("q", max_messages=1, wait_seconds=0, visibility_timeout_seconds=1)

    async def close() -> None:
        assert transport is not None
        await transport.aclose()

    with asyncio.Runner() as runner:
        runner.run(first())
        with pytest.raises(ConfigError, match="another event loop"):
            asyncio.run(second())
        runner.run(close())
