"""The export of metrics by OTLP to a receiver on loopback."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from smartpipe.telemetry import Family, Sample, export_metrics
from smartpipe.telemetry.otlp_export import LAST_SECONDS, THREAD
from tests.support.otlp import OtlpReceiver
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
        yield receiver


class Counter:
    """Counts its own collections. It knows the thread of each."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: set[threading.Thread] = set()
        self.error: Exception | None = None

    def collect(self) -> list[Family]:
        self.threads.add(threading.current_thread())
        self.count += 1
        if self.error is not None:
            raise self.error
        return [Family("smartpipe_things_total", "counter", "Things.", [Sample({}, self.count)])]

    async def collect_later(self) -> list[Family]:
        await asyncio.sleep(0)
        return self.collect()


def things_of(receiver: OtlpReceiver) -> list[int]:
    return [point.as_int for one in receiver.received for point in one.points("smartpipe.things")]


async def test_metrics_are_exported_at_each_interval_and_at_the_end(receiver: OtlpReceiver) -> None:
    counter = Counter()
    async with export_metrics(counter.collect, "mailer"):
        await until(lambda: len(receiver.received) >= 3)
    ended = len(receiver.received)

    assert things_of(receiver) == list(range(1, counter.count + 1))
    starts = {one.points("smartpipe.things")[0].start_time_unix_nano for one in receiver.received}
    assert len(starts) == len(receiver.instances) == 1
    assert {one.resource["service.name"] for one in receiver.received} == {"mailer"}
    assert counter.threads == {threading.current_thread()}  # the state of the event loop is read in the event loop
    await until(lambda: not any(one.name == THREAD for one in threading.enumerate()))
    await asyncio.sleep(0.3)
    assert len(receiver.received) == ended


async def test_a_short_run_is_exported_once_also_if_metrics_are_collected_asynchronously(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_METRIC_EXPORT_INTERVAL")
    async with export_metrics(Counter().collect_later, "job"):
        pass
    assert things_of(receiver) == [1]


async def test_the_variables_name_the_service_and_the_instance(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = "service.instance.id=pod-1,deployment.environment.name=staging,service.name=other"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    for supervised in (False, True):
        async with export_metrics(Counter().collect, "mailer", supervised=supervised):
            pass
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    async with export_metrics(Counter().collect, "mailer"):
        pass

    first, second, third = (one.resource for one in receiver.received)
    assert (first["service.name"], third["service.name"]) == ("other", "mine")
    assert first["deployment.environment.name"] == "staging"
    assert first["service.instance.id"] == "pod-1"
    assert second["service.instance.id"].startswith("pod-1-")  # each process under a supervisor differs
    assert receiver.headers[0]["api-key"] == "secret"


@pytest.mark.parametrize("variable", ["OTEL_METRICS_EXPORTER=none", "OTEL_SDK_DISABLED=true"])
async def test_the_variables_turn_the_export_off(
    variable: str, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable.split("="))
    counter = Counter()
    async with export_metrics(counter.collect, "mailer"):
        await asyncio.sleep(0.2)
    assert (receiver.requests, counter.count) == (0, 0)


async def test_a_failure_is_logged_once_with_its_reason_and_its_end(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    receiver.status = 400
    async with export_metrics(Counter().collect, "mailer"):
        await until(lambda: receiver.requests >= 3)
        receiver.status = 200
        await until(lambda: len(receiver.received) >= 2)

    reason = "Failed to export metrics batch code: 400, reason: Bad Request"
    assert [record.getMessage() for record in caplog.records] == [
        f"Exporting metrics by OTLP to {receiver.url} every 0.1 s",
        f"Cannot export metrics by OTLP to {receiver.url}, retrying every 0.1 s: {reason}",
        "Metrics are exported by OTLP again",
    ]


async def test_what_collecting_raises_is_logged_and_ends_nothing(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    counter = Counter()
    counter.error = KeyError("x")
    async with export_metrics(counter.collect, "mailer"):
        await until(lambda: counter.count >= 2)
        counter.error = None
        await until(lambda: len(receiver.received) >= 1)
    assert [one for one in caplog.messages if "KeyError: 'x'" in one][1:] == []


async def test_a_receiver_that_does_not_answer_gets_one_request_at_a_time(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_TIMEOUT", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")  # the exporter itself would wait for long
    receiver.seconds = 5.0
    loop = asyncio.get_running_loop()
    async with export_metrics(Counter().collect, "mailer"):
        await until(lambda: "no response within 0.05 s" in caplog.text)
        await asyncio.sleep(0.5)
        ends = loop.time()

    assert loop.time() - ends < LAST_SECONDS + 2
    assert receiver.requests == 1


async def test_a_run_that_ends_before_its_first_request_has_an_answer_says_that_metrics_are_lost(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.seconds = 5.0
    async with export_metrics(Counter().collect, "mailer"):
        await until(lambda: receiver.requests >= 1)

    line = f"Cannot export the last metrics by OTLP to {receiver.url}: no response to the request before"
    assert [one for one in caplog.messages if one.startswith("Cannot")] == [line]


async def test_requests_do_not_block_the_event_loop(receiver: OtlpReceiver) -> None:
    receiver.seconds = 0.5
    async with export_metrics(Counter().collect, "mailer"):
        await until(lambda: receiver.requests >= 1)
        steps, started = 0, time.perf_counter()
        while not receiver.received:
            await asyncio.sleep(0.01)
            steps += 1
        assert time.perf_counter() - started > 0.2
        assert steps > 5


async def test_a_missing_package_is_a_warning_that_names_the_extra(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    counter = Counter()
    async with export_metrics(counter.collect, "mailer"):
        await until(lambda: bool(caplog.messages))
    [line] = caplog.messages
    assert line == (
        "OTEL_EXPORTER_OTLP_ENDPOINT asks for metrics by OTLP, and the package "
        "opentelemetry.exporter.otlp.proto.http.metric_exporter is missing: run pip install 'smartpipe[otel]'. "
        "Nothing is exported"
    )
    assert (receiver.requests, counter.count) == (0, 0)


async def test_wrong_variables_are_warnings(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "often")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    async with export_metrics(Counter().collect, "mailer"):
        await until(lambda: len(caplog.messages) == 2)
    assert caplog.messages[0].startswith("OTEL_METRIC_EXPORT_INTERVAL=often is ignored")
    assert caplog.messages[1].endswith("run pip install opentelemetry-exporter-otlp-proto-grpc. Nothing is exported")
    assert receiver.requests == 0
