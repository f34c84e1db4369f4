"""A test replaces the lifespan of a service that a module defines."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Delivery, Service
from smartpipe.envelope import encode, wrap
from smartpipe.testing import MemoryBroker
from smartpipe.transports.open import use_transport
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Mail:
    def __init__(self) -> None:
        self.sent: list[str] = []


@dataclass
class State:
    mail: Mail


opened: list[str] = []


async def lifespan() -> AsyncIterator[State]:
    opened.append("real")
    yield State(Mail())


service = Service("mailer", lifespan=lifespan)


@service.subscribe(UserSignedUp)
async def send(event: UserSignedUp, delivery: Delivery, mail: Mail) -> None:
    mail.sent.append(event.name)
    assert delivery.state.mail is mail


@pytest.fixture(autouse=True)
def _nothing_is_open() -> None:
    opened.clear()


async def handle_one() -> None:
    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()
        broker.assert_handled(UserSignedUp, by=send, times=1)


async def test_handlers_get_the_value_and_the_lifespan_does_not_run() -> None:
    mail = Mail()

    with service.override(State(mail)):
        await handle_one()

    assert mail.sent == ["Ada"]
    assert opened == []
    await handle_one()  # outside, the real one
    assert opened == ["real"]
    assert mail.sent == ["Ada"]


async def test_another_lifespan_is_opened_and_closed() -> None:
    mail, events = Mail(), list[str]()

    async def generator() -> AsyncIterator[State]:
        events.append("opened")
        yield State(mail)
        events.append("closed")

    for replacement in (generator, asynccontextmanager(generator)):
        with service.override(lifespan=replacement):
            await handle_one()

    assert events == ["opened", "closed"] * 2
    assert mail.sent == ["Ada"] * 2
    assert opened == []


async def test_blocks_may_be_nested_and_end_after_an_error() -> None:
    outer, inner = Mail(), Mail()

    with service.override(State(outer)):
        with suppress(ValueError), service.override(State(inner)):
            await handle_one()
            raise ValueError
        await handle_one()

    assert (inner.sent, outer.sent) == (["Ada"], ["Ada"])


async def test_a_lambda_function_gets_it_too() -> None:
    mail = Mail()
    record = {
        "messageId": "m",
        "receiptHandle": "r",
        "body": encode(wrap(ADA, source="test")),
        "attributes": {"ApproximateReceiveCount": "1"},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:mailer",
    }

    with service.override(State(mail)), use_transport(FakeTransport()):
        handler = service.lambda_handler()
        assert await handler.handle({"Records": [record]}) == {"batchItemFailures": []}
        await handler.aclose()

    assert mail.sent == ["Ada"]


async def test_a_value_that_lacks_a_handlers_parameter_is_refused_when_the_service_is_opened() -> None:
    with service.override({"post": object()}), pytest.raises(ConfigError, match="parameter 'mail' needs a Mail"):
        await handle_one()


async def test_a_service_without_a_lifespan_has_the_value_as_its_state() -> None:
    plain, seen = Service("plain"), list[Any]()

    @plain.subscribe(UserSignedUp)
    async def look(event: UserSignedUp, delivery: Delivery) -> None:
        seen.append(delivery.state)

    with plain.override("state"):
        async with MemoryBroker(plain) as broker:
            await broker.publish(ADA)
            await broker.drain()

    assert seen == ["state"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"state": 1, "lifespan": lifespan}, "pass one of them"), ({"lifespan": 5}, "is not a function")],
)
def test_a_replacement_that_cannot_be_used_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message), service.override(**arguments):
        pass
