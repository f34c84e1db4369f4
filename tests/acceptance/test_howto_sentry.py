"""The how-to page on Sentry: its example with Sentry's real client, on a transport that keeps the reports."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from tenacity import wait_fixed

from smartpipe import Batch, Reject, Retry, RetryPolicy, Service
from smartpipe.testing import MemoryBroker
from tests.support.examples import import_example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

sentry_sdk = pytest.importorskip("sentry_sdk", reason="Sentry's client is not here: pip install sentry-sdk")

SECRET = "ada@secret.example"


@pytest.fixture
def example() -> Iterator[ModuleType]:
    with import_example("errors_to_sentry") as module:
        yield module
    sentry_sdk.init()  # off


@pytest.fixture
def reports(example: ModuleType) -> list[Any]:
    """The envelopes that Sentry's client sends, from now on."""
    envelopes = list[Any]()

    class Memory(sentry_sdk.transport.Transport):  # type: ignore[misc,name-defined]
        def capture_envelope(self, envelope: Any) -> None:
            envelopes.append(envelope)

    example.init_sentry(dsn="https://key@sentry.example/1", transport=Memory)
    return envelopes


async def run(service: Service, *events: Any, body: str | None = None) -> None:
    async with MemoryBroker(service) as broker:
        for event in events:
            await broker.publish(event)
            await broker.drain()
        if body is not None:
            await broker.send("mailer", body)
        await broker.drain()


def with_handler(example: ModuleType, handler: Any, **options: Any) -> Service:
    service = Service("mailer", retry=RetryPolicy(attempts=2, wait=wait_fixed(30)))
    service.on_failure(example.report)
    service.subscribe(example.UserSignedUp, **options)(handler)
    return service


def events_of(reports: list[Any]) -> list[dict[str, Any]]:
    return [envelope.get_event() for envelope in reports]


def own_frames(event: dict[str, Any]) -> list[str]:
    """Return the functions by which Sentry groups the event."""
    return [frame["function"] for frame in event["exception"]["values"][-1]["stacktrace"]["frames"] if frame["in_app"]]


async def test_each_attempt_is_one_report_with_its_tags_and_level(example: ModuleType, reports: list[Any]) -> None:
    async with MemoryBroker(example.service) as broker:
        event_id = await broker.publish(example.UserSignedUp(email=SECRET))
        await broker.drain()
        [published] = broker.transport.records[:1]

    first, last = events_of(reports)
    assert (first["level"], last["level"]) == ("warning", "error")
    assert [event["tags"]["attempt"] for event in (first, last)] == [1, 2]
    for event in (first, last):
        tags = event["tags"]
        assert (tags["event_id"], tags["event_type"], tags["service"]) == (event_id, "user.signed_up", "mailer")
        assert tags["trace_id"] in published.body
        assert tags["handler"].endswith("send_welcome")
        assert event["exception"]["values"][-1]["type"] == "ConnectionError"
    assert last["tags"]["kind"] == "retries-exhausted"


async def test_reports_are_grouped_by_the_frames_of_the_handler(example: ModuleType, reports: list[Any]) -> None:
    def look_up() -> None:
        raise LookupError("no such address")

    async def handler(event: Any) -> None:
        look_up()

    await run(with_handler(example, handler), example.UserSignedUp(email="a"), example.UserSignedUp(email="b"))

    assert [own_frames(event) for event in events_of(reports)] == [["handler", "look_up"]] * 4
    assert not any(event.get("fingerprint") for event in events_of(reports))


async def test_errors_without_a_traceback_are_grouped_by_handler_and_type(
    example: ModuleType, reports: list[Any]
) -> None:
    async def handler(event: Any) -> None:
        await asyncio.sleep(60)

    await run(with_handler(example, handler, timeout_seconds=5), example.UserSignedUp(email="a"))

    assert len(reports) == 2
    for event in events_of(reports):
        name, error = event["fingerprint"]
        assert (name.rpartition(".")[2], error) == ("handler", "HandlerTimeout")


BODIES = {
    "not json": SECRET,
    "invalid data": '{"specversion":"1.0","id":"1","source":"x","type":"user.signed_up","dataversion":"1.0",'
    f'"data":{{"email":["{SECRET}"]}}}}',
    "unknown type": '{"specversion":"1.0","id":"1","source":"x","type":"user.left","dataversion":"1.0",'
    f'"data":{{"email":"{SECRET}"}}}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_message_that_cannot_be_decoded_is_reported_without_its_body(
    body: str, example: ModuleType, reports: list[Any]
) -> None:
    await run(example.service, body=body)

    [event] = events_of(reports)
    assert event["level"] == "error"
    assert event["message"]
    assert event["fingerprint"] == ["mailer", event["tags"]["kind"]]
    assert SECRET not in reports[0].serialize().decode()


class Address(BaseModel):
    email: str


async def test_no_data_of_the_event_is_sent(example: ModuleType, reports: list[Any]) -> None:
    async def handler(event: Any) -> None:
        local = Address(email=event.email)
        logging.getLogger("shop").warning("sending to %s", local.email)  # a breadcrumb of Sentry
        raise ConnectionError("the mail server is down")

    await run(with_handler(example, handler), example.UserSignedUp(email=SECRET))

    assert len(reports) == 2
    assert not any(SECRET in envelope.serialize().decode() for envelope in reports)


async def test_a_retry_that_the_handler_asks_for_is_reported_only_when_no_attempt_is_left(
    example: ModuleType, reports: list[Any]
) -> None:
    async def handler(event: Any) -> None:
        raise Retry("greylisted", after_seconds=60)

    await run(with_handler(example, handler), example.UserSignedUp(email="a"))

    [event] = events_of(reports)
    assert (event["tags"]["outcome"], event["tags"]["attempt"]) == ("dead_lettered", 2)


async def test_the_failure_of_a_batch_is_a_report_for_each_item_in_one_group(
    example: ModuleType, reports: list[Any]
) -> None:
    async def handler(events: list[Any]) -> None:
        raise Reject("the mail server is gone")

    handler.__annotations__["events"] = list[example.UserSignedUp]  # type: ignore[name-defined]
    service = with_handler(example, handler, batch=Batch(size=3))
    async with MemoryBroker(service) as broker:
        for _ in range(3):
            await broker.publish(example.UserSignedUp(email="a"))
        await broker.drain()
        assert len(broker.dead_lettered()) == 3

    events = events_of(reports)
    assert len({event["tags"]["message_id"] for event in events}) == len(events) == 3
    assert [own_frames(event) for event in events] == [["handler"]] * 3
