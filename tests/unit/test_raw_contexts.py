"""The context of raw messages: models whose own functions fail, and the names in claims."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

from smartpipe import ConfigError, Delivery, DeliveryFailure, Idempotency, RetryPolicy, Service
from smartpipe.consumer.handlers import make_reader
from smartpipe.external import ExternalModel, Matcher, RawContext, RawMessage, field, where
from smartpipe.payload_offload import PayloadOffload
from smartpipe.testing import MemoryBroker


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


def make_model(context: Any) -> type[ExternalModel]:
    class Invoice(ExternalModel):
        number: int

        def get_context(self) -> RawContext:
            if isinstance(context, Exception):
                raise context
            found: RawContext = context
            return found

    return Invoice


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (KeyError("number"), "get_context() of Invoice failed: KeyError: 'number'"),
        (Unprintable(), "get_context() of Invoice failed: Unprintable"),
        (None, "get_context() of Invoice returned a NoneType, not a RawContext"),
        (RawContext(id=5), "get_context() of Invoice returned id=5, which is not a str"),  # type: ignore[arg-type]
        (RawContext(source=b"x"), "get_context() of Invoice returned source=b'x', which is not a str"),  # type: ignore[arg-type]
        (RawContext(time="now"), "get_context() of Invoice returned time='now', which is not a datetime"),  # type: ignore[arg-type]
    ],
)
async def test_a_context_that_cannot_be_read_dead_letters_the_message_with_its_reason(
    context: Any, reason: str
) -> None:
    service, failures = Service("inbox"), list[DeliveryFailure]()
    service.on_failure(failures.append)

    @service.subscribe_raw(make_model(context))
    async def handle(message: Any) -> None: ...

    async with MemoryBroker(service) as broker:
        await broker.send("inbox", {"number": 5})
        await broker.drain()

    assert [(one.kind, one.reason, one.receive_count) for one in broker.dead_lettered()] == [
        ("invalid-data", reason, 1)
    ]
    assert [one.outcome for one in failures] == ["dead_lettered"]


async def test_a_time_without_a_time_zone_is_replaced_by_that_of_the_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service, times = Service("inbox", retry=RetryPolicy(attempts=2)), list[datetime | None]()

    @service.subscribe_raw(make_model(RawContext(time=datetime(2026, 1, 1))))  # noqa: DTZ001 - the subject of the test
    async def handle(message: Any, delivery: Delivery) -> None:
        times.append(delivery.time)
        if delivery.attempt == 1:
            raise KeyError

    async with MemoryBroker(service) as broker:
        for _ in range(150):  # the ages of events are computed for a hundred at a time
            await broker.send("inbox", {"number": 5})
        await broker.drain()

    assert len(broker.handled(ExternalModel)) == 150
    assert len(times) == 300
    assert all(time is not None and time.utcoffset() == timedelta() for time in times)
    assert "Internal error" not in caplog.text


async def test_a_time_with_a_time_zone_is_kept() -> None:
    service, times = Service("inbox"), list[datetime | None]()
    time = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    @service.subscribe_raw(make_model(RawContext(time=time)))
    async def handle(message: Any, delivery: Delivery) -> None:
        times.append(delivery.time)

    async with MemoryBroker(service) as broker:
        await broker.send("inbox", {"number": 5})
        await broker.drain()

    assert times == [time]


async def test_a_model_that_cannot_say_whether_a_message_is_a_test_dead_letters_it() -> None:
    class Strict(ExternalModel):
        @classmethod
        def is_test(cls, message: RawMessage) -> bool:
            return bool(message.json["test"])

    service = Service("inbox")

    @service.subscribe_raw(Strict)
    async def handle(message: Strict) -> None: ...

    async with MemoryBroker(service) as broker:
        await broker.send("inbox", {"number": 5})
        await broker.drain()

    assert [(one.kind, one.reason) for one in broker.dead_lettered()] == [
        ("invalid-data", "is_test() of Strict failed: KeyError: 'test'")
    ]


def test_a_model_whose_matcher_is_not_a_matcher_is_refused_when_it_is_declared() -> None:
    class Wrong(ExternalModel):
        @classmethod
        def get_matcher(cls) -> Matcher | None:
            return "kind"  # type: ignore[return-value]

    async def handle(message: Wrong) -> None: ...

    with pytest.raises(ConfigError, match=r"get_matcher\(\) of Wrong returned 'kind', which is neither a matcher nor"):
        Service("inbox").subscribe_raw(Wrong)(handle)


def test_a_matcher_that_is_async_is_refused_because_it_would_select_everything() -> None:
    async def match(message: RawMessage, kind: str = "") -> bool:
        return False

    class Asking:
        async def __call__(self, message: RawMessage) -> bool:
            return False

    for function in (match, partial(match, kind="row"), Asking()):
        with pytest.raises(ConfigError, match=r"is async, and matchers run without I/O"):
            Service("inbox").subscribe_raw(dict, match=function)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"where\('row'\): write a function that takes the RawMessage"):
        where("row")  # type: ignore[arg-type]


class Row(BaseModel):
    kind: str
    number: int


async def _find_claims(kinds: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Return the source and the claim of a message of each kind, whose handlers are declared in this order."""
    service, found = Service("inbox"), dict[str, tuple[str, str]]()

    def declare(kind: str) -> None:
        async def handle(row: Row, delivery: Delivery) -> None:
            claim: Any = delivery.claim
            found[kind] = (delivery.source, claim._claim.key)

        handle.__qualname__ = f"handle_{kind}"
        service.subscribe_raw(Row, match=field("kind", kind), idempotent=Idempotency(key="number"))(handle)

    for kind in kinds:
        declare(kind)
    async with MemoryBroker(service) as broker:
        for kind in kinds:
            await broker.send("inbox", {"kind": kind, "number": 5})
        await broker.drain()
    return found


async def test_claims_and_sources_of_raw_messages_do_not_depend_on_the_order_of_declarations() -> None:
    found = await _find_claims(("a", "b"))

    assert found == await _find_claims(("b", "a"))
    assert [source for source, _ in found.values()] == ["Row", "Row"]
    assert found["a"] != found["b"]


@pytest.mark.parametrize("options", [{"idempotent": True}, {}])
def test_one_function_cannot_claim_messages_of_one_model_with_two_matchers(options: Any) -> None:
    service = Service("inbox")

    async def handle(row: Row) -> None: ...

    service.subscribe_raw(Row, match=field("kind", "a"), **options)(handle)
    with pytest.raises(ConfigError, match=r"already has a handler of this name for Row, and an idempotent handler"):
        service.subscribe_raw(Row, match=field("kind", "b"), idempotent=True)(handle)


def test_one_function_may_take_one_model_with_two_matchers_if_it_claims_nothing() -> None:
    service = Service("inbox")

    @service.subscribe_raw(Row, match=field("kind", "a"))
    @service.subscribe_raw(Row, match=field("kind", "b"))
    async def handle(row: Row) -> None: ...

    assert len({one.name for one in service.handlers}) == 1


@pytest.mark.parametrize("model", [Row, Row | RawContext, dict, str, ExternalModel])
def test_a_model_that_is_not_an_event_is_refused_with_the_decorator_that_takes_it(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"it is not an event. For messages of other systems, write @service.sub"):
        Service("inbox").subscribe(model)


def test_a_model_with_a_field_of_an_unknown_type_is_refused_when_the_service_starts() -> None:
    class Unfinished(BaseModel):
        number: Missing  # type: ignore[name-defined]  # noqa: F821

    service = Service("inbox")

    @service.subscribe_raw(Unfinished)
    async def handle(message: Any) -> None: ...

    with pytest.raises(ConfigError, match="a model has a field of type 'Missing', which its module does not define"):
        make_reader(service.handlers, PayloadOffload())
