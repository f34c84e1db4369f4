"""The testing kit, as its users use it."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_exponential

from smartpipe import (
    CircuitBreaker,
    ConfigError,
    Delivery,
    Event,
    Publisher,
    Queue,
    Reject,
    Retry,
    RetryPolicy,
    Service,
)
from smartpipe.errors import TransportError
from smartpipe.message import OutgoingMessage
from smartpipe.testing import MemoryBroker, virtual_time
from tests.support.events import ADA, OrderPlaced, UserLeft, UserSignedUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from smartpipe.message import Failure

TWENTY_MINUTES = RetryPolicy(attempts=5, wait=wait_exponential(multiplier=80, max=1_000))


def failing_service(retry: RetryPolicy = TWENTY_MINUTES) -> Service:
    service = Service("mailer", retry=retry)

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None:
        raise ConnectionError("the mail server is down")

    return service


async def test_five_attempts_with_backoff_over_twenty_minutes_take_milliseconds() -> None:
    started = time.monotonic()

    async with MemoryBroker(failing_service()) as broker:
        await broker.publish(ADA)
        await broker.drain()

        assert [retried.after_seconds for retried in broker.retried(UserSignedUp)] == [80, 160, 320, 640]
        dead = broker.assert_dead_lettered(UserSignedUp, kind="retries-exhausted", name="Ada")
        assert dead.reason == "the mail server is down"
        assert dead.at_seconds == pytest.approx(1_200, abs=5)
        assert broker.transport.queue("mailer-dlq").depth.visible == 1
    assert time.monotonic() - started < 20  # of a machine however busy, and a hundredth of it in truth


async def test_events_that_handlers_publish_reach_other_services_with_their_cause() -> None:
    mailer, audit = Service("mailer"), Service("audit")
    causes: list[str | None] = []

    @mailer.subscribe(UserSignedUp)
    async def send(event: UserSignedUp, delivery: Delivery) -> None:
        await delivery.publish(UserLeft(name=event.name))

    @audit.subscribe(UserLeft)
    async def note(event: UserLeft, delivery: Delivery) -> None:
        causes.append(delivery.envelope.causation_id)

    async with MemoryBroker(mailer, audit) as broker:
        event_id = await broker.publish(ADA)
        await broker.drain()

        assert broker.published(UserLeft) == [UserLeft(name="Ada")]
        assert broker.handled(UserLeft, by=note) == [UserLeft(name="Ada")]
        assert causes == [event_id]
        broker.assert_nothing_dead_lettered()


async def test_a_publisher_of_the_code_under_test_uses_the_broker_without_configuration() -> None:
    async def sign_up(name: str) -> None:
        async with Publisher("signup-api") as publisher:
            await publisher.publish(UserLeft(name=name))

    async with MemoryBroker() as broker:
        await sign_up("Ada")
        await sign_up("Bob")

        assert broker.assert_published(UserLeft, times=2) == [UserLeft(name="Ada"), UserLeft(name="Bob")]
        assert broker.published(UserLeft, name="Bob") == [UserLeft(name="Bob")]


async def test_bad_messages_are_dead_lettered_with_their_reason() -> None:
    async with MemoryBroker(failing_service()) as broker:
        await broker.send("mailer", "no event")
        await broker.drain()

        [dead] = broker.dead_lettered()
        assert (dead.kind, dead.event, dead.body) == ("not-json", None, "no event")


@pytest.mark.parametrize(
    ("body", "error"), [("", ValueError), ("a\0b", ValueError), ("x" * 1_048_577, TransportError)], ids=range(3)
)
async def test_a_text_that_sqs_would_refuse_is_an_error_and_is_not_sent(body: str, error: type[Exception]) -> None:
    async with MemoryBroker(failing_service()) as broker:
        with pytest.raises(error):
            await broker.send("mailer", body)
        await broker.drain()

        assert broker.transport.records == []


async def test_json_objects_of_raw_handlers_are_found_by_their_items() -> None:
    service = Service("inbox")

    @service.subscribe_raw(dict)
    async def take(row: dict[str, Any]) -> None:
        if row["number"] == 2:
            raise Reject("not this one")

    async with MemoryBroker(service) as broker:
        for number in (1, 2):
            await broker.send("inbox", {"kind": "row", "number": number})
        await broker.drain()

        assert broker.handled(dict, kind="row", number=1) == [{"kind": "row", "number": 1}]
        assert broker.handled(dict, kind="row", number=2) == broker.handled(dict, missing=1) == []
        assert broker.assert_dead_lettered(dict, number=2).kind == "rejected"


async def test_an_attribute_that_sqs_has_no_type_for_is_an_error_with_its_name() -> None:
    async with MemoryBroker(failing_service()) as broker:
        with pytest.raises(ValueError, match="attribute 'amount' must be text, a number, or a list of texts.*: b'1'"):
            await broker.send("mailer", "{}", attributes={"amount": b"1"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attributes": {"a b": "x"}}, "attribute name 'a b' is invalid in SQS"),
        ({"attributes": {"AWS.x": "x"}}, "attribute name 'AWS.x' is invalid in SQS"),
        ({"group_id": "x y"}, "group_id 'x y' is invalid in SQS"),
        ({"group_id": ""}, "group_id '' is invalid in SQS"),
    ],
)
async def test_a_name_that_sqs_would_refuse_is_an_error(options: dict[str, Any], reason: str) -> None:
    async with MemoryBroker(failing_service()) as broker:
        with pytest.raises(ValueError, match=re.escape(reason)):
            await broker.send("mailer", "{}", **options)


async def test_a_raw_message_that_sqs_moves_is_recorded_with_its_model() -> None:
    service = Service("inbox")

    @service.subscribe_raw(dict)
    async def fail(row: dict[str, Any]) -> None:
        raise MemoryError  # it is deferred each time, until SQS moves it

    async with MemoryBroker(service) as broker:
        await broker.send("inbox", {"number": 1})
        await broker.drain()

        assert broker.assert_dead_lettered(dict, kind="redriven").event == {"number": 1}


async def test_a_dead_letter_that_could_not_be_sent_is_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MemoryBroker(failing_service(RetryPolicy(attempts=1))) as broker:
        send = broker.transport.send
        failures = [TransportError("AccessDenied", "no", retryable=False)] * 2  # also of the copy without the reason

        async def refuse_first(queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
            if failures:
                raise failures.pop()
            return await send(queue, messages)

        monkeypatch.setattr(broker.transport, "send", refuse_first)
        await broker.publish(ADA)
        await broker.drain()

        assert [type(record).__name__ for record in broker.transport.records] == [
            "Published",
            "Retried",
            "DeadLettered",
        ]


async def test_a_failed_assertion_shows_the_timeline() -> None:
    async with MemoryBroker(failing_service(RetryPolicy(attempts=2, base_seconds=0))) as broker:
        await broker.publish(ADA)
        await broker.drain()

        with pytest.raises(AssertionError) as caught:
            broker.assert_handled(UserSignedUp, name="Ada")

    lines = str(caught.value).splitlines()
    assert lines[0] == "UserSignedUp(name='Ada') was not handled. Timeline:"
    assert ["published" in lines[1], "retried" in lines[2], "dead-lettered" in lines[3]] == [True] * 3
    assert "again after 0 s: ConnectionError: the mail server is down" in lines[2]


async def test_the_number_of_times_is_asserted_too() -> None:
    async with MemoryBroker() as broker:
        await broker.publish(ADA)

        with pytest.raises(AssertionError, match="was not published 2 times, but 1"):
            broker.assert_published(UserSignedUp, times=2)


async def test_retries_requested_by_a_handler_are_recorded_separately_from_rejects() -> None:
    service = Service("mailer")
    answers = iter([Retry("not yet", after_seconds=3_600), Reject("never")])

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None:
        raise next(answers)

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

        [retried] = broker.retried()
        assert (retried.after_seconds, str(retried.error)) == (3_600, "not yet")
        assert broker.assert_dead_lettered(UserSignedUp).at_seconds == pytest.approx(3_600, abs=5)


async def test_sync_handlers_run_in_real_time_while_the_clock_stands_still() -> None:
    service = Service("mailer", timeout_seconds=10)

    @service.subscribe(UserSignedUp)
    def send(event: UserSignedUp) -> None:
        time.sleep(0.2)

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

        broker.assert_handled(UserSignedUp, by=send, times=1)
        assert broker.retried() == []


async def test_the_clock_stands_still_while_to_thread_runs() -> None:
    with virtual_time():
        started = asyncio.get_running_loop().time()
        async with asyncio.timeout(10):
            await asyncio.to_thread(time.sleep, 0.2)
        assert asyncio.get_running_loop().time() - started < 10


def answer_late(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        time.sleep(0.3)
        connection.sendall(b"hello\n")


async def test_the_clock_runs_slowly_while_a_task_waits_for_a_real_socket() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(1)
            ticks += 1

    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=answer_late, args=[server])
        answering.start()
        with virtual_time():
            ticking = asyncio.create_task(tick())
            reader, writer = await asyncio.open_connection(*server.getsockname()[:2])
            assert await reader.readline() == b"hello\n"
            writer.close()
            ticking.cancel()
        answering.join()

    assert ticks < 1_000  # without regard for the socket, ten times as many pass in 0.3 s


async def test_the_clock_runs_slowly_while_unknown_threads_run() -> None:
    """As those of aiosqlite and anyio, which answer by call_soon_threadsafe."""
    service = Service("mailer", retry=RetryPolicy(attempts=1))

    @service.subscribe(UserSignedUp)
    async def query(event: UserSignedUp) -> None:
        loop = asyncio.get_running_loop()
        answer = loop.create_future()

        def work() -> None:
            time.sleep(0.1)
            loop.call_soon_threadsafe(answer.set_result, None)

        threading.Thread(target=work).start()
        await answer

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

        broker.assert_handled(UserSignedUp)


async def test_a_sync_handler_that_hangs_runs_into_its_timeout() -> None:
    service, let_go = Service("mailer", timeout_seconds=0.3, retry=RetryPolicy(attempts=1)), threading.Event()

    @service.subscribe(UserSignedUp)
    def hang(event: UserSignedUp) -> None:
        let_go.wait(30)

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()
        let_go.set()

        assert broker.assert_dead_lettered(UserSignedUp).reason == "it ran longer than 0.3 s"


async def test_messages_that_sqs_moves_to_the_dead_letter_queue_are_recorded_too() -> None:
    service = Service("mailer", queue=Queue("mailer", max_receive_count=2), retry=RetryPolicy(attempts=2))

    @service.subscribe(UserSignedUp)
    async def ask_again(event: UserSignedUp, delivery: Delivery) -> None:
        raise SystemError

    async with MemoryBroker(service) as broker:
        broker.pause("mailer")
        await asyncio.sleep(25)
        await broker.publish(ADA)
        for _ in range(2):  # two workers that crash
            await broker.transport.receive("mailer", max_messages=1, wait_seconds=0, visibility_timeout_seconds=5)
            await asyncio.sleep(6)
        broker.resume("mailer")
        await broker.drain()

        found = broker.assert_dead_lettered(UserSignedUp, kind="redriven")
        assert (found.receive_count, type(found.event_id)) == (2, str)
        with pytest.raises(AssertionError, match="messages were dead-lettered"):
            broker.assert_nothing_dead_lettered()


async def test_a_drain_ends_when_the_remaining_messages_have_expired() -> None:
    service = Service("mailer", queue=Queue("mailer", retention_seconds=60))

    @service.subscribe(UserSignedUp)
    async def later(event: UserSignedUp) -> None:
        raise Retry(after_seconds=1_000)

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain(limit_seconds=120)


async def test_a_drain_ends_when_messages_expire_that_an_open_circuit_does_not_receive() -> None:
    service = Service("mailer", queue=Queue("mailer", retention_seconds=60))

    @service.subscribe(UserSignedUp, breaker=CircuitBreaker(failures=1, reset_seconds=10_000))
    async def fail(event: UserSignedUp) -> None:
        raise ConnectionError

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain(limit_seconds=120)


async def test_the_timeline_has_the_accepted_messages_of_a_request_in_which_one_was_refused() -> None:
    service = Service("mailer", unknown_events="ignore")
    service.subscribe(UserSignedUp)(accept)

    async with MemoryBroker(service) as broker:
        refused, *others = [OutgoingMessage(body, len(body)) for body in ("\0", "first", "second")]
        failures = await broker.transport.send("mailer", [refused, *others])

        assert [failure.position for failure in failures] == [0]
        assert [record.body for record in broker.transport.records] == ["first", "second"]


async def test_a_drain_that_is_too_short_lists_delayed_messages() -> None:
    service = Service("mailer")
    service.subscribe(UserSignedUp)(accept)

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA, queue="mailer", delay_seconds=900)
        with pytest.raises(AssertionError, match=r"after 10 s: mailer has 0 visible, 0 in flight, 1 delayed"):
            await broker.drain(limit_seconds=10)


async def test_an_ignored_event_is_not_a_handled_one() -> None:
    service = Service("mailer", unknown_events="ignore")
    service.subscribe(UserSignedUp)(accept)

    async with MemoryBroker(service) as broker:
        await broker.publish(UserLeft(name="Bob"), queue="mailer")
        await broker.drain()

        assert broker.handled(UserLeft) == []
        assert "ignored" in broker.timeline


async def test_without_virtual_time_the_broker_also_stops_quickly() -> None:
    service = failing_service(RetryPolicy(attempts=1))
    started = time.monotonic()

    async with MemoryBroker(service, virtual=False) as broker:
        await broker.publish(ADA)
        await broker.drain()

    assert time.monotonic() - started < 15  # the open poll is of a second, not of twenty


async def accept(_: Event) -> None: ...


async def test_a_broker_inside_a_broker_shares_its_virtual_time() -> None:
    one, two = Service("one"), Service("two")
    one.subscribe(UserSignedUp)(accept)
    two.subscribe(UserSignedUp)(accept)

    async with MemoryBroker(one) as outer:
        await asyncio.sleep(3_600)
        async with MemoryBroker(two) as inner:
            await inner.publish(ADA)
            await inner.drain()
        await asyncio.sleep(3_600)
        await outer.publish(ADA)
        await outer.drain()

        assert outer.handled(UserSignedUp) == inner.handled(UserSignedUp) == [ADA]


async def test_the_clock_is_real_again_afterwards() -> None:
    with virtual_time():
        await asyncio.sleep(1_000_000)
    loop = asyncio.get_running_loop()

    assert abs(loop.time() - time.monotonic()) < 60


async def test_duplicates_and_disorder_on_demand_are_the_same_for_the_same_seed() -> None:
    async def run(seed: int) -> list[str]:
        service, seen = Service("orders"), list[str]()

        @service.subscribe(OrderPlaced)
        async def place(event: OrderPlaced) -> None:
            seen.append(event.order_id)

        async with MemoryBroker(service, duplicate_share=0.3, shuffle=True, seed=seed, concurrency=1) as broker:
            await asyncio.gather(*(broker.publish(OrderPlaced(order_id=f"{number:02}")) for number in range(40)))
            await broker.drain()
        return seen

    once, again, other = await run(7), await run(7), await run(8)

    assert once == again != other
    assert len(once) > 40
    assert sorted(set(once)) == [f"{number:02}" for number in range(40)]
    assert list(dict.fromkeys(once)) != sorted(set(once))


async def test_resources_of_a_lifespan_are_closed_when_the_broker_is_left() -> None:
    opened: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        opened.append("open")
        yield "pool"
        opened.append("closed")

    service = Service("mailer", lifespan=lifespan)

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp, pool: str) -> None:
        opened.append(pool)

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    assert opened == ["open", "pool", "closed"]


async def test_a_paused_queue_keeps_its_messages_until_it_is_resumed() -> None:
    service, seen = Service("mailer"), list[Event]()

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None:
        seen.append(event)

    async with MemoryBroker(service) as broker:
        broker.pause("mailer")
        await asyncio.sleep(25)  # the open poll ends
        await broker.publish(ADA)
        await asyncio.sleep(3_600)
        assert seen == []

        broker.resume("mailer")
        await broker.drain()

    assert seen == [ADA]


async def test_two_services_that_claim_one_queue_are_refused() -> None:
    one, two = failing_service(), failing_service()
    two.name = "rival"

    with pytest.raises(ConfigError, match="claimed by two services"):
        async with MemoryBroker(one, two):
            pass


async def test_use_outside_of_the_block_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="async with MemoryBroker"):
        await MemoryBroker().drain()


def test_use_on_another_event_loop_is_an_error_and_does_not_hang() -> None:
    broker = MemoryBroker(failing_service())
    with asyncio.Runner() as one, asyncio.Runner() as two:
        one.run(broker.__aenter__())
        with pytest.raises(RuntimeError, match="entered on another event loop"):
            two.run(broker.drain())
        one.run(broker.__aexit__(None, None, None))


async def test_the_error_for_an_unknown_queue_names_the_polled_queues() -> None:
    async with MemoryBroker(failing_service()) as broker:
        with pytest.raises(ConfigError, match="no service polls queue 'zzz'; they poll mailer"):
            broker.pause("zzz")


def test_a_real_store_is_refused_on_virtual_time() -> None:
    with pytest.raises(ConfigError, match="a server does not follow virtual time; add virtual=False"):
        MemoryBroker(idempotency_url="postgresql://db/claims")


async def test_a_store_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not one of memory://"):
        async with MemoryBroker(virtual=False, idempotency_url="mysql://db"):
            pass


async def test_a_line_of_the_timeline_cannot_control_the_terminal_or_forge_another_line() -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise Reject("\x1b[2J\n      0.000 s  handled\u202e")

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

    assert len(broker.timeline.splitlines()) == 2
    assert "\\x1b[2J\\n      0.000 s  handled\\u202e" in broker.timeline
