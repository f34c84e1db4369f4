"""Real workers that protect their task with the agent of ECS while long handlers run."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from smartpipe.blocking import Publisher
from smartpipe.testing import provision
from tests.acceptance import long_services
from tests.acceptance.long_services import FilmUploaded
from tests.support.ecs_agent import DENIED, DEPLOYMENT_BLOCKED, Answer, FakeEcsAgent
from tests.support.processes import Process, http_status
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe import EmbeddedBroker

TARGET = "tests.acceptance.long_services:service"


class Films:
    """The service in workers that drain for 4 s, so that a handler needs protection after 1.6 s."""

    def __init__(self, agent: FakeEcsAgent, stack: ExitStack) -> None:
        self.agent = agent
        self._stack = stack

    def start(self, *flags: str, **environment: str) -> Process:
        options = ("--host", "127.0.0.1", "--port", "0", "--drain-seconds", "4", "--wait-seconds", "1")
        variables = {"ECS_AGENT_URI": self.agent.uri, **environment}
        worker = Process("worker", TARGET, *options, *flags, **variables)
        self._stack.callback(worker.end)
        word = "ready: all" if "--processes" in flags else "ready"
        worker.wait_until(lambda: worker.logged(word))
        return worker

    def upload(self, seconds: float, count: int = 1) -> None:
        with Publisher("test") as publisher:
            publisher.publish_many(FilmUploaded(name=f"film{number}", seconds=seconds) for number in range(count))


@pytest.fixture
def films(fast_broker: EmbeddedBroker) -> Iterator[Films]:
    asyncio.run(provision(long_services.service))
    with FakeEcsAgent() as agent, ExitStack() as stack:
        yield Films(agent, stack)


def gauge(worker: Process) -> str | None:
    url = (worker.logged("serving") or {})["url"]
    with urlopen(f"{url}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return next((line for line in lines if line.startswith("smartpipe_task_protected")), None)


def test_the_task_is_protected_while_a_handler_runs_that_the_drain_might_cancel(films: Films) -> None:
    worker = films.start("--protect-task")
    assert gauge(worker) == 'smartpipe_task_protected{service="films"} 0'

    films.upload(seconds=5)
    until_blocking(lambda: films.agent.protected)
    until_blocking(lambda: gauge(worker) == 'smartpipe_task_protected{service="films"} 1')
    until_blocking(lambda: not films.agent.protected)

    assert films.agent.requests == [
        {"ProtectionEnabled": True, "ExpiresInMinutes": 30},
        {"ProtectionEnabled": False},
    ]
    assert worker.logged("The task is protected from scale-in and deployments: handler tests.acceptance") is not None
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert len(films.agent.requests) == 2


def test_quick_handlers_make_no_call(films: Films) -> None:
    worker = films.start(SMARTPIPE_PROTECT_TASK="true")
    films.upload(seconds=0.01, count=50)
    until_blocking(
        lambda: (
            http_status((worker.logged("serving") or {})["url"] + "/livez")[1]["queues"]["films"].get("handled") == 50
        )
    )

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert films.agent.requests == []


def test_a_drain_that_ends_the_worker_removes_the_protection(films: Films) -> None:
    worker = films.start("--protect-task")
    films.upload(seconds=60)
    until_blocking(lambda: films.agent.protected)

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 1  # the drain has cancelled the handler
    assert films.agent.states == [True, False]


def test_a_refused_protection_is_retried_logged_once_and_fails_no_message(films: Films) -> None:
    films.agent.script.extend([DEPLOYMENT_BLOCKED, DENIED])
    worker = films.start("--protect-task")

    films.upload(seconds=20)
    until_blocking(lambda: films.agent.protected)
    worker.wait_until(lambda: worker.logged("The protection of the task works again after 2 failed calls"))

    warnings = [record["message"] for record in worker.records if record["logger"] == "smartpipe.protection"]
    [warning] = [message for message in warnings if message.startswith("Cannot")]
    assert warning == (
        "Cannot set the protection of the task, retrying: DEPLOYMENT_BLOCKED: The deployment is blocked; the service "
        "has more protected tasks than its desired count; raise the desired count, or wait until other tasks are no "
        "longer protected"
    )


def test_a_slow_agent_delays_no_message_and_gets_one_call_at_a_time(films: Films) -> None:
    films.agent.script.append(Answer({}, 200, delay_seconds=5))
    worker = films.start("--protect-task", "--concurrency", "2")
    films.upload(seconds=30)
    until_blocking(lambda: films.agent.open_calls == 1)

    films.upload(seconds=0, count=20)
    url = (worker.logged("serving") or {})["url"]
    until_blocking(lambda: http_status(url + "/livez")[1]["queues"]["films"].get("handled") == 20)
    assert films.agent.requests == [{"ProtectionEnabled": True, "ExpiresInMinutes": 30}]

    until_blocking(lambda: films.agent.protected)
    assert films.agent.most_open_calls == 1


def test_several_processes_have_one_protection_until_the_last_long_handler_has_ended(films: Films) -> None:
    worker = films.start("--protect-task", "--processes", "2", "--concurrency", "1")

    films.upload(seconds=4, count=1)
    until_blocking(lambda: films.agent.protected)
    films.upload(seconds=8, count=1)
    until_blocking(lambda: not films.agent.protected)

    children = [record for record in worker.records if "process" in record]
    assert films.agent.states == [True, False]
    assert not any(record["logger"] == "smartpipe.protection" for record in children)
    url = (worker.logged("serving") or {})["url"]
    handled = [one["queues"]["films"].get("handled", 0) for one in http_status(url + "/livez")[1]["processes"].values()]
    assert sum(handled) == 2
    assert gauge(worker) == 'smartpipe_task_protected{process="supervisor"} 0'


def test_the_protection_of_a_killed_process_is_removed_by_the_supervisor(films: Films) -> None:
    worker = films.start("--protect-task", "--processes", "2", "--concurrency", "1")
    films.upload(seconds=60)
    until_blocking(lambda: films.agent.protected)
    url = (worker.logged("serving") or {})["url"]
    processes = http_status(url + "/livez")[1]["processes"].values()
    [victim] = [one["pid"] for one in processes if one["long_handler"] is not None]

    os.kill(victim, signal.SIGKILL)

    until_blocking(lambda: not films.agent.protected)  # another process receives the message after its lease


def test_a_process_that_does_not_answer_keeps_the_protection(films: Films) -> None:
    worker = films.start("--protect-task", "--processes", "2", "--concurrency", "1")
    films.upload(seconds=60)
    until_blocking(lambda: films.agent.protected)
    url = (worker.logged("serving") or {})["url"]
    processes = http_status(url + "/livez")[1]["processes"].values()
    [stuck] = [one["pid"] for one in processes if one["long_handler"] is not None]

    os.kill(stuck, signal.SIGSTOP)
    try:
        for _ in range(2):  # the supervisor asks at the same time, and gets no answer either
            assert http_status(url + "/livez")[0] == 503
        assert films.agent.states == [True]
    finally:
        os.kill(stuck, signal.SIGCONT)


def test_on_a_laptop_the_option_causes_one_warning(films: Films) -> None:
    worker = films.start("--protect-task", "--processes", "2", ECS_AGENT_URI="")

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    text = "SMARTPIPE_PROTECT_TASK has no effect: ECS_AGENT_URI is not set."
    assert [record["level"] for record in worker.records if record["message"].startswith(text)] == ["warning"]
