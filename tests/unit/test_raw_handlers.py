"""Handlers of messages that are not events of smartpipe: which message reaches which handler, and what it gets."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from pydantic import BaseModel, field_validator
from tenacity import wait_none

from smartpipe import (
    Batch,
    ConfigError,
    DecodeError,
    Delivery,
    DeliveryFailure,
    Event,
    Idempotency,
    Queue,
    Reject,
    RetryPolicy,
    Service,
)
from smartpipe.consumer.dead_letter import reason_of
from smartpipe.consumer.handlers import slots_for
from smartpipe.dlq.messages import preview, read_message
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.envelope.compression import ENCODING_ATTRIBUTE, compress
from smartpipe.envelope.decode_errors import NoEventType
from smartpipe.external import ExternalModel, Matcher, RawContext, RawMessage, attribute, field, where
from smartpipe.message import Attribute, Message
from smartpipe.middleware import Logging
from smartpipe.monitoring import fleet_rows
from smartpipe.testing import MemoryBroker
from smartpipe.topology.derive import derive
from smartpipe.topology.export.asyncapi import build_document
from smartpipe.topology.export.pictures import draw_dot, draw_mermaid
from smartpipe.transports.memory.transport import NAMING
from smartpipe.transports.open import use_transport
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.unit.test_lambda import Context, failed, record

ONCE = RetryPolicy(attempts=1, wait=wait_none())


class Row(BaseModel):
    kind: str
    number: int


class Taken:
    """The handled messages, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def by(self, name: str) -> Any:
        async def handle(message: Any, delivery: Delivery) -> None:
            self.calls.append((name, message))

        handle.__qualname__ = name
        return handle


async def send_all(service: Service, *bodies: Any, **options: Any) -> MemoryBroker:
    async with MemoryBroker(service) as broker:
        for body in bodies:
            await broker.send(service.queue.name, body, **options)
        await broker.drain()
    return broker


async def test_an_event_goes_to_its_handler_first_and_others_to_the_first_matcher_that_selects_them() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(Row, match=field("kind", "row"))(taken.by("row"))
    service.subscribe_raw(dict)(taken.by("rest"))
    service.subscribe_raw(Row, match=field("kind", "other"))(taken.by("too late"))
    service.subscribe(UserLeft)(taken.by("event"))
    left = {"specversion": "1.0", "type": "user.left", "source": "s", "id": "1", "kind": "row", "data": {"name": "Bob"}}

    await send_all(service, left, {"kind": "row", "number": 1}, {"kind": "other", "number": 2})

    assert taken.calls == [
        ("event", UserLeft(name="Bob")),
        ("row", Row(kind="row", number=1)),
        ("rest", {"kind": "other", "number": 2}),
    ]


async def test_a_cloudevent_of_a_type_without_handler_may_go_to_a_raw_handler() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe(UserLeft)(taken.by("event"))
    service.subscribe_raw(dict, match=field("type", "unknown"))(taken.by("raw"))
    unknown = {"specversion": "1.0", "type": "unknown", "source": "s", "id": "1", "data": {}}

    await send_all(service, unknown)

    assert taken.calls == [("raw", unknown)]


async def test_why_a_message_is_no_event_is_not_found_out_if_a_raw_handler_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[NoEventType]()

    def find_reason(error: NoEventType) -> DecodeError:
        asked.append(error)
        return DecodeError("not-cloudevent", "for a test")

    monkeypatch.setattr(NoEventType, "reason", property(find_reason))
    service, taken = Service("inbox"), Taken()
    service.subscribe(UserLeft)(taken.by("event"))
    service.subscribe_raw(dict, match=field("kind"))(taken.by("raw"))

    await send_all(service, {"kind": "order"})
    assert (taken.calls, asked) == ([("raw", {"kind": "order"})], [])

    [letter] = (await send_all(service, {"number": 1})).dead_lettered()
    assert asked
    assert letter.reason.endswith("as an event: for a test")


async def test_an_event_with_invalid_data_is_not_offered_to_raw_handlers() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe(UserLeft)(taken.by("event"))
    service.subscribe_raw(dict)(taken.by("raw"))

    broker = await send_all(
        service, {"specversion": "1.0", "type": "user.left", "source": "s", "id": "1", "data": {"name": 5}}
    )

    assert [one.kind for one in broker.dead_lettered()] == ["invalid-data"]
    assert taken.calls == []


async def test_handlers_with_one_model_and_equal_matchers_are_one_unit_in_their_order() -> None:
    service, taken = Service("inbox"), Taken()
    for name in ("first", "second"):
        service.subscribe_raw(Row, match=field("kind", "row") & attribute("x"))(taken.by(name))

    await send_all(service, {"kind": "row", "number": 1}, attributes={"x": "y"})

    assert [name for name, _ in taken.calls] == ["first", "second"]
    assert [type_ for one in service.handlers for type_ in one.event_types] == ["Row", "Row"]


async def test_types_with_one_model_and_different_matchers_have_names_of_their_own() -> None:
    service, taken = Service("inbox"), Taken()
    for kind in ("a", "b"):
        service.subscribe_raw(Row, match=field("kind", kind))(taken.by(kind))

    await send_all(service, {"kind": "b", "number": 1}, {"kind": "a", "number": 2})

    assert [name for name, _ in taken.calls] == ["b", "a"]
    assert [type_ for one in service.handlers for type_ in one.event_types] == ["Row", "Row#2"]


@pytest.mark.parametrize(
    ("unknown_events", "kinds", "ignored"), [("dead-letter", ["unknown-event-type"], 0), ("ignore", [], 1)]
)
async def test_unknown_events_decides_for_a_message_that_no_matcher_selects(
    unknown_events: Any, kinds: list[str], ignored: int
) -> None:
    service, taken = Service("inbox", unknown_events=unknown_events), Taken()
    service.subscribe_raw(Row, match=field("kind", "row"))(taken.by("row"))

    broker = await send_all(service, "no JSON at all")

    assert [one.kind for one in broker.dead_lettered()] == kinds
    assert broker.timeline.count("ignored") == ignored
    assert taken.calls == []


@pytest.mark.parametrize(
    ("model", "body", "reason"),
    [
        (Row, {"kind": "row", "number": "x"}, "does not fit Row: number: input should be a valid integer"),
        (Row, "no JSON", "does not fit Row: body: Invalid JSON"),
        (dict, [1], "does not fit dict: it is not a JSON object"),
        (dict, "no JSON", "does not fit dict: it is not a JSON object"),
    ],
)
async def test_a_body_that_does_not_fit_its_model_is_dead_lettered_as_invalid_data(
    model: type[Any], body: Any, reason: str
) -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(model)(taken.by("raw"))

    broker = await send_all(service, body if isinstance(body, str) else json.dumps(body))

    [found] = broker.dead_lettered()
    assert (found.kind, found.event) == ("invalid-data", None)
    assert reason in found.reason


async def test_the_errors_of_a_model_go_into_the_dead_letter_message() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(Row)(taken.by("raw"))

    async with MemoryBroker(service) as broker:
        await broker.send("inbox", {"kind": 1})
        await broker.drain()
        [stored] = await broker.transport.receive(
            "inbox-dlq", max_messages=1, wait_seconds=0, visibility_timeout_seconds=30
        )

    reason = reason_of(stored)
    assert [one["loc"] for one in reason["errors"]] == [["kind"], ["number"]]


async def test_a_broken_matcher_and_a_broken_validator_are_named_as_the_reason() -> None:
    class Broken(BaseModel):
        kind: str

        @field_validator("kind")
        @classmethod
        def fail(cls, value: str) -> str:
            raise KeyError(value)

    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(Row, match=lambda message: message.json["kind"] == "row")(taken.by("row"))
    service.subscribe_raw(Broken)(taken.by("broken"))

    broker = await send_all(service, '{"number": 1}', '{"kind": "x"}')

    assert [(one.kind, one.reason) for one in broker.dead_lettered()] == [
        ("invalid-data", "the matcher of Row failed: KeyError: 'kind'"),
        ("invalid-data", "a validator of Broken failed: KeyError"),
    ]


async def test_text_is_the_body_of_any_message_and_large_and_wrapped_bodies_are_read() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(Row, match=field("kind", "row"))(taken.by("row"))
    service.subscribe_raw(str)(taken.by("text"))
    large = {"kind": "row", "number": 1, "more": [{}] * 2_000}
    wrapped = {"Type": "Notification", "MessageId": "1", "TopicArn": "arn", "Message": '{"kind": "row", "number": 2}'}

    await send_all(service, large, wrapped, "a,b,c\n1,2,3")

    assert sorted(taken.calls, key=str) == [
        ("row", Row(kind="row", number=1)),
        ("row", Row(kind="row", number=2)),
        ("text", "a,b,c\n1,2,3"),
    ]


async def test_a_compressed_body_is_matched_and_read_as_its_text() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(Row, match=field("kind", "row"))(taken.by("row"))

    await send_all(service, compress('{"kind": "row", "number": 3}', "gzip"), attributes={ENCODING_ATTRIBUTE: "gzip"})

    assert taken.calls == [("row", Row(kind="row", number=3))]


async def test_a_delivery_of_a_raw_message_has_ids_attributes_and_a_cause_for_published_events() -> None:
    class Order(ExternalModel):
        order_id: str

        def get_context(self) -> RawContext:
            return RawContext(id=self.order_id, source="legacy")

    service = Service("inbox", publishes=[UserLeft], middleware=[Logging()])
    seen: list[Any] = []

    @service.subscribe_raw(Order)
    async def take(order: Order, delivery: Delivery) -> None:
        seen.append((delivery.event, delivery.event_id, delivery.source, delivery.subject, delivery.extensions))
        seen.append((delivery.attribute("n"), delivery.attribute("tags"), delivery.attribute("missing")))
        await delivery.publish(UserLeft(name=order.order_id))

    async with MemoryBroker(service) as broker:
        await broker.send("inbox", {"orderId": "o-1", "subject": "x"}, attributes={"n": 1.5, "tags": ["a"]})
        await broker.drain()
        [published] = broker.published(UserLeft)

    assert seen == [(Order(order_id="o-1"), "o-1", "legacy", None, {}), (1.5, ["a"], None)]
    assert published.name == "o-1"
    [sent] = [one for one in broker.transport.records if isinstance(one.event, UserLeft)]
    assert '"causationid":"o-1"' in sent.body


async def test_an_id_that_is_too_long_is_replaced_by_that_of_the_message() -> None:
    class Long(ExternalModel):
        def get_context(self) -> RawContext:
            return RawContext(id="x" * 257, source="y" * 257)

    service = Service("inbox")
    seen: list[Delivery] = []

    @service.subscribe_raw(Long)
    async def take(message: Long, delivery: Delivery) -> None:
        seen.append(delivery)

    await send_all(service, "{}")

    assert (seen[0].event_id, seen[0].source) == (seen[0].message.message_id, "Long")
    assert seen[0].time is not None


async def test_a_failed_raw_message_is_retried_reported_and_dead_lettered_with_its_type() -> None:
    failures: list[DeliveryFailure] = []
    service = Service("inbox", retry=RetryPolicy(attempts=2, wait=wait_none()))
    service.on_failure(failures.append)

    @service.subscribe_raw(Row)
    async def fail(row: Row) -> None:
        raise OSError("down")

    async with MemoryBroker(service) as broker:
        await broker.send("inbox", {"kind": "row", "number": 1})
        await broker.drain()
        [stored] = await broker.transport.receive(
            "inbox-dlq", max_messages=1, wait_seconds=0, visibility_timeout_seconds=30
        )

    assert [(one.outcome, str(one.event), one.event_type) for one in failures] == [
        ("retried", "kind='row' number=1", "Row"),
        ("dead_lettered", "kind='row' number=1", "Row"),
    ]
    dead = read_message(stored)
    assert (dead.kind, dead.event_type, dead.event_id) == ("retries-exhausted", "Row", failures[0].event_id)
    assert preview(stored, 100) == '{"kind": "row", "number": 1}'


def test_an_event_of_eventbridge_in_a_dead_letter_queue_shows_its_detail_type() -> None:
    body = json.dumps({"id": "e-1", "source": "shop", "detail-type": "Order Placed", "detail": {}})

    dead = read_message(Message("m", "r", body))

    assert (dead.event_id, dead.event_type, dead.source) == ("e-1", "Order Placed", "shop")


async def test_an_idempotent_raw_handler_claims_by_the_id_or_by_a_field() -> None:
    service = Service("inbox")
    seen: list[int] = []

    @service.subscribe_raw(Row, idempotent=Idempotency(key="number"))
    async def take(row: Row) -> None:
        seen.append(row.number)

    async with MemoryBroker(service) as broker:
        for number in (1, 1, 2):
            await broker.send("inbox", {"kind": "row", "number": number})
            await broker.drain()

    assert seen == [1, 2]


async def test_a_redrive_looks_up_the_claims_of_raw_handlers() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(Row)(taken.by("row"))
    service.subscribe(UserLeft)(taken.by("event"))
    processed = ProcessedEvents(service.handlers, None)

    handlers, keys = await processed._claims_for(read_message(Message("m", "r", '{"kind": "row", "number": 1}')))

    assert (handlers, keys) == (1, [])


async def test_a_batch_handler_takes_lists_of_raw_messages() -> None:
    service = Service("inbox")
    sizes: list[int] = []

    @service.subscribe_raw(Row, batch=Batch(size=3))
    async def take(rows: list[Row]) -> None:
        sizes.append(len(rows))

    await send_all(service, *({"kind": "row", "number": number} for number in range(3)))

    assert sizes == [3]
    assert slots_for(service.handlers, 1) == 3


async def test_a_raw_handler_runs_on_a_fifo_queue_in_order() -> None:
    service, taken = Service("inbox", queue=Queue("inbox", fifo=True)), Taken()
    service.subscribe_raw(Row)(taken.by("row"))

    await send_all(service, *({"kind": "row", "number": number} for number in range(5)), group_id="g")

    assert [row.number for _, row in taken.calls] == [0, 1, 2, 3, 4]


async def test_a_lambda_function_calls_raw_handlers_too() -> None:
    service, taken = Service("mailer", retry=ONCE), Taken()
    service.subscribe_raw(Row)(taken.by("row"))
    service.subscribe(UserSignedUp)(taken.by("event"))
    raw = {**record(ADA, 1), "body": '{"kind": "row", "number": 1}'}

    with use_transport(FakeTransport()):
        handler = service.lambda_handler()
        response = await handler.handle({"Records": [raw, record(ADA, 2)]}, Context(60_000))
        await handler.aclose()

    assert failed(response) == []
    assert sorted(name for name, _ in taken.calls) == ["event", "row"]


async def test_a_sync_raw_handler_may_reject_a_message() -> None:
    service = Service("inbox")

    @service.subscribe_raw(dict)
    def take(row: dict[str, Any]) -> None:
        raise Reject(f"not {row['kind']}")

    broker = await send_all(service, {"kind": "row"})

    assert [(one.kind, one.reason) for one in broker.dead_lettered()] == [("rejected", "not row")]


async def test_a_handled_raw_message_is_logged_with_the_name_of_its_type(caplog: pytest.LogCaptureFixture) -> None:
    service, taken = Service("inbox", middleware=[Logging()]), Taken()
    service.subscribe_raw(Row)(taken.by("row"))

    with caplog.at_level(logging.INFO):
        await send_all(service, {"kind": "row", "number": 1})

    [line] = [one for one in caplog.records if one.message.startswith("Handled by")]
    assert line.fields["event_type"] == "Row"  # type: ignore[attr-defined]


def test_a_raw_queue_needs_no_topic_and_no_subscription() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(Row)(taken.by("row"))

    topology = derive([service], NAMING)

    assert (topology.topics, topology.subscriptions) == ({}, {})
    assert sorted(topology.queues) == [NAMING.queue_arn("inbox"), NAMING.queue_arn("inbox-dlq")]


def test_pictures_and_dashboards_name_the_types_of_raw_handlers() -> None:
    service, taken = Service("inbox"), Taken()
    for kind in ("a", "b"):
        service.subscribe_raw(Row, match=field("kind", kind))(taken.by(kind))

    assert 'queue_inbox -->|"external: Row<br/>external: Row#35;2"| handler_inbox' in draw_mermaid([service])
    assert "external: Row" in draw_dot([service])
    assert "| inbox | inbox | Row, Row#2 |  |" in fleet_rows._describe([service])


async def test_a_document_of_a_raw_queue_has_its_channel_without_messages() -> None:
    service, taken = Service("inbox"), Taken()
    service.subscribe_raw(Row)(taken.by("row"))

    document = build_document([service], prefix="", application="shop")

    assert document["channels"]["queue-inbox"]["messages"] == {}


def test_matchers_combine_and_compare_as_json_does() -> None:
    message = RawMessage(
        '{"a": {"b": 1}, "tags": ["x", "y"], "flag": true, "a.b": 2}',
        {
            "n": Attribute("Number", "5"),
            "list": Attribute("String.Array", '["p", 7]'),
            "text": Attribute("String", "5"),
        },
    )

    def select(*matchers: Matcher) -> list[bool]:
        return [one(message) for one in matchers]

    assert select(field("a.b", 1), field("a.b", 2), field("a.b", True), field(("a.b",), 2)) == [
        True,
        False,
        False,
        True,
    ]
    assert select(field("tags", "y"), field("tags", "z"), field("flag", True), field("flag", 1)) == [
        True, False, True, False,
    ]  # fmt: skip
    assert select(field("a"), field("a.b.c"), field("missing")) == [True, False, False]
    assert select(attribute("n", 5), attribute("n", "5"), attribute("text", "5"), attribute("list", 7)) == [
        True, False, True, True,
    ]  # fmt: skip
    assert select(attribute("n"), attribute("missing"), ~attribute("missing")) == [True, False, True]
    both, either = field("a.b", 1) & attribute("n", 6), field("a.b", 1) | attribute("n", 6)
    assert select(both, either, where(lambda one: len(one.body) > 5)) == [False, True, True]
    assert field("a.b", 1)(RawMessage("no JSON", {})) is False
    assert (field("a", 1) & attribute("n")) == (field("a", 1) & attribute("n"))
    assert field("a", 1) != field("a", 2)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (UserLeft, {}, r"subscribe_raw\(UserLeft\): it is an event, which subscribe\(\) takes"),
        (Event, {}, "it is an event"),
        (int, {}, r"subscribe_raw\(<class 'int'>\): write @service.subscribe_raw\(Model, match="),
        (Row(kind="row", number=1), {}, "write @service.subscribe_raw"),
        (BaseModel, {}, "write @service.subscribe_raw"),
        (Row, {"match": "row"}, "match='row' is neither a matcher nor a function"),
        (Row, {"idempotent": Idempotency(key="missing")}, r"'missing' is not a field of Row \(kind, number\)"),
        (dict, {"idempotent": Idempotency(key="id")}, r"'id' is not a field of dict \(it has none\)"),
        (Row, {"concurrency": 0}, "concurrency=0 must be"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_remedy(model: Any, options: Any, reason: str) -> None:
    async def handle(message: Any) -> None: ...

    with pytest.raises(ConfigError, match=reason):
        Service("inbox").subscribe_raw(model, **options)(handle)


def test_a_handler_with_a_parameter_of_another_type_is_refused() -> None:
    async def wrong(event: UserLeft) -> None: ...

    with pytest.raises(ConfigError, match="takes UserLeft, but the handler is subscribed to Row"):
        Service("inbox").subscribe_raw(Row)(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"field\(\'\'\): write a path of names"):
        field("")
