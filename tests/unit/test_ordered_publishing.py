"""FIFO topics publish one group's events in order. Tenants, delays and direct sends."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Event, Publisher, PublishError, Queue
from smartpipe.keys import sqs_id
from smartpipe.publisher.prepare import Publication, prepare, queue_of
from smartpipe.transports.aws.entries import send_entries
from tests.support.events import ADA, Clicked, OrderPlaced, Paid, ledger
from tests.support.fakes import FakeTransport, refused, throttled
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.message import OutgoingMessage
    from smartpipe.middleware import Next


class HugePaid(Event, topic=ledger, type="huge.paid", version="1.0", key="account"):
    account: str
    text: str = ""


async def pass_on(publication: Publication, call_next: Next[Publication, str]) -> str:
    return await call_next(publication)


def message_of(event: Event, **options: Any) -> OutgoingMessage:
    return prepare(Publication(event, **options), source="s").message


def sent(transport: FakeTransport, verb: str = "publish") -> list[list[tuple[str | None, int]]]:
    """Each request's messages, as group and number."""
    return [
        [(entry.group_id, int(entry.body.rpartition('"number":')[2].rstrip("}"))) for entry in entries]
        for name, _, entries, _ in transport.calls
        if name == verb
    ]


def test_fault_57_the_event_id_is_always_the_deduplication_id_on_fifo() -> None:
    twins = [prepare(Publication(Paid(account="a")), source="s") for _ in range(2)]

    assert [twin.message.deduplication_id for twin in twins] == [twin.event_id for twin in twins]
    assert twins[0].event_id != twins[1].event_id


@pytest.mark.parametrize("first", ["paid.fifo", Queue("paid", fifo=True), Queue("paid", fifo=True, delay_seconds=5)])
def test_a_queue_has_one_order_however_the_callers_name_it(first: Queue | str) -> None:
    transport = FakeTransport()
    transport.script["send"].append(1.0)

    async def main() -> None:
        async with Publisher("test", transport=transport) as p:
            await asyncio.gather(
                p.publish(Paid(account="a", number=1), queue=first),
                p.publish(Paid(account="a", number=2), queue="paid.fifo"),
            )

    run_virtually(main())

    assert [at for *_, at in transport.calls] == [0.0, 1.0]
    assert sent(transport, "send") == [[("a", 1)], [("a", 2)]]


def test_the_key_is_the_group_on_fifo_and_not_on_standard_topics() -> None:
    assert message_of(Paid(account="a-1")).group_id == "a-1"
    assert message_of(OrderPlaced(order_id="7")).group_id is None
    assert message_of(OrderPlaced(order_id="7")).deduplication_id is None


@pytest.mark.parametrize("value", ["Ada Lovelace", "zoë", "x" * 129])
def test_a_group_id_that_sqs_would_refuse_is_hashed(value: str) -> None:
    message = message_of(Paid(account=value))

    assert message.group_id == sqs_id(value)
    assert message.group_id != value


def test_an_enumeration_is_grouped_by_its_value() -> None:
    class Plan(str, Enum):  # noqa: UP042 - its str() differs from its value, as this test needs
        FREE = "free"

    class Upgraded(Event, topic=ledger, type="upgraded", version="1.0", key="plan"):
        plan: Plan

    assert message_of(Upgraded(plan=Plan.FREE)).group_id == "free"


def test_a_tenant_is_the_group_on_standard_topics_without_any_deduplication() -> None:
    message = message_of(Clicked(shop="shop-1"))

    assert (message.group_id, message.deduplication_id) == ("shop-1", None)
    assert message_of(Clicked(shop=None)).group_id is None


def test_an_empty_key_is_an_error_that_suggests_the_alternative() -> None:
    with pytest.raises(PublishError, match=r"key, 'account', is empty; set the key, or publish to a standard"):
        message_of(Paid(account=None))


def test_an_event_without_key_cannot_go_to_a_fifo_queue() -> None:
    with pytest.raises(PublishError, match="its class declares no key="):
        message_of(ADA, queue=queue_of("mailer.fifo"))


def test_fault_34_concurrent_publishes_of_one_key_are_sent_in_order_and_do_not_delay_others() -> None:
    transport = FakeTransport()
    transport.script["publish"].append((1.0, []))  # the first request takes a second

    async def main() -> None:
        async with Publisher("test", transport=transport) as publisher:
            events = [Paid(account=account, number=number) for number in range(3) for account in "ab"]
            await asyncio.gather(*map(publisher.publish, events))

    run_virtually(main())

    assert sent(transport) == [[("a", 0), ("b", 0)], [("a", 1), ("b", 1)], [("a", 2), ("b", 2)]]
    times = [time for _, _, _, time in transport.calls]
    assert times[1] >= times[0] + 1.0


def test_fault_34_an_entry_with_a_temporary_failure_is_not_overtaken_by_its_group() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([throttled(0)])

    async def main() -> None:
        async with Publisher("test", transport=transport) as publisher:
            await publisher.publish_many([Paid(account=a, number=n) for n in range(3) for a in "ab"])

    run_virtually(main())

    for account in "ab":
        numbers = [number for request in sent(transport) for group, number in request if group == account]
        assert numbers == sorted(numbers)
        assert set(numbers) == {0, 1, 2}
    assert all(len({group for group, _ in request}) == len(request) for request in sent(transport))


def test_different_groups_share_requests() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with Publisher("test", transport=transport) as publisher:
            await publisher.publish_many([Paid(account=str(number)) for number in range(30)])

    run_virtually(main())

    assert transport.batches("publish") == [10, 10, 10]


def test_publish_many_stops_only_the_group_of_a_failed_event() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(0)])

    async def main() -> PublishError:
        async with Publisher("test", transport=transport) as publisher:
            with pytest.raises(PublishError) as caught:
                await publisher.publish_many([Paid(account=a, number=n) for n in range(3) for a in "ab"])
            return caught.value

    error = run_virtually(main())

    assert [failure.code for failure in error.failures] == ["InvalidMessageContents", "GroupStopped", "GroupStopped"]
    assert {failure.event.account for failure in error.failures if isinstance(failure.event, Paid)} == {"a"}
    assert sent(transport) == [[("a", 0), ("b", 0)], [("b", 1)], [("b", 2)]]


def test_an_event_that_cannot_be_encoded_stops_its_group_too() -> None:
    transport = FakeTransport()

    async def main() -> PublishError:
        async with Publisher("test", transport=transport) as publisher:
            with pytest.raises(PublishError) as caught:
                await publisher.publish_many([HugePaid(account="a", text="x" * 300_000), HugePaid(account="a")])
            return caught.value

    assert [failure.code for failure in run_virtually(main()).failures] == ["EventTooLarge", "GroupStopped"]
    assert transport.calls == []


def test_an_event_sent_to_a_queue_does_not_use_its_topic_and_keeps_its_delay() -> None:
    transport = FakeTransport()

    async def main() -> None:
        async with Publisher("test", transport=transport) as publisher:
            await publisher.publish(ADA, queue="mailer", delay_seconds=0.4)
            await publisher.publish_many([ADA], queue=Queue("mailer"))

    run_virtually(main())

    assert [(verb, name) for verb, name, _, _ in transport.calls] == [("send", "mailer"), ("send", "mailer")]
    assert [entry.delay_seconds for entry in transport.entries("send")] == [1, 0]
    assert send_entries(transport.entries("send"))[0]["DelaySeconds"] == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"delay_seconds": 5}, "SNS has no delays: send the event to a queue"),
        ({"queue": Queue("mailer"), "delay_seconds": 901}, "EventBridge Scheduler"),
        ({"queue": Queue("mailer"), "delay_seconds": -1}, "must be 0 to 900"),
        ({"queue": Queue("mailer"), "delay_seconds": float("nan")}, "must be 0 to 900"),
        ({"queue": Queue("m", fifo=True), "delay_seconds": 5}, r"Queue\(..., fifo=True, delay_seconds=...\)"),
    ],
)
def test_a_delay_that_aws_does_not_support_is_an_error_that_suggests_the_alternative(
    options: dict[str, Any], error: str
) -> None:
    with pytest.raises(PublishError, match=error):
        message_of(Paid(account="a"), **options)


@pytest.mark.parametrize("middleware", [[], [pass_on]], ids=["chunks", "each"])
def test_events_read_before_a_rejected_event_of_their_group_are_still_published(middleware: list[Any]) -> None:
    transport = FakeTransport()

    async def main() -> PublishError:
        async with Publisher("test", transport=transport, middleware=middleware) as publisher:
            events = [Paid(account="a", number=1), Paid(account="", number=2), Paid(account="b", number=3)]
            with pytest.raises(PublishError) as caught:
                await publisher.publish_many([*events, HugePaid(account="a", text="x" * 300_000), Paid(account="a")])
            return caught.value

    error = run_virtually(main())

    assert sorted(failure.code for failure in error.failures) == ["EventTooLarge", "GroupStopped", "MissingKey"]
    assert sorted(message for request in sent(transport) for message in request) == [("a", 1), ("b", 3)]


@pytest.mark.parametrize("middleware", [[], [pass_on]], ids=["chunks", "each"])
def test_events_of_other_groups_are_read_and_published_behind_a_stopped_one(middleware: list[Any]) -> None:
    transport = FakeTransport()

    async def main() -> PublishError:
        async with Publisher("test", transport=transport, middleware=middleware) as publisher:
            huge = HugePaid(account="a", text="x" * 300_000)
            events = [huge, Paid(account="a", number=1), Paid(account="b", number=2), Paid(account="a", number=3)]
            with pytest.raises(PublishError) as caught:
                await publisher.publish_many([*events, Paid(account="c", number=4)])
            return caught.value

    error = run_virtually(main())

    assert sorted(failure.code for failure in error.failures) == ["EventTooLarge", "GroupStopped", "GroupStopped"]
    assert sorted(message for request in sent(transport) for message in request) == [("b", 2), ("c", 4)]
