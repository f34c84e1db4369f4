from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError, EventTooLarge, Publisher, PublishError, Service, blocking
from smartpipe.errors import TransportError
from smartpipe.outbox import Outbox
from tests.support.events import ADA, Note, OrderPlaced, UserLeft
from tests.support.fakes import UNREACHABLE, FakeTransport, refused, throttled
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def publisher(
    transport: FakeTransport, *, linger_seconds: float | None = None, deadline_seconds: float = 30
) -> Publisher:
    return Publisher("test", transport=transport, linger_seconds=linger_seconds, deadline_seconds=deadline_seconds)


def leave(count: int) -> Iterator[UserLeft]:
    return (UserLeft(name=str(number)) for number in range(count))


def test_concurrent_publishes_share_requests() -> None:
    transport = FakeTransport()

    async def main() -> list[str]:
        async with publisher(transport) as p:
            return await asyncio.gather(*map(p.publish, leave(25)))

    event_ids = run_virtually(main())

    assert len(set(event_ids)) == 25
    assert transport.batches("publish") == [10, 10, 5]


def test_a_lone_publish_is_sent_at_once_and_so_is_the_next_one() -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([0.015, 0.015, 0.015])

    async def main() -> None:
        async with publisher(transport) as p:
            for event in leave(3):
                await p.publish(event)

    run_virtually(main())

    assert [at for *_, at in transport.calls] == pytest.approx([0.0, 0.015, 0.03])


@pytest.mark.parametrize(
    ("seconds", "sent_at"),
    [(0.004, [0.0, 0.004]), (0.015, [0.0, 0.006])],
    ids=["until the open request has ended", "for 5 ms at most"],
)
def test_a_publish_beside_an_open_request_waits_for_company(seconds: float, sent_at: list[float]) -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([seconds, seconds])

    async def main() -> None:
        async with publisher(transport) as p:
            first = asyncio.create_task(p.publish(ADA))
            await asyncio.sleep(0.001)
            others = [asyncio.create_task(p.publish(event)) for event in leave(3)]
            await asyncio.sleep(0.001)
            await asyncio.gather(first, *others, *map(p.publish, leave(3)))

    run_virtually(main())

    assert transport.batches("publish") == [1, 6]
    assert [at for *_, at in transport.calls] == pytest.approx(sent_at)


def test_callers_that_publish_one_event_after_another_share_every_request() -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([0.015] * 12)

    async def publish_three(p: Publisher) -> None:
        for event in leave(3):
            await p.publish(event)

    async def main() -> float:
        async with publisher(transport) as p:
            await asyncio.gather(*(publish_three(p) for _ in range(14)))
            return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(0.045)
    assert transport.batches("publish") == [10, 4] * 3


def test_a_single_publish_waits_no_longer_than_the_linger() -> None:
    transport = FakeTransport()

    async def main() -> float:
        async with publisher(transport, linger_seconds=0.25) as p:
            await p.publish(ADA)
            return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(0.25)


def test_without_linger_every_publish_is_sent_immediately() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with publisher(transport, linger_seconds=0) as p:
            await asyncio.gather(*map(p.publish, leave(3)))

    run_virtually(main())

    assert transport.batches("publish") == [1, 1, 1]
    assert {time for _, _, _, time in transport.calls} == {0}


def test_events_of_different_topics_do_not_share_a_request() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with publisher(transport) as p:
            await asyncio.gather(p.publish(ADA), p.publish(OrderPlaced(order_id="1")))

    run_virtually(main())

    assert sorted(topic for _, topic, _, _ in transport.calls) == ["orders", "users"]


def test_single_publishes_share_a_request_only_within_its_byte_limit() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with publisher(transport) as p:
            await asyncio.gather(*(p.publish(Note(text="x" * 600)) for _ in range(3)))

    run_virtually(main())

    assert transport.batches("publish") == [2, 1]  # about 940 bytes each, 2,000 a request


def test_only_the_refused_event_fails() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(1)])

    async def main() -> list[str | BaseException]:
        async with publisher(transport) as p:
            return await asyncio.gather(*map(p.publish, leave(3)), return_exceptions=True)

    outcomes = run_virtually(main())

    assert [type(outcome) for outcome in outcomes] == [str, PublishError, str]
    assert isinstance(outcomes[1], PublishError)
    [failure] = outcomes[1].failures
    assert (failure.event, failure.code, failure.retryable) == (UserLeft(name="1"), "InvalidMessageContents", False)
    assert transport.batches("publish") == [3]


def test_a_throttled_event_is_sent_again_with_the_same_id() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([throttled(0)])

    async def main() -> str:
        async with publisher(transport) as p:
            return await p.publish(ADA)

    event_id = run_virtually(main())

    bodies = [message.body for message in transport.entries("publish")]
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
    assert event_id in bodies[0]


def test_publish_many_chunks_and_reports_the_ids_in_order() -> None:
    transport = FakeTransport()

    async def main() -> list[str]:
        async with publisher(transport) as p:
            return (await p.publish_many(leave(42))).event_ids

    event_ids = run_virtually(main())

    assert sorted(transport.batches("publish")) == [2, 10, 10, 10, 10]
    assert len(event_ids) == 42
    bodies = [json.loads(message.body) for message in transport.entries("publish")]
    names = {body["id"]: body["data"]["name"] for body in bodies}
    assert [names[event_id] for event_id in event_ids] == [event.name for event in leave(42)]


def test_publish_many_tries_every_event_and_then_raises_with_the_failed_ones() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(3)])
    events = [*leave(8), Note(text="x" * 3_000), *leave(8)]

    async def main() -> None:
        async with publisher(transport) as p:
            await p.publish_many(events)

    with pytest.raises(PublishError, match="2 events were not published") as caught:
        run_virtually(main())

    assert {failure.code for failure in caught.value.failures} == {"EventTooLarge", "InvalidMessageContents"}
    assert sum(transport.batches("publish")) == 16


def test_publish_many_reads_a_long_iterable_while_requests_are_sent() -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([1.0] * 1_000)
    read: list[int] = []

    def endless() -> Iterator[UserLeft]:
        for number in range(10_000):
            read.append(number)
            yield UserLeft(name="x")

    async def main() -> None:
        async with publisher(transport) as p:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.5):
                    await p.publish_many(endless())

    run_virtually(main())

    assert 300 < len(read) < 700  # 16 concurrent requests of ten, a second each, for 2.5 seconds


def test_an_event_too_large_is_rejected_before_any_call() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with publisher(transport) as p:
            await p.publish(Note(text="x" * 3_000))

    with pytest.raises(EventTooLarge):
        run_virtually(main())
    assert transport.calls == []


def test_closing_sends_lingering_events() -> None:
    transport = FakeTransport()

    async def main() -> str:
        async with publisher(transport, linger_seconds=60) as p:
            task = asyncio.create_task(p.publish(ADA))
            await asyncio.sleep(0)
        return await task

    event_id = run_virtually(main())

    assert event_id in transport.entries("publish")[0].body


def test_closing_raises_with_the_events_that_could_not_be_published() -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([UNREACHABLE] * 1_000)

    async def main() -> None:
        p = publisher(transport, linger_seconds=60, deadline_seconds=3)
        publishes = asyncio.gather(*map(p.publish, leave(2)), return_exceptions=True)
        await asyncio.sleep(0)
        try:
            await p.aclose()
        finally:
            assert [type(outcome) for outcome in await publishes] == [PublishError, PublishError]

    with pytest.raises(PublishError) as caught:
        run_virtually(main())
    assert [failure.event for failure in caught.value.failures] == list(leave(2))
    assert all(failure.retryable for failure in caught.value.failures)


def test_a_publish_after_closing_fails() -> None:
    async def main() -> None:
        p = publisher(FakeTransport())
        await p.aclose()
        await p.aclose()
        await p.publish(ADA)

    with pytest.raises(PublishError, match="PublisherClosed"):
        run_virtually(main())


def test_a_cancelled_publish_that_still_lingers_is_withdrawn() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with publisher(transport, linger_seconds=1) as p:
            withdrawn = asyncio.create_task(p.publish(ADA))
            kept = asyncio.create_task(p.publish(UserLeft(name="kept")))
            await asyncio.sleep(0.5)
            withdrawn.cancel()
            await kept

    run_virtually(main())

    [message] = transport.entries("publish")
    assert "kept" in message.body


def test_a_missing_topic_is_an_error_that_says_how_to_fix_it() -> None:
    transport = FakeTransport()
    advice = "topic arn:x does not exist; run `smartpipe topology apply`"
    transport.script["publish"].append(TransportError("NotFound", advice, retryable=False))

    async def main() -> None:
        async with publisher(transport) as p:
            await p.publish(ADA)

    with pytest.raises(PublishError, match="smartpipe topology apply"):
        run_virtually(main())


def test_an_unexpected_error_reaches_the_caller() -> None:
    transport = FakeTransport()
    transport.script["publish"].append(ZeroDivisionError("a bug"))

    async def main() -> None:
        async with publisher(transport) as p:
            await p.publish(ADA)

    with pytest.raises(ZeroDivisionError):
        run_virtually(main())


def test_a_publisher_needs_a_source() -> None:
    with pytest.raises(ConfigError, match="source is empty"):
        Publisher("", transport=FakeTransport())


SOURCES = [
    "signup-api",
    "com.example.crm",
    "/crm/eu",
    "https://crm.example/eu?x=1#a",
    "urn:uuid:1",
    "a%20b",
    "//[::1]/a",
]
NOT_SOURCES = ["my service", "ü", "line\nbreak", "a|b", "1a:b", "100%", "a#b#c", "[x]", "https://[::1", "a\\b", '"a"']


def create_owners(source: str) -> list[Callable[[], object]]:
    """Return everything that has a source of its own."""
    return [
        lambda: Publisher(source, transport=FakeTransport()),
        lambda: blocking.Publisher(source),
        lambda: Outbox(source),
        lambda: Service(source, queue="q"),
    ]


@pytest.mark.parametrize("source", NOT_SOURCES)
def test_a_source_that_is_not_a_uri_reference_is_refused_everywhere(source: str) -> None:
    for create in create_owners(source):
        with pytest.raises(ConfigError, match="is not a URI reference, as CloudEvents requires"):
            create()


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_a_uri_reference_is_accepted_everywhere(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for create in create_owners(source):
        create()


def test_closing_waits_for_publish_many() -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([5.0] * 3)

    async def main() -> int:
        p = publisher(transport)
        many = asyncio.create_task(p.publish_many(leave(25)))
        await asyncio.sleep(1)
        await p.aclose()
        assert many.done()
        return len((await many).event_ids)

    assert run_virtually(main()) == 25


def test_closing_takes_no_longer_than_its_timeout() -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([1_000.0] * 100)

    async def main() -> tuple[float, BaseException | str]:
        p = publisher(transport, deadline_seconds=300)
        publish = asyncio.gather(p.publish(ADA), return_exceptions=True)
        await asyncio.sleep(1)
        with pytest.raises(PublishError, match="closed before SNS answered"):
            await p.aclose(timeout_seconds=2)
        return asyncio.get_running_loop().time(), (await publish)[0]

    seconds, outcome = run_virtually(main())

    assert seconds == 3
    assert isinstance(outcome, PublishError)


def test_the_deadline_counts_from_the_publish_and_not_from_its_request() -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([UNREACHABLE] * 100_000)

    async def main() -> float:
        async with publisher(transport, deadline_seconds=30) as p:
            await asyncio.gather(*map(p.publish, leave(1_000)), return_exceptions=True)
            return asyncio.get_running_loop().time()

    assert run_virtually(main()) < 60


def publish_until(error: Exception, transport: FakeTransport, count: int) -> None:
    """Publish *count* events of an iterable that raises *error* then."""

    def failing() -> Iterator[UserLeft]:
        yield from leave(count)
        raise error

    async def main() -> None:
        async with publisher(transport) as p:
            await p.publish_many(failing())

    run_virtually(main())


def test_if_the_iterable_of_publish_many_fails_the_events_read_before_are_published() -> None:
    transport = FakeTransport()

    with pytest.raises(KeyError):
        publish_until(KeyError("the database went away"), transport, 15)

    assert transport.batches("publish") == [10, 5]


def test_if_the_iterable_of_publish_many_fails_its_exception_has_a_note_of_the_events_that_were_not_published() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(3)])

    with pytest.raises(KeyError) as caught:
        publish_until(KeyError("the database went away"), transport, 15)

    [note] = caught.value.__notes__
    assert note.startswith("publish_many: of the events read before, 1 event was not published: ")
    assert note.endswith("(UserLeft): InvalidMessageContents: bad characters")


def test_an_exception_of_the_iterable_that_refuses_the_note_is_raised_nevertheless() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(0)])

    @dataclass(frozen=True)
    class GoneError(Exception):
        table: str

    with pytest.raises(GoneError):
        publish_until(GoneError("orders"), transport, 1)


def test_an_outage_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeTransport()
    transport.script["publish"].extend([UNREACHABLE] * 5)

    async def main() -> None:
        async with publisher(transport) as p:
            await p.publish_many(leave(30))

    with caplog.at_level(logging.INFO, "smartpipe.publisher"):
        run_virtually(main())

    assert [message.split(",")[0] for message in caplog.messages] == [
        "Cannot publish events",
        "Events can be published again",
    ]


def test_a_publisher_refuses_a_second_event_loop_while_the_first_one_is_running() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with publisher(transport) as p:
            await p.publish(UserLeft(name="ada"))
            with pytest.raises(ConfigError, match="is running in another thread"):
                await asyncio.to_thread(asyncio.run, p.publish(UserLeft(name="bob")))
            with pytest.raises(ConfigError, match="is running in another thread"):
                await asyncio.to_thread(asyncio.run, p.aclose())
            await p.publish(UserLeft(name="eve"))

    asyncio.run(main())

    assert transport.batches("publish") == [1, 1]


def test_a_publisher_may_be_used_in_another_event_loop_after_the_first_one_has_ended() -> None:
    transport = FakeTransport()
    p = publisher(transport)

    for name in ("ada", "bob"):
        asyncio.run(p.publish(UserLeft(name=name)))

    assert transport.batches("publish") == [1, 1]
