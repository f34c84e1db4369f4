"""The command `smartpipe relay`, and what its health port reports. Neither a database nor AWS is asked."""

from __future__ import annotations

import builtins
import logging
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import smartpipe.outbox
from smartpipe import ConfigError
from smartpipe.cli import relay as command
from smartpipe.cli.relay import RelayReport
from smartpipe.counters import TransportCounters
from smartpipe.errors import SmartpipeError
from smartpipe.outbox.backlog import Backlog, BacklogReading

if TYPE_CHECKING:
    from collections.abc import Iterator

URL = "postgresql://ada:secret@db/shop"
EMPTY = Backlog(waiting=0, parked=3, lag_seconds=0.0)


class Relaying:
    """Replaces the relay, its transport and its health server, and records what happens."""

    def __init__(self) -> None:
        self.happened: list[Any] = []
        self.backlog = EMPTY
        self.health_level = logging.INFO
        self.error: Exception | None = None
        found = self

        class Relay:
            published, failing = 5, False

            def __init__(self, url: str, transport: Any) -> None:
                assert transport is found.transport
                found.happened.append(("relay", url))

            async def drain(self) -> Backlog:
                found.happened.append("drain")
                return found.backlog

            async def run(self) -> None:
                found.happened.append("run")
                if found.error is not None:
                    raise found.error

            def stop(self) -> None:
                found.happened.append("stop")

            async def aclose(self) -> None:
                found.happened.append("relay closed")

        class Health:
            url, bound, private = "http://127.0.0.1:81", "127.0.0.1:81", False

            def __init__(self, report: RelayReport, host: str, port: int, *, socket: Path | None) -> None:
                assert isinstance(report, RelayReport)
                found.happened.append(("health", host, port, socket))
                self.log_level = found.health_level

            async def __aenter__(self) -> None: ...

            async def __aexit__(self, *_: object) -> None:
                found.happened.append("health closed")

        self.relay, self.health = Relay, Health

        async def check_credentials() -> None:
            found.happened.append("credentials")

        async def aclose() -> None:
            found.happened.append("transport closed")

        self.transport = SimpleNamespace(session=SimpleNamespace(check_credentials=check_credentials), aclose=aclose)


@pytest.fixture
def relaying(monkeypatch: pytest.MonkeyPatch) -> Relaying:
    found = Relaying()

    @contextmanager
    def handle(name: str, *calls: Any) -> Iterator[None]:
        found.happened.append((name, len(calls)))
        for call in calls:
            call("SIGTERM")
        yield

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", URL)
    monkeypatch.setattr(smartpipe.outbox, "Relay", found.relay)
    monkeypatch.setattr(command, "HealthServer", found.health)
    monkeypatch.setattr("smartpipe.transports.open.create_aws_transport", lambda _: found.transport)
    monkeypatch.setattr(command, "configure", lambda *args, **_: found.happened.append(("configure", *args)))
    monkeypatch.setattr(command, "raise_file_limit", lambda: found.happened.append("file limit"))
    monkeypatch.setattr(command, "on_stop", lambda *calls: handle("signals", *calls))
    monkeypatch.setattr(command, "on_supervisor", lambda *calls: handle("supervisor", *calls))
    monkeypatch.setattr(command, "exit_now", end)
    return found


def run(*, once: bool = False, socket: Path | None = None, **flags: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        command.run(flags, once=once, socket=socket)
    return int(str(ended.value.code))


def test_a_relay_runs_until_a_signal_and_closes_what_it_has_opened(
    relaying: Relaying, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "smartpipe.relay"):
        assert run(host="::1", port=81, log_level="debug", log_format="json") == 0

    assert relaying.happened == [
        ("configure", "debug", "json"),
        "file limit",
        "credentials",
        ("relay", URL),
        ("health", "::1", 81, None),
        ("signals", 1),
        "stop",
        "run",
        "health closed",
        "relay closed",
        "transport closed",
    ]
    assert caplog.messages == [
        f"starting: relay, process {os.getpid()}",
        "serving /livez, /readyz and /metrics on 127.0.0.1:81",
        "stopped: published 5",
    ]
    assert caplog.records[1].__dict__["fields"] == {"url": "http://127.0.0.1:81"}


def test_under_a_supervisor_it_stops_at_the_first_and_the_second_signal(
    relaying: Relaying, caplog: pytest.LogCaptureFixture
) -> None:
    relaying.health_level = logging.DEBUG
    with caplog.at_level(logging.INFO, "smartpipe.relay"):
        run(socket=Path("/x"))

    assert relaying.happened[4:8] == [("health", "0.0.0.0", 8_080, Path("/x")), ("supervisor", 2), "stop", "stop"]
    assert [message.split()[0] for message in caplog.messages] == ["starting:", "stopped:"]


def test_a_relay_that_fails_is_closed_with_its_transport(relaying: Relaying) -> None:
    relaying.error = SmartpipeError("broken")

    with pytest.raises(SmartpipeError, match="broken"):
        command.run({}, once=False)

    assert relaying.happened[-3:] == ["health closed", "relay closed", "transport closed"]


def test_once_publishes_the_waiting_events_without_a_health_port(relaying: Relaying) -> None:
    assert run(once=True) == 0

    assert relaying.happened[2:] == ["credentials", ("relay", URL), "drain", "relay closed", "transport closed"]


@pytest.mark.parametrize(
    ("backlog", "error"),
    [
        (Backlog(1, 0, 2.4), "1 event still waits, the oldest for 2 s"),
        (Backlog(2, 0, 2.6), "2 events still wait, the oldest for 3 s"),
    ],
)
def test_once_fails_if_events_still_wait(relaying: Relaying, backlog: Backlog, error: str) -> None:
    relaying.backlog = backlog

    with pytest.raises(SmartpipeError) as raised:
        command.run({}, once=True)

    assert str(raised.value) == error
    assert relaying.happened[-2:] == ["relay closed", "transport closed"]


def test_misspelt_settings_are_logged(
    relaying: Relaying, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URI", "x")

    run(once=True)

    assert relaying.happened
    assert caplog.messages == [
        "SMARTPIPE_OUTBOX_URI is not a setting of smartpipe and is ignored; did you mean SMARTPIPE_OUTBOX_URL?"
    ]


def test_a_relay_needs_a_database(relaying: Relaying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMARTPIPE_OUTBOX_URL")

    with pytest.raises(ConfigError, match="no database is set: set SMARTPIPE_OUTBOX_URL, as in postgresql://"):
        command.run({}, once=False)

    assert relaying.happened == []


def test_a_relay_needs_the_package_of_its_database(relaying: Relaying, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name == "smartpipe.outbox":
            raise ModuleNotFoundError(name="asyncpg")
        return import_module(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)

    with pytest.raises(ConfigError, match=r"the outbox needs the package asyncpg; run pip install 'smartpipe\[postgr"):
        command.run({}, once=False)

    assert "credentials" not in relaying.happened


class Reading:
    """A backlog that has been read, or not."""

    def __init__(self, reading: BacklogReading | None) -> None:
        self._reading = reading

    async def read(self) -> BacklogReading | None:
        return self._reading

    def count_unanswered_seconds(self) -> float:
        return 7.5


def report(*, failing: bool = False, reading: BacklogReading | None = None, **transport: Any) -> RelayReport:
    relay: Any = SimpleNamespace(failing=failing, published=5, backlog_reader=Reading(reading))
    counted: Any = SimpleNamespace(**transport)
    return RelayReport(relay, counted)


@pytest.mark.parametrize("failing", [False, True])
async def test_a_relay_is_alive_during_an_outage_but_not_ready(failing: bool) -> None:
    assert await report(failing=failing).livez() == (True, {"alive": True})
    assert await report(failing=failing).readyz() == (not failing, {"ready": not failing, "published": 5})


async def test_metrics_have_the_backlog_once_it_is_known() -> None:
    reading = BacklogReading(Backlog(waiting=2, parked=3, lag_seconds=4.5), age_seconds=1.5)
    lines = (await report(reading=reading).metrics()).splitlines()

    values = {name: value for name, _, value in (line.partition(" ") for line in lines if line[0] != "#")}
    assert values.pop("smartpipe_log_lines_dropped_total") == "0"
    assert values == {
        "smartpipe_outbox_published_total": "5",
        "smartpipe_outbox_waiting": "2",
        "smartpipe_outbox_parked": "3",
        "smartpipe_outbox_lag_seconds": "4.5",
        "smartpipe_outbox_backlog_age_seconds": "1.5",
    }
    assert "# TYPE smartpipe_outbox_published_total counter" in lines
    assert "# TYPE smartpipe_outbox_parked gauge" in lines


async def test_before_the_backlog_is_known_metrics_have_only_the_time_without_an_answer() -> None:
    text = await report().metrics()

    assert "smartpipe_outbox_published_total 5\n" in text
    assert "smartpipe_outbox_waiting" not in text
    assert "smartpipe_outbox_lag_seconds" not in text
    assert "smartpipe_outbox_backlog_age_seconds 7.5\n" in text


async def test_metrics_have_the_counters_of_the_transport() -> None:
    counters = TransportCounters()
    with_counters, without = await report(counts=counters).metrics(), await report().metrics()

    assert len(with_counters.splitlines()) > len(without.splitlines())
