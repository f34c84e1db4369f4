"""The metrics of calls and of published events."""

from __future__ import annotations

import asyncio
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Event, Publisher, PublishError, Queue, Service, Topic, Worker
from smartpipe.errors import TransportError
from smartpipe.message import Failure
from smartpipe.settings import WorkerSettings
from smartpipe.telemetry.call_metrics import MAX_CODES, MAX_DESTINATIONS, CallMetrics, PublishMetrics, is_throttling
from smartpipe.telemetry.families import Family, Sample, add_samples
from smartpipe.telemetry.histograms import FOLD_AT
from smartpipe.telemetry.prometheus import render
from smartpipe.transport import message_counter_of
from smartpipe.transports.measured import MeasuredTransport, measure
from smartpipe.transports.memory.transport import MemoryTransport
from tests.support.events import ADA, OrderPlaced, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DENIED = TransportError("AccessDenied", "no", retryable=False)
THROTTLED = TransportError("Throttling", "slow down", retryable=True)


def counts_of(calls: CallMetrics) -> dict[tuple[str, str, str], int]:
    return {tuple(key): histogram.count for key, histogram in calls.seconds.items()}  # type: ignore[misc]


OPERATIONS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "publish": lambda one: one.publish("users", [1, 2]),
    "send": lambda one: one.send("users", [1, 2, 3]),
    "receive": lambda one: one.receive("users", max_messages=1, wait_seconds=0, visibility_timeout_seconds=30),
    "delete": lambda one: one.delete("users", ["r1"]),
    "change_visibility": lambda one: one.change_visibility("users", [("r1", 0)]),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_each_call_is_measured_by_its_error(operation: str) -> None:
    inner = FakeTransport()
    inner.script[operation].extend([DENIED, []])
    transport = measure(inner)

    with pytest.raises(TransportError, match="AccessDenied"):
        await OPERATIONS[operation](transport)
    await OPERATIONS[operation](transport)

    assert counts_of(transport.calls) == {(operation, "users", "AccessDenied"): 1, (operation, "users", ""): 1}
    sizes = {name: list(one.waiting) for name, one in transport.calls.entries.items()}
    assert sizes == {"publish": {"users": [2, 2]}, "send": {"users": [3, 3]}}.get(operation, {})


async def test_a_failed_entry_is_returned_and_the_call_has_succeeded() -> None:
    inner, failure = FakeTransport(), Failure(0, "InternalError", "", retryable=True)
    inner.script["delete"].append([failure])
    transport = measure(inner)

    assert await transport.delete("users", ["r1"]) == [failure]
    assert counts_of(transport.calls) == {("delete", "users", ""): 1}


def test_a_call_takes_as_long_as_its_transport() -> None:
    async def main() -> CallMetrics:
        transport = measure(FakeTransport())
        call = transport.receive("users", max_messages=1, wait_seconds=20, visibility_timeout_seconds=30)
        assert await call == []
        return transport.calls

    (histogram,) = run_virtually(main()).seconds.values()

    assert histogram.count == 1


async def test_a_cancelled_call_is_not_measured() -> None:
    transport = measure(FakeTransport())
    task = asyncio.ensure_future(OPERATIONS["receive"](transport))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert counts_of(transport.calls) == {}


async def test_a_transport_that_measures_is_not_measured_again_and_passes_close_and_counters_on() -> None:
    inner = FakeTransport()
    transport = measure(inner)

    assert measure(transport) is transport
    assert transport.counts is None
    await transport.aclose()
    assert inner.closed == 1


def test_throttled_calls_are_counted_from_the_first_call_on() -> None:
    calls = CallMetrics()
    calls.record("delete", "users", "", 0.1)
    line = 'smartpipe_throttled_total{operation="delete",destination="users"}'
    assert f"{line} 0\n" in render(calls.collect({}))

    for code in ("Throttling", "RequestThrottled", "AccessDenied"):
        calls.record("delete", "users", code, 0.1)

    assert f"{line} 2\n" in render(calls.collect({}))


@pytest.mark.parametrize("code", ["Throttling", "ThrottledException", "KMS.ThrottlingException", "SlowDown"])
def test_each_code_for_too_many_requests_is_throttling(code: str) -> None:
    assert is_throttling(code)
    assert not is_throttling("")
    assert not is_throttling("AccessDenied")


def test_codes_without_limit_become_other() -> None:
    calls, published = CallMetrics(), PublishMetrics()
    for number in range(MAX_CODES + 50):
        calls.record("delete", "users", f"E{number}", 0.1)
        published.chunks.append(("users", 1, [f"E{number}"], 0.1))
    published.fold()

    assert len(calls.seconds) == MAX_CODES + 1
    assert counts_of(calls)["delete", "users", "other"] == 50
    assert published.results["users", "other"] == 50


def test_destinations_without_limit_become_other() -> None:
    calls, published = CallMetrics(), PublishMetrics()
    for number in range(MAX_DESTINATIONS + 50):
        calls.record("send", f"reply-{number}", "", 0.1)
        calls.record_entries(f"reply-{number}", 1)
        published.chunks.append((f"reply-{number}", 1, [], 0.1))
    published.fold()

    assert len(calls.seconds) == len(calls.entries) == len(published.seconds) == MAX_DESTINATIONS + 1
    assert counts_of(calls)["send", "other", ""] == calls.entries["other"].count == 50
    assert published.results["other", "published"] == 50


async def test_published_events_are_counted_by_their_result() -> None:
    transport = FakeTransport()
    refused = Failure(1, "InvalidParameter", "no", retryable=False)
    transport.script["publish"].extend([[refused], [], [Failure(0, "InternalError", "", retryable=True)], []])
    async with Publisher("web", transport=transport) as publisher:
        with pytest.raises(PublishError):
            await publisher.publish_many([ADA, ADA, ADA])
        await publisher.publish(OrderPlaced(order_id="1"))
        await publisher.publish(OrderPlaced(order_id="2"))  # it succeeds when it is sent again
        text = render(publisher.collect_metrics())

    assert 'smartpipe_published_total{service="web",destination="users",result="published"} 2\n' in text
    assert 'smartpipe_published_total{service="web",destination="users",result="InvalidParameter"} 1\n' in text
    assert 'smartpipe_published_total{service="web",destination="orders",result="published"} 2\n' in text
    assert 'result="InternalError"' not in text
    assert 'smartpipe_publish_seconds_count{service="web",destination="users"} 2\n' in text
    assert 'smartpipe_publish_batch_entries_sum{service="web",destination="users"} 3.0\n' in text
    labels = 'service="web",operation="publish",destination="orders",error=""'
    assert f"smartpipe_call_seconds_count{{{labels}}} 3\n" in text


async def test_a_publisher_without_metrics_records_none_and_measures_no_call() -> None:
    transport = FakeTransport()
    async with Publisher("web", transport=transport, metrics=False) as publisher:
        await publisher.publish(ADA)

        assert publisher.collect_metrics() == []
        assert publisher._transport is transport


async def test_chunks_are_folded_when_there_are_many() -> None:
    async with Publisher("web", transport=FakeTransport()) as publisher:
        for _ in range(FOLD_AT):
            await publisher.publish(ADA)
        assert publisher._metrics is not None
        assert publisher._metrics.chunks == []
        assert publisher._metrics.results == {("users", "published"): FOLD_AT}


def test_samples_of_one_family_are_put_together() -> None:
    first = [Family("a", "gauge", "A.", [Sample({}, 1)]), Family("b", "gauge", "B.", [Sample({}, 2)])]
    more = [Family("b", "gauge", "B.", [Sample({"x": "y"}, 3)]), Family("c", "gauge", "C.", [])]

    found = add_samples(first, more)

    assert [(family.name, len(family.samples)) for family in found] == [("a", 1), ("b", 2), ("c", 0)]


@pytest.mark.parametrize("metrics", [True, False])
async def test_a_worker_reports_its_calls_and_those_of_its_publisher_once(metrics: bool) -> None:
    service = Service("mailer", queue=Queue("mail"))

    @service.subscribe(UserSignedUp)
    async def welcome(event: UserSignedUp, delivery: Any) -> None:
        await delivery.publish(OrderPlaced(order_id="1"))

    transport = FakeTransport()
    transport.put(ADA)
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, metrics=metrics)
    worker = Worker(service, transport, settings)
    running = asyncio.create_task(worker.run())
    await until(lambda: bool(worker.consumers) and worker.consumers[0].counters.handled == 1)
    report = worker.health._report
    text = await report.metrics()
    worker.stop()
    await running

    assert isinstance(worker._transport, MeasuredTransport) == metrics
    assert ("smartpipe_call_seconds" in text) == metrics
    if metrics:
        labels = 'service="mailer",operation="publish",destination="orders",error=""'
        assert text.count(f"smartpipe_call_seconds_count{{{labels}}} 1\n") == 1
        assert 'smartpipe_published_total{service="mailer",destination="orders",result="published"} 1\n' in text
        assert 'smartpipe_slots{service="mailer",queue="mail"} 10\n' in text
        assert 'smartpipe_receive_calls_open{service="mailer",queue="mail"} ' in text


def test_the_results_of_several_threads_are_all_counted() -> None:
    published = PublishMetrics()

    def publish() -> None:
        for _ in range(3_000):
            published.chunks.append(("users", 2, ["Throttling"], 0.1))
            published.fold()

    threads = [Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert published.results == {("users", "published"): 12_000, ("users", "Throttling"): 12_000}
    assert published.seconds["users"].count == 12_000


async def test_an_external_topic_is_named_without_its_account() -> None:
    class Shared(
        Event, topic=Topic(arn="arn:aws:sns:eu-west-1:210987654321:shared"), type="tests.shared", version="1.0"
    ):
        pass

    async with Publisher("web", transport=FakeTransport()) as publisher:
        await publisher.publish(Shared())
        text = render(publisher.collect_metrics())

    assert 'destination="shared"' in text
    assert "210987654321" not in text


async def test_counting_messages_is_a_call_like_any_other() -> None:
    transport = MemoryTransport()
    measured = measure(transport)
    count = message_counter_of(measured)
    assert count is not None

    with pytest.raises(TransportError, match="QueueDoesNotExist"):
        await count("mail")

    assert counts_of(measured.calls) == {("count_messages", "mail", "QueueDoesNotExist"): 1}
    assert message_counter_of(measure(FakeTransport())) is None
