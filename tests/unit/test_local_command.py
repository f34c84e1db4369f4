"""The command `smartpipe local`: what it prints, and how it ends. No broker is started."""

from __future__ import annotations

import json
import os
import signal
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pytest

from smartpipe.cli import local
from smartpipe.errors import SmartpipeError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Broker:
    """A broker that ends after some checks, or when a check sends a signal."""

    version, endpoint_url = "1.2", "http://127.0.0.1:4566"
    environment: ClassVar = {"AWS_ENDPOINT_URL": endpoint_url, "AWS_REGION": "us-east-1"}
    codes: ClassVar[list[int | signal.Signals | None]] = []
    running = False

    def __init__(self, backend: str, *, host: str, port: int) -> None:
        assert port == 4_566
        self.backend, self.host, self.port = backend, host, port

    @property
    def is_exposed(self) -> bool:
        return self.host != "127.0.0.1"

    def __enter__(self) -> Self:
        Broker.running = True
        return self

    def __exit__(self, *_: object) -> None:
        Broker.running = False

    def wait(self, seconds: float) -> int | None:
        assert seconds == 0
        code = self.codes.pop(0)
        if isinstance(code, signal.Signals):
            os.kill(os.getpid(), code)
            return None
        return code

    def last_output(self) -> str:
        return "its last line"


@pytest.fixture(autouse=True)
def _broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    signums = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {signum: signal.getsignal(signum) for signum in signums}

    class Stopped(Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            return self.is_set()

    monkeypatch.setattr(local, "EmbeddedBroker", Broker)
    monkeypatch.setattr(local, "Event", Stopped)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_broker_runs_until_a_signal(signum: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    Broker.codes = [None, None, signum]

    assert local.run("ministack", "127.0.0.1", 4_566, as_json=False) == 0

    assert (Broker.codes, Broker.running) == ([], False)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (
        "# ministack 1.2 on http://127.0.0.1:4566, in memory, until Ctrl-C. In other terminals:\n"
        "export AWS_ENDPOINT_URL=http://127.0.0.1:4566\n"
        "export AWS_REGION=us-east-1\n"
    )


def test_as_json_the_variables_are_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    Broker.codes = [signal.SIGTERM]

    local.run("moto", "127.0.0.1", 4_566, as_json=True)

    assert json.loads(capsys.readouterr().out) == Broker.environment


@pytest.mark.parametrize(("host", "place"), [("0.0.0.0", "this machine"), ("10.0.0.3", "10.0.0.3")])
def test_a_broker_that_other_machines_can_reach_is_a_warning(
    host: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Broker.codes = [signal.SIGTERM]

    local.run("ministack", host, 4_566, as_json=True)

    captured = capsys.readouterr()
    assert json.loads(captured.out) == Broker.environment
    assert captured.err == (
        "smartpipe: warning: the broker has no authentication. Anyone who can reach port 4566 of "
        f"{place} can read, send and delete its messages\n"
    )


@pytest.mark.parametrize("code", [0, 3])
def test_a_broker_that_ends_is_an_error_with_its_last_output(code: int) -> None:
    Broker.codes = [None, code, 7]
    expected: Any = f"the broker ended unexpectedly with exit code {code}: its last line"

    with pytest.raises(SmartpipeError) as raised:
        local.run("moto", "127.0.0.1", 4_566, as_json=False)

    assert str(raised.value) == expected
    assert not Broker.running
