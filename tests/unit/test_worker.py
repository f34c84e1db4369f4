from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from smartpipe import ConfigError, Delivery, Service, TopologyError, TransportError, Worker
from smartpipe.settings import WorkerSettings
from smartpipe.worker.signals import on_stop
from tests.support.consumers import make_service
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import UNREACHABLE, FakeTransport, refused
from tests.support.processes import http_status
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def service_that_handles() -> Service:
    service = make_service()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    return service


def make_worker(
    transport: FakeTransport, service: Service | None = None, verify: Callable[[], Awaitable[None]] | None = None
) -> Worker:
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, drain_seconds=5)
    return Worker(service or service_that_handles(), transport, settings, verify=verify)


async def test_a_worker_runs_until_stopped_closes_its_transport_and_returns_0() -> None:
    transport = FakeTransport()
    worker = make_worker(transport)
    transport.put(ADA)

    running = asyncio.create_task(worker.run())
    await until(lambda: worker.ready and worker.consumers[0].counters.handled == 1)
    worker.stop()
    worker.stop()

    assert not worker.ready
    assert await running == 0
    assert transport.closed == 1


async def test_a_delete_that_failed_before_the_drain_does_not_change_the_exit_code() -> None:
    transport = FakeTransport()
    worker = make_worker(transport)
    for failed in (1, 2):
        transport.script["delete"].append([refused(0)])
        transport.put(ADA)
        if failed == 1:
            running = asyncio.create_task(worker.run())
        await until(lambda: worker.consumers and worker.consumers[0].counters.not_deleted == failed)  # noqa: B023
    worker.stop()

    assert await running == 0


async def test_a_delete_that_fails_in_the_drain_makes_the_worker_return_1() -> None:
    transport, service, release = FakeTransport(), make_service(), asyncio.Event()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await release.wait()

    worker = make_worker(transport, service)
    transport.put(ADA)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.ready and worker.consumers[0].counters.received == 1)
    transport.script["delete"].append([refused(0)])
    worker.stop()
    release.set()

    assert await running == 1


def test_a_service_without_handlers_is_rejected() -> None:
    with pytest.raises(ConfigError, match="service 'empty' has no handlers"):
        make_worker(FakeTransport(), Service("empty"))


async def test_while_aws_is_unavailable_the_worker_is_alive_and_not_ready_and_retries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[TransportError | None] = [UNREACHABLE, UNREACHABLE, None]

    async def verify() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    worker = make_worker(FakeTransport(), verify=verify)
    with caplog.at_level(logging.INFO, "smartpipe.worker"):
        running = asyncio.create_task(worker.run())
        await until(lambda: len(answers) == 2)
        seen = [(await asyncio.to_thread(http_status, worker.health.url + path))[0] for path in ("/livez", "/readyz")]
        await until(lambda: worker.ready)
        worker.stop()

    assert await running == 0
    assert seen == [200, 503]
    assert sum("Cannot check the topology" in message for message in caplog.messages) == 1


async def test_a_stop_while_aws_is_unavailable_ends_the_worker() -> None:
    async def verify() -> None:
        raise UNREACHABLE

    worker = make_worker(FakeTransport(), verify=verify)
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0.05)
    worker.stop()

    assert await running == 0


async def test_a_stop_while_aws_does_not_answer_ends_the_worker_without_the_answer() -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def verify() -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    worker = make_worker(FakeTransport(), verify=verify)
    running = asyncio.create_task(worker.run())
    await asked.wait()
    worker.stop()

    assert await asyncio.wait_for(running, 30) == 0
    assert cancelled.is_set()


async def test_credentials_that_may_not_read_the_topology_may_still_consume() -> None:
    async def verify() -> None:
        raise TransportError("AccessDenied", "needs sns:ListSubscriptionsByTopic", retryable=False)

    worker = make_worker(FakeTransport(), verify=verify)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.ready)
    worker.stop()

    assert await running == 0


async def test_missing_resources_end_the_worker_with_an_error_that_names_them() -> None:
    async def verify() -> None:
        raise TopologyError(["missing: queue mailer"])

    transport = FakeTransport()

    with pytest.raises(TopologyError, match="missing: queue mailer"):
        await make_worker(transport, verify=verify).run()
    assert transport.closed == 1


async def test_livez_fails_if_no_receive_call_has_succeeded_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make_worker(FakeTransport())
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.ready)
    monkeypatch.setattr(worker.consumers[0], "seconds_since_success", lambda: 301.0)

    status, answer = await asyncio.to_thread(http_status, worker.health.url + "/livez")
    worker.stop()
    await running

    assert (status, answer["alive"], answer["queues"]["mailer"]["seconds_since_poll"]) == (503, False, 301.0)


async def test_metrics_has_the_counts_of_each_queue_in_the_format_of_prometheus() -> None:
    transport = FakeTransport()
    transport.put(ADA)
    worker = make_worker(transport)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.ready and worker.consumers[0].counters.handled == 1)

    def scrape() -> tuple[str, str]:
        with urlopen(worker.health.url + "/metrics", timeout=5) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    content_type, text = await asyncio.to_thread(scrape)
    worker.stop()
    await running

    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert 'smartpipe_messages_total{service="mailer",queue="mailer",outcome="handled"} 1\n' in text
    assert 'smartpipe_messages_in_flight{service="mailer",queue="mailer"} 0\n' in text


async def test_an_event_that_a_handler_published_without_waiting_is_flushed_and_its_failure_exits_1() -> None:
    transport, service, tasks = FakeTransport(), make_service(), set[Any]()
    transport.script["publish"].append(
        (2.0, [refused(1)])
    )  # longer than the open receive call, so still in flight at the close

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        tasks.update(asyncio.create_task(delivery.publish(UserLeft(name=name))) for name in ("taken", "refused"))
        worker.stop()

    worker = make_worker(transport, service)
    transport.put(ADA)
    code = await worker.run()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert code == 1
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["PublishError", "str"]


async def test_the_first_signal_drains_the_second_kills_and_the_third_has_its_default_effect() -> None:
    heard: list[str] = []
    before = signal.getsignal(signal.SIGTERM)

    with on_stop(lambda name: heard.append(f"stop {name}"), lambda name: heard.append(f"kill {name}")):
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: heard == ["stop SIGTERM"])
        os.kill(os.getpid(), signal.SIGINT)
        await until(lambda: heard == ["stop SIGTERM", "kill SIGINT"])
        third = signal.getsignal(signal.SIGTERM)

    assert third == before == signal.SIG_DFL


async def test_a_closed_terminal_stops_and_never_kills_and_quit_is_a_signal_like_sigterm() -> None:
    heard: list[str] = []

    with on_stop(lambda name: heard.append(f"stop {name}"), lambda name: heard.append(f"kill {name}")):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: heard == ["stop SIGHUP"])
        await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGQUIT)
        await until(lambda: heard == ["stop SIGHUP", "kill SIGQUIT"])


async def test_a_command_under_nohup_keeps_ignoring_sighup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_stop(lambda _: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


async def test_an_unknown_path_of_the_health_port_is_not_found() -> None:
    worker = make_worker(FakeTransport())
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.ready)

    with pytest.raises(HTTPError, match="404") as raised:
        await asyncio.to_thread(urlopen, worker.health.url + "/nowhere")
    raised.value.close()
    worker.stop()
    await running


@pytest.mark.parametrize(("fails_in_drain", "expected"), [(False, 0), (True, 1)])
async def test_the_exit_code_judges_the_drain_and_not_the_deletes_that_failed_before_it(
    fails_in_drain: bool, expected: int
) -> None:
    transport = FakeTransport()
    transport.script["delete"].extend([[refused(0)], [refused(0)] if fails_in_drain else []])
    worker = make_worker(transport)
    transport.put(ADA)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.consumers and worker.consumers[0].counters.not_deleted == 1)

    transport.put(ADA)
    await until(lambda: worker.consumers[0].counters.handled == 2)
    worker.stop()

    assert await running == expected


async def test_a_hard_stop_without_a_drain_before_it_is_judged_likewise() -> None:
    transport = FakeTransport()
    transport.script["delete"].append([refused(0)])
    worker = make_worker(transport)
    transport.put(ADA)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.consumers and worker.consumers[0].counters.not_deleted == 1)

    worker.kill()

    assert await running == 0
