"""What a publisher refuses, and the time that it still has for an event."""

from __future__ import annotations

import asyncio

import pytest

from smartpipe import Publisher, PublishError, blocking
from smartpipe.batching.timers import Timers
from smartpipe.envelope.body_encoding import RESERVED_ATTRIBUTES
from smartpipe.filter_policy import TYPE_ATTRIBUTE
from smartpipe.limits import MAX_ATTRIBUTES
from smartpipe.publisher.prepare import RESERVED_PREFIX, PreparedEvent, Publication, prepare
from smartpipe.publisher.publish_one import SinglePublisher
from tests.support.events import ADA
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually


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
