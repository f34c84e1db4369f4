"""What a publisher refuses, and the time that it still has for an event."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError, Publisher, PublishError, TransportError, blocking
from smartpipe.batching.timers import Timers
from smartpipe.envelope.body_encoding import RESERVED_ATTRIBUTES
from smartpipe.filter_policy import TYPE_ATTRIBUTE
from smartpipe.limits import MAX_ATTRIBUTES
from smartpipe.payload_offload import PayloadOffload
from smartpipe.publisher.prepare import RESERVED_PREFIX, PreparedEvent, Publication, prepare
from smartpipe.publisher.publish_one import SinglePublisher
from smartpipe.transports.open import use_transport
from tests.support.events import ADA, OrderPlaced, Paid, UserLeft
from tests.support.fakes import UNREACHABLE, FakeTransport, refused
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.message import Failure, OutgoingMessage
    from smartpipe.middleware import Next


@pytest.mark.parametrize(
    "name",
    [
        TYPE_ATTRIBUTE,
        *sorted(RESERVED_ATTRIBUTES),
        f"{RESERVED_PREFIX}x",
        f"{RESERVED_PREFIX}x".upper(),
        "",
        "a b",
        ".a",
    ],
)
def test_a_reserved_or_invalid_attribute_name_is_refused(name: str) -> None:
    with pytest.raises(PublishError, match="reserved, or invalid") as raised:
        prepare(Publication(ADA, {name: "x"}), source="s")

    assert [failure.retryable for failure in raised.value.failures] == [False]


def test_as_many_attributes_as_sqs_allows_are_accepted_besides_the_type() -> None:
    attributes = {f"a{number}": "x" for number in range(MAX_ATTRIBUTES - 1)}

    assert len(prepare(Publication(ADA, attributes), source="s").message.attributes) == MAX_ATTRIBUTES
    with pytest.raises(PublishError):
        prepare(Publication(ADA, {**attributes, "one": "more"}), source="s")


async def test_a_closed_publisher_refuses_every_event_permanently() -> None:
    transport = FakeTransport()
    publisher = Publisher("s", transport=transport)
    await publisher.aclose()
    for _ in range(2):
        with pytest.raises(PublishError, match="closed") as raised:
            await publisher.publish(ADA)
        assert [(failure.code, failure.retryable) for failure in raised.value.failures] == [("PublisherClosed", False)]
    assert transport.calls == []


def test_a_publisher_for_blocking_code_closes_the_connections_of_each_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    closed: list[str] = []
    with blocking.Publisher("s") as publisher:
        for service in ("sns", "sqs"):
            client = publisher._session.client(service)
            monkeypatch.setattr(client, "close", lambda name=service: closed.append(name))

    assert closed == ["sns", "sqs"]


def test_a_closed_publisher_for_blocking_code_refuses_every_event_permanently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # a request would fail with another error
    with blocking.Publisher("s", deadline_seconds=0) as publisher:
        pass
    for _ in range(2):
        with pytest.raises(PublishError, match="closed") as raised:
            publisher.publish(ADA)
        assert [(failure.code, failure.retryable) for failure in raised.value.failures] == [("PublisherClosed", False)]
        with pytest.raises(PublishError, match="closed") as raised:
            publisher.publish_many([ADA, ADA])
        assert [failure.code for failure in raised.value.failures] == ["PublisherClosed"] * 2


@pytest.mark.parametrize(("deadline_seconds", "expected"), [(30.0, 29.0), (1.25, 0.25), (0.5, 0.0), (0.0, 0.0)])
def test_an_event_is_sent_for_the_rest_of_its_time_in_every_request(deadline_seconds: float, expected: float) -> None:
    seconds: list[float] = []

    async def send(chunk: list[PreparedEvent], rest: float) -> list[tuple[PreparedEvent, object]]:
        seconds.append(rest)
        return []

    async def main() -> None:
        timers = Timers()
        publisher = SinglePublisher(send, timers, linger_seconds=1, deadline_seconds=deadline_seconds)  # type: ignore[arg-type]
        for _ in range(3):
            await publisher.publish(prepare(Publication(ADA), source="s"))
            await asyncio.sleep(10)
        timers.close()

    run_virtually(main())
    assert seconds == pytest.approx([expected] * 3)


class Open(FakeTransport):
    """A transport whose requests take a second. It records how many were open at a time, and which were cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.open = self.most = self.cancelled = 0

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(1)
            return await super().publish(topic, messages)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1


def leave(count: int) -> list[UserLeft]:
    return [UserLeft(name=str(number)) for number in range(count)]


def test_sixteen_requests_of_publish_many_are_open_at_most() -> None:
    transport = Open()

    async def main() -> float:
        async with Publisher("s", transport=transport) as publisher:
            for _ in range(2):
                await publisher.publish_many(leave(321))
            return asyncio.get_running_loop().time()

    assert run_virtually(main()) == 6  # 33 requests, 16 at a time, twice
    assert transport.most == 16


def test_sixteen_requests_of_single_events_are_open_at_most() -> None:
    transport = Open()

    async def main() -> float:
        async with Publisher("s", transport=transport, linger_seconds=0) as publisher:
            await asyncio.gather(*map(publisher.publish, leave(33)))
            return asyncio.get_running_loop().time()

    assert run_virtually(main()) == 3
    assert transport.most == 16


def test_with_middleware_publish_many_publishes_160_events_at_a_time_and_reports_their_ids_in_order() -> None:
    transport, inside, most = FakeTransport(), 0, 0

    async def count(publication: Publication, call_next: Next[Publication, str]) -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        name = int(publication.event.name)  # type: ignore[attr-defined]
        await asyncio.sleep(1 if name % 2 else 2)
        inside -= 1
        if name == 7:
            raise ValueError("not this one")
        await call_next(publication)
        return str(name)

    async def main() -> PublishError:
        async with Publisher("s", transport=transport, middleware=[count]) as publisher:
            assert (await publisher.publish_many(leave(5))).event_ids == ["0", "1", "2", "3", "4"]
            with pytest.raises(PublishError) as caught:
                await publisher.publish_many(leave(400))
            return caught.value

    [failure] = run_virtually(main()).failures

    assert most == 160
    assert (failure.code, failure.detail, failure.retryable) == ("ValueError", "not this one", False)
    assert (failure.event, failure.event_id) == (UserLeft(name="7"), "")
    assert sum(transport.batches("publish")) == 404


def test_a_publish_many_that_is_cancelled_abandons_its_open_requests() -> None:
    transport = Open()

    async def main() -> None:
        publisher = Publisher("s", transport=transport)
        many = asyncio.create_task(publisher.publish_many(leave(400)))
        await asyncio.sleep(0.5)
        many.cancel()
        with pytest.raises(asyncio.CancelledError):
            await many
        await asyncio.sleep(5)
        assert (transport.cancelled, transport.open, transport.calls) == (16, 0, [])
        await publisher.aclose()  # it waits for nothing
        assert asyncio.get_running_loop().time() == 5.5

    run_virtually(main())


def test_events_of_several_topics_are_collected_separately_and_sent_at_the_end() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with Publisher("s", transport=transport) as publisher:
            order = OrderPlaced(order_id="1")
            await publisher.publish_many([event for one in leave(12) for event in (one, order)])

    run_virtually(main())

    sent = [(name, len(entries)) for _, name, entries, _ in transport.calls]
    assert sorted(sent) == [("orders", 2), ("orders", 10), ("users", 2), ("users", 10)]


def test_a_stopped_event_may_be_published_again_later_and_was_not_sent() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(0)])

    async def main() -> PublishError:
        async with Publisher("s", transport=transport) as publisher:
            with pytest.raises(PublishError) as caught:
                await publisher.publish_many([Paid(account="a", number=number) for number in range(3)])
            await publisher.publish_many([Paid(account="a", number=9)])  # a later call begins without stopped groups
            return caught.value

    error = run_virtually(main())

    assert [(failure.code, failure.retryable) for failure in error.failures] == [
        ("InvalidMessageContents", False),
        ("GroupStopped", True),
        ("GroupStopped", True),
    ]
    assert all(failure.event_id for failure in error.failures)
    assert transport.batches("publish") == [1, 1]


@pytest.mark.parametrize("times", [{"linger_seconds": -0.1}, {"deadline_seconds": -0.1}])
def test_a_time_of_a_publisher_cannot_be_negative_but_zero(times: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="cannot be negative"):
        Publisher("s", transport=FakeTransport(), **times)  # type: ignore[arg-type]

    Publisher("s", transport=FakeTransport(), linger_seconds=0, deadline_seconds=0)


async def test_a_publisher_closes_its_payloads_and_its_own_transport_once_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, passed = FakeTransport(), FakeTransport()
    with use_transport(own):
        publishers = [Publisher("s"), Publisher("s", transport=passed)]
    closed: list[object] = []

    async def close(payloads: PayloadOffload) -> None:
        closed.append(payloads)

    monkeypatch.setattr(PayloadOffload, "aclose", close)
    for publisher in publishers:
        await publisher.aclose()
        await publisher.aclose()

    assert (own.closed, passed.closed) == (1, 0)
    assert closed == [publisher.payloads for publisher in publishers]


def test_a_publisher_retries_for_half_a_minute_by_default_and_an_event_that_a_close_cuts_off_may_be_retried() -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([UNREACHABLE] * 1_000)

    async def main() -> tuple[float, float]:
        publisher, clock = Publisher("s", transport=transport), asyncio.get_running_loop().time
        with pytest.raises(PublishError):
            await publisher.publish(ADA)
        failed_at = clock()
        transport.script["publish"].clear()
        transport.script["publish"].append(1_000.0)
        publish = asyncio.create_task(publisher.publish(ADA))
        await asyncio.sleep(1)
        began = clock()
        for pending in (publisher.aclose(timeout_seconds=5), publish):
            with pytest.raises(PublishError) as raised:
                await pending
            [failure] = raised.value.failures
            assert (failure.event, failure.code, failure.retryable) == (ADA, "DeadlineExceeded", True)
        return failed_at, clock() - began

    failed_at, closing = run_virtually(main())
    assert 25 <= failed_at <= 30
    assert closing == pytest.approx(5)


@pytest.mark.parametrize("permanent", [False, True])
def test_each_outage_is_logged_and_a_permanent_error_is_none(permanent: bool, caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeTransport()
    refusal = TransportError("NotFound", "no such topic", retryable=False)
    transport.script["publish"].extend([refusal] if permanent else [UNREACHABLE, [], UNREACHABLE, UNREACHABLE])

    async def main() -> None:
        async with Publisher("s", transport=transport, deadline_seconds=20) as publisher:
            for event in leave(3):
                with suppress(PublishError):
                    await publisher.publish(event)

    with caplog.at_level(logging.INFO, "smartpipe.publisher"):
        run_virtually(main())

    outage = [f"Cannot publish events, retrying for up to 20 s: {UNREACHABLE}", "Events can be published again"]
    assert caplog.messages == ([] if permanent else outage * 2)


def test_a_publish_that_is_cancelled_while_its_publisher_closes_is_no_failure() -> None:
    transport = FakeTransport()
    transport.script["publish"].append(5.0)

    async def main() -> float:
        publisher = Publisher("s", transport=transport)
        cancelled, kept = (asyncio.create_task(publisher.publish(event)) for event in leave(2))
        await asyncio.sleep(1)
        closing = asyncio.create_task(publisher.aclose())
        await asyncio.sleep(1)
        cancelled.cancel()
        await closing
        assert await kept
        assert cancelled.cancelled()
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == 5


@pytest.mark.parametrize("middleware", [False, True])
def test_a_close_ends_with_the_last_publish_many_and_not_at_its_deadline(middleware: bool) -> None:
    async def pass_on(publication: Publication, call_next: Next[Publication, str]) -> str:
        return await call_next(publication)

    async def main() -> float:
        publisher = Publisher("s", transport=Open(), middleware=[pass_on] if middleware else [])
        calls = [asyncio.create_task(publisher.publish_many(leave(count))) for count in (5, 25)]
        await asyncio.sleep(0.5)
        await publisher.aclose()
        assert [len((await call).event_ids) for call in calls] == [5, 25]
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(1, abs=0.1)
