"""Functions of ``on_failure`` in a worker that is a process of its own."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from smartpipe.testing import provision
from tests.acceptance import failing_service
from tests.support.processes import Process

if TYPE_CHECKING:
    from tests.acceptance.conftest import Jobs
    from tests.support.queues import Queues

TARGET = "tests.acceptance.failing_service:service"
KIND = "retries-exhausted"


def test_a_worker_reports_each_failed_attempt_and_a_drain_does_not_wait_for_a_slow_report(
    jobs: Jobs, queues: Queues
) -> None:
    asyncio.run(provision(failing_service.service))
    worker = Process(
        "worker", TARGET, "--host", "127.0.0.1", "--port", "0", SMARTPIPE_DRAIN_SECONDS="3", SMARTPIPE_WAIT_SECONDS="1"
    )
    try:
        worker.wait_until(lambda: worker.logged("ready"))
        jobs.post("poison")
        jobs.wait_for("reported poison", 2)
        jobs.post("slow")
        jobs.wait_for("slow report")
        worker.signal(signal.SIGTERM)
        code = worker.wait()
    finally:
        worker.end()

    assert code == 0, worker.lines
    reports = [line for line in jobs.happened if line.startswith("reported")]
    assert reports[:2] == [
        "reported poison retried 1 poison cannot be done",
        "reported poison dead_lettered 2 poison cannot be done",
    ]
    assert reports[2] == "reported slow retried 1 slow cannot be done"
    broken = [record for record in worker.records if "report_wrongly raised RuntimeError" in record["message"]]
    assert len(broken) == 1
    assert "no connection" in broken[0]["exception"]
    working = [record for record in worker.records if record["message"] == "working"]
    assert [record["attempt"] for record in working[:2]] == [1, 2]
    assert all(len(record["trace_id"]) == 32 for record in working)
    kinds = [reason["kind"] for reason in queues.dead_letter_reasons("failing")]
    assert kinds in ([KIND], [KIND, KIND])  # "slow" may have failed a second time before the signal
