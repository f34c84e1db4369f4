"""The protection of an ECS task in virtual time: when it is set, renewed and removed, and how failures are handled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Batch, Event, Publisher, Queue, Service, Topic, Worker
from smartpipe.settings import WorkerSettings
from smartpipe.telemetry.prometheus import render
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from smartpipe.worker import task_protection
from smartpipe.worker.ecs_agent import AgentError, EcsAgent, find_agent, read_refusal
from smartpipe.worker.group import WorkerGroup
from smartpipe.worker.long_handlers import LongHandler, LongHandlers, protect_after_seconds
from smartpipe.worker.task_protection import EXPIRES_MINUTES, LAST_SECONDS, TaskProtection
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

AFTER_SECONDS = 10.0
REFUSED = AgentError("DEPLOYMENT_BLOCKED", refused=True)
UNANSWERED = AgentError("no answer", refused=False)


class ScriptedAgent:
    """Records calls as (time, minutes). ``script`` has the errors or the durations of the next calls."""

    def __init__(self, *script: AgentError | float | None) -> None:
        self.calls: list[tuple[float, int | None]] = []
        self.script = deque(script)
        self.open = self.most_open = 0

    async def set_protection(self, minutes: int | None) -> None:
        self.calls.append((now(), minutes))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        answer = self.script.popleft() if self.script else None
        try:
            if isinstance(answer, AgentError):
                raise answer
            await asyncio.sleep(answer or 0)
        finally:
            self.open -= 1

    @property
    def steps(self) -> list[str]:
        return ["remove" if minutes is None else "set" for _, minutes in self.calls]


class Scene:
    """A protection whose handler and drain the test controls."""

    def __init__(self, agent: ScriptedAgent) -> None:
        self.agent = agent
        self.handler: LongHandler | None = None
        self.draining = False
        self.protection = TaskProtection(
            self.find, AFTER_SECONDS, lambda: self.draining, {"service": "shop"}, agent=agent
        )

    async def find(self) -> LongHandler | None:
        return self.handler

    def need(self) -> None:
        self.handler = LongHandler("shop.encode", 11.0)

    def end(self) -> None:
        self.handler = None


def now() -> float:
    return asyncio.get_running_loop().time()


def play(agent: ScriptedAgent, story: Callable[[Scene], Coroutine[Any, Any, None]]) -> Scene:
    async def main() -> Scene:
        scene = Scene(agent)
        async with scene.protection:
            await story(scene)
        return scene

    return run_virtually(main())


@pytest.fixture(autouse=True)
def _waits_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_protection, "backoff_seconds", lambda _, number, __: min(30.0, 2.0 ** (number - 1)))


def test_the_agent_is_not_called_while_no_handler_needs_it() -> None:
    agent = ScriptedAgent()

    play(agent, lambda _: asyncio.sleep(3_600))

    assert agent.calls == []


def test_a_long_handler_is_protected_and_its_protection_removed_after_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def story(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(60)
        assert scene.protection.protected
        scene.end()
        await asyncio.sleep(60)
        assert not scene.protection.protected

    agent = ScriptedAgent()
    play(agent, story)

    assert [minutes for _, minutes in agent.calls] == [EXPIRES_MINUTES, None]
    assert caplog.messages == [
        "The task is protected from scale-in and deployments: handler shop.encode has run for 11 s",
        "The task is no longer protected from scale-in and deployments",
    ]


def test_a_handler_that_follows_within_the_keep_time_makes_no_call() -> None:
    async def story(scene: Scene) -> None:
        for _ in range(50):
            scene.need()
            await asyncio.sleep(3)
            scene.end()
            await asyncio.sleep(AFTER_SECONDS / 2 - 2)

    agent = ScriptedAgent()
    play(agent, story)

    assert agent.steps == ["set", "remove"]


def test_the_protection_is_renewed_before_it_expires() -> None:
    async def story(scene: Scene) -> None:
        scene.need()
        for _ in range(12 * 60):
            await asyncio.sleep(60)
            assert scene.protection.protected

    agent = ScriptedAgent()
    play(agent, story)

    assert agent.steps == ["set"] * 48 + ["remove"]


def test_only_one_call_is_open_at_a_time_even_if_the_agent_is_slow() -> None:
    async def story(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(3)
        scene.end()
        await asyncio.sleep(30)

    agent = ScriptedAgent(5.5, 5.5, 5.5)
    play(agent, story)

    assert agent.most_open == 1
    assert agent.steps == ["set", "remove"]


def test_failures_are_repeated_with_growing_waits_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def story(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(60)
        assert scene.protection.protected

    agent = ScriptedAgent(*[REFUSED] * 4)
    play(agent, story)

    times = [at for at, minutes in agent.calls if minutes is not None]
    assert [round(later - earlier) for earlier, later in pairwise(times)] == [1, 2, 4, 8]
    assert caplog.messages[:3] == [
        "Cannot set the protection of the task, retrying: DEPLOYMENT_BLOCKED",
        "The protection of the task works again after 4 failed calls",
        "The task is protected from scale-in and deployments: handler shop.encode has run for 11 s",
    ]


def test_a_refused_protection_needs_no_removal_but_one_without_an_answer_does() -> None:
    async def story(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(0.5)
        scene.end()
        await asyncio.sleep(60)

    refused, unanswered = ScriptedAgent(REFUSED), ScriptedAgent(UNANSWERED)
    play(refused, story)
    play(unanswered, story)

    assert refused.steps == ["set"]
    assert unanswered.steps == ["set", "remove"]


def test_a_protection_that_cannot_be_renewed_expires_and_is_set_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def story(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(1)
        scene.agent.script.extend([REFUSED] * 40)
        await asyncio.sleep(EXPIRES_MINUTES * 60)
        assert not scene.protection.protected
        scene.agent.script.clear()
        await asyncio.sleep(60)
        assert scene.protection.protected

    play(ScriptedAgent(), story)

    assert caplog.messages == [
        "Cannot renew the protection of the task, retrying: DEPLOYMENT_BLOCKED",
        "The protection of the task has expired: a scale-in or a deployment may stop it",
    ]


def test_a_removal_that_fails_is_repeated_until_it_succeeds() -> None:
    async def story(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(2)
        scene.end()
        await asyncio.sleep(60)

    agent = ScriptedAgent(None, REFUSED, UNANSWERED)
    play(agent, story)

    assert agent.steps == ["set", "remove", "remove", "remove"]


def test_a_handler_that_starts_while_a_removal_fails_is_protected_again() -> None:
    async def story(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(2)
        scene.end()
        await asyncio.sleep(AFTER_SECONDS / 2 + 1)
        assert not scene.protection.protected
        scene.need()
        await asyncio.sleep(5)
        assert scene.protection.protected

    agent = ScriptedAgent(None, UNANSWERED, UNANSWERED)
    play(agent, story)

    assert agent.steps == ["set", "remove", "remove", "set", "remove"]


def test_a_drain_sets_no_protection_keeps_the_one_that_is_needed_and_then_removes_it() -> None:
    async def unprotected(scene: Scene) -> None:
        scene.draining = True
        scene.need()
        await asyncio.sleep(60)

    async def protected(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(2)
        scene.draining = True
        await asyncio.sleep(30)
        assert scene.protection.protected
        scene.end()
        await asyncio.sleep(2)
        assert not scene.protection.protected

    first, second = ScriptedAgent(), ScriptedAgent()
    play(first, unprotected)
    play(second, protected)

    assert first.calls == []
    assert second.steps == ["set", "remove"]


def test_the_end_of_the_process_waits_for_an_open_call_and_removes_the_protection_within_its_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    ended: list[float] = []

    async def main(agent: ScriptedAgent) -> None:
        scene = Scene(agent)
        async with scene.protection:
            scene.need()
            await asyncio.sleep(0.5)
            left = now()
        ended.append(now() - left)

    quick, stuck = ScriptedAgent(1.0), ScriptedAgent(None, 3_600.0)
    run_virtually(main(quick))
    assert not caplog.messages
    run_virtually(main(stuck))

    assert quick.steps == stuck.steps == ["set", "remove"]
    assert quick.most_open == 1
    assert ended == [0.5, LAST_SECONDS]
    text = "The task may stay protected for up to 30 min after the end of this process: "
    assert caplog.messages == [text + "no answer within 2 s"]


def test_a_removal_that_is_refused_at_the_end_is_one_warning_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def story(scene: Scene) -> None:
        scene.need()
        await asyncio.sleep(2)

    play(ScriptedAgent(None, REFUSED), story)

    text = "The task may stay protected for up to 30 min after the end of this process: "
    assert caplog.messages == [text + "DEPLOYMENT_BLOCKED"]


def test_an_internal_error_does_not_end_the_protection(caplog: pytest.LogCaptureFixture) -> None:
    agent = ScriptedAgent()

    async def main() -> None:
        errors = [ZeroDivisionError()]

        async def find() -> LongHandler | None:
            if errors:
                raise errors.pop()
            return LongHandler("shop.encode", 11.0)

        async with TaskProtection(find, AFTER_SECONDS, lambda: False, {}, agent=agent):
            await asyncio.sleep(60)

    run_virtually(main())

    assert agent.steps == ["set", "remove"]
    assert caplog.messages.count("Internal error in smartpipe, will check the protection of the task again") == 1


def test_the_metrics_say_whether_the_task_is_protected_and_count_failures() -> None:
    texts: list[str] = []

    async def story(scene: Scene) -> None:
        texts.append(render(scene.protection.collect()))
        scene.need()
        await asyncio.sleep(10)
        texts.append(render(scene.protection.collect()))

    play(ScriptedAgent(REFUSED), story)

    values = [[line for line in text.splitlines() if not line.startswith("#")] for text in texts]
    assert values == [
        [
            f'smartpipe_task_protected{{service="shop"}} {number}',
            f'smartpipe_task_protection_failures_total{{service="shop"}} {number}',
        ]
        for number in (0, 1)
    ]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (None, "SMARTPIPE_PROTECT_TASK has no effect: ECS_AGENT_URI is not set. This process is not in a container"),
        ("169.254.170.2/api/x", "SMARTPIPE_PROTECT_TASK has no effect: ECS_AGENT_URI=169.254.170.2/api/x is not an"),
        ("http://[", "SMARTPIPE_PROTECT_TASK has no effect: ECS_AGENT_URI=http://[ is not an HTTP URL"),
        ("http://host:port", "SMARTPIPE_PROTECT_TASK has no effect: ECS_AGENT_URI=http://host:port is not an HTTP"),
    ],
)
def test_without_an_agent_one_warning_says_so_and_nothing_happens(
    uri: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("ECS_AGENT_URI", raising=False)
    if uri is not None:
        monkeypatch.setenv("ECS_AGENT_URI", uri)

    async def find() -> LongHandler | None:
        raise AssertionError

    async def main() -> None:
        async with TaskProtection(find, AFTER_SECONDS, lambda: False, {}) as protection:
            await asyncio.sleep(10)
            assert protection.collect() == []

    run_virtually(main())

    [message] = caplog.messages
    assert message.startswith(sentence)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("no threads"), "RuntimeError: no threads"), (TimeoutError(), "no answer within 6 s")],
)
async def test_any_error_of_a_call_is_a_failure_without_an_answer(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr("aiohttp.ClientSession", refuse)

    with pytest.raises(AgentError, match=reason) as raised:
        await EcsAgent("http://169.254.170.2/api/x").set_protection(30)

    assert not raised.value.refused


async def respond_in_parts(
    status: int, body: bytes, *, promised: int | None = None, split: int = 0
) -> AgentError | None:
    """Return the error of a call whose response arrives in two parts, before the connection is closed.

    Args:
        promised: The length of the body according to its header.
    """
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        length = len(body) if promised is None else promised
        writer.write(b"HTTP/1.1 %d Status\r\nLocation: /x\r\nContent-Length: %d\r\n\r\n" % (status, length))
        for part in (body[:split], body[split:]):
            writer.write(part)
            for _ in range(100):  # until the client has read it
                await asyncio.sleep(0)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        host, port = server.sockets[0].getsockname()
        try:
            await EcsAgent(f"http://{host}:{port}/api/x").set_protection(30)
        except AgentError as error:
            return error
        finally:
            await closed.wait()
    return None


async def test_a_response_may_arrive_in_parts() -> None:
    assert await respond_in_parts(200, b'{"protection": {"ProtectionEnabled": true}}', split=20) is None


@pytest.mark.parametrize(
    ("status", "body", "refused"),
    [
        (504, b'{"error": {"Code": "RequestCanceled"}}', False),
        (500, b"", False),
        (200, b"[]", False),
        (200, b"[" * 60_000, False),
        (307, b"", False),
        (429, b"", True),
        (403, b'{"error": {"Code": "AccessDeniedException"}}', True),
        (200, b'{"failure": {"Reason": "DEPLOYMENT_BLOCKED"}}', True),
        (200, b'{"protection": {"ProtectionEnabled": false}}', True),
    ],
)
async def test_a_task_may_be_protected_unless_the_agent_has_refused_it_for_certain(
    status: int, body: bytes, refused: bool
) -> None:
    error = await respond_in_parts(status, body)

    assert error is not None
    assert error.refused is refused


async def test_a_response_that_is_cut_off_is_no_refusal() -> None:
    error = await respond_in_parts(200, b'{"protection": {', promised=100)

    assert error is not None
    assert not error.refused


def test_an_agent_is_found_by_its_variable() -> None:
    assert isinstance(find_agent({"ECS_AGENT_URI": "http://169.254.170.2/api/x"}), EcsAgent)


@pytest.mark.parametrize(
    ("status", "text", "problem"),
    [
        (200, b'{"protection": {"ProtectionEnabled": true}}', ""),
        (200, b'{"protection": {"ProtectionEnabled": false}}', "unexpected response with status 200"),
        (200, b"[]", "unexpected response with status 200: []"),
        (429, b"", "unexpected response with status 429: "),
        (502, b"<html>", "unexpected response with status 502: <html>"),
        (
            200,
            b'{"failure": {"Reason": "DEPLOYMENT_BLOCKED", "Detail": null}}',
            "DEPLOYMENT_BLOCKED; the service has more protected tasks than its desired count",
        ),
        (200, b'{"failure": {"Reason": "TASK_NOT_VALID"}}', "TASK_NOT_VALID; ECS protects only the tasks of a service"),
        (
            403,
            b'{"error": {"Code": "AccessDeniedException", "Message": "no"}}',
            "AccessDeniedException: no; give the task role ecs:UpdateTaskProtection and ecs:GetTaskProtection",
        ),
        (500, b'{"error": {}}', "error"),
    ],
)
def test_only_a_response_that_confirms_the_state_is_a_success(status: int, text: bytes, problem: str) -> None:
    found = read_refusal(status, text, enabled=True)

    assert found == problem if not problem else found.startswith(problem)


class ReelUploaded(Event, topic=Topic("reels"), type="reel.uploaded", version="1.0"):
    seconds: float


def settings_of(**values: Any) -> WorkerSettings:
    return WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, queue_metrics_seconds=0, **values)


@pytest.mark.parametrize(("drain", "after"), [(25, 11.0), (115, 30.0), (7_200, 30.0), (2, 0.8)])
def test_a_handler_needs_protection_at_half_of_the_time_that_the_drain_gives_it(drain: float, after: float) -> None:
    assert protect_after_seconds(settings_of(drain_seconds=drain)) == after


def watch(service: Service, drain_seconds: float, until: float) -> list[tuple[float, LongHandler | None]]:
    """Return the changes that LongHandlers finds, with their times, while the service handles one event."""
    changes: list[tuple[float, LongHandler | None]] = [(0.0, None)]

    async def main() -> None:
        transport = MemoryTransport()
        transport.apply(derive([service], NAMING))
        settings = settings_of(drain_seconds=drain_seconds)
        worker = Worker(service, transport, settings)
        handlers = LongHandlers([worker], settings)
        running = asyncio.create_task(worker.run_service())
        async with Publisher("test", transport=transport) as publisher:
            await publisher.publish(ReelUploaded(seconds=60))
        while now() < until:
            found = await handlers.find()
            if (found is None) != (changes[-1][1] is None):
                changes.append((now(), found))
            await asyncio.sleep(1)
        worker.stop()
        await running

    run_virtually(main())
    return changes


def test_a_handler_is_found_from_the_threshold_until_its_end() -> None:
    service = Service("reels")

    @service.subscribe(ReelUploaded)
    async def encode_reel(event: ReelUploaded) -> None:
        await asyncio.sleep(event.seconds)

    changes = watch(service, drain_seconds=25, until=100)

    assert [found is None for _, found in changes] == [True, False, True]
    assert changes[1][1] is not None
    assert changes[1][1].name.endswith("encode_reel")
    assert 11 <= changes[1][0] <= 13
    assert 60 <= changes[2][0] <= 62


def test_an_event_that_waits_for_its_batch_to_fill_needs_no_protection() -> None:
    service = Service("reels")

    @service.subscribe(ReelUploaded, batch=Batch(size=10, linger_seconds=60))
    async def archive_reels(events: list[ReelUploaded]) -> None:
        await asyncio.sleep(30)

    changes = watch(service, drain_seconds=25, until=120)

    assert [found is None for _, found in changes] == [True, False, True]
    assert 71 <= changes[1][0] <= 73  # the call begins after 60 s
    assert 90 <= changes[2][0] <= 92


@pytest.mark.parametrize("timeout", [20, 23])
def test_a_queue_whose_handlers_always_end_within_the_drain_is_not_watched(timeout: float) -> None:
    service = Service("reels", queue=Queue("reels"))

    @service.subscribe(ReelUploaded, timeout_seconds=timeout)
    async def encode_reel(_: ReelUploaded) -> None:
        await asyncio.sleep(timeout - 1)

    changes = watch(service, drain_seconds=25, until=40)

    assert (len(changes) > 1) == (timeout > 22)


def test_the_handlers_of_all_services_in_one_process_are_watched() -> None:
    found: list[float] = []
    quick, slow = Service("stills"), Service("reels")

    @quick.subscribe(ReelUploaded)
    async def copy_reel(_: ReelUploaded) -> None: ...

    @slow.subscribe(ReelUploaded)
    async def encode_reel(event: ReelUploaded) -> None:
        await asyncio.sleep(event.seconds)

    async def main() -> None:
        transport = MemoryTransport()
        transport.apply(derive([quick, slow], NAMING))
        settings = settings_of(protect_task=True)
        group = WorkerGroup([quick, slow], transport, settings)
        handlers = LongHandlers(group.workers, settings)
        running = asyncio.create_task(group._run_services())
        async with Publisher("test", transport=transport) as publisher:
            await publisher.publish(ReelUploaded(seconds=60))
        while not found:
            if await handlers.find():
                found.append(now())
            await asyncio.sleep(1)
        group.stop()
        await running

    run_virtually(main())

    assert 11 <= found[0] <= 13
