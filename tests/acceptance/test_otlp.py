"""Real workers that export their metrics by OTLP."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.otlp import OtlpReceiver
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.conftest import Jobs


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


def variables_of(receiver: OtlpReceiver, milliseconds: int) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_METRIC_EXPORT_INTERVAL": str(milliseconds)}


def count_of(receiver: OtlpReceiver, name: str, **attributes: str) -> int:
    """Return a total over all processes, each by its last request."""
    last = {one.resource["service.instance.id"]: one for one in receiver.received}
    return sum(
        point.count if hasattr(point, "bucket_counts") else point.as_int
        for one in last.values()
        for point in one.points(name, **attributes)
    )


def test_a_worker_exports_its_last_messages_at_the_end_of_its_drain(jobs: Jobs, receiver: OtlpReceiver) -> None:
    worker = jobs.start_worker(**variables_of(receiver, 3_600_000))
    jobs.post("job1", "job2", "job3")
    jobs.wait_for("done", 3)
    assert receiver.received == []

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert len(receiver.received) == 1
    assert receiver.last().resource["service.name"] == "jobs"
    assert count_of(receiver, "smartpipe.messages", queue="jobs", outcome="handled") == 3
    assert count_of(receiver, "smartpipe.critical_time", type="job.posted") == 3
    assert count_of(receiver, "smartpipe.event_loop_lag") > 0
    queue = {"messaging__destination__name": "jobs", "messaging__system": "aws_sqs"}
    assert count_of(receiver, "messaging.client.consumed.messages", **queue) == 3
    assert count_of(receiver, "messaging.process.duration", **queue) == 3
    assert count_of(receiver, "messaging.client.operation.duration", messaging__operation__type="receive") > 0


def test_each_process_exports_as_another_instance_of_the_service(jobs: Jobs, receiver: OtlpReceiver) -> None:
    group = jobs.start_worker("--processes", "2", "--concurrency", "1", **variables_of(receiver, 200))
    jobs.post(*[f"job{number}" for number in range(10)], seconds=0.1)
    jobs.wait_for("done", 10)

    until_blocking(lambda: count_of(receiver, "smartpipe.messages", outcome="handled") == 10)

    until_blocking(lambda: len(receiver.instances) == 2)
    assert {one.resource["service.name"] for one in receiver.received} == {"jobs"}
    group.signal(signal.SIGTERM)
    assert group.wait() == 0


def test_a_worker_handles_messages_while_no_receiver_answers(jobs: Jobs) -> None:
    worker = jobs.start_worker(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_METRIC_EXPORT_INTERVAL="100")
    jobs.post("job")
    jobs.wait_for("done")

    worker.wait_until(lambda: worker.logged("Cannot export metrics by OTLP to http://127.0.0.1:9"))

    assert "refused" in (worker.logged("Cannot export metrics") or {})["message"]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert not any("opentelemetry" in record["logger"] for record in worker.records)
