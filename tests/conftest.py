"""Brokers on free loopback ports, and an environment that leads to one of them under a prefix of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import botocore.hooks
import botocore.loaders
import pytest
from hypothesis import HealthCheck, settings

from smartpipe import EmbeddedBroker
from smartpipe.idempotency.stores.migrate import migrate
from smartpipe.local import BACKENDS
from tests.support.places import make_table
from tests.support.planted import PLANTED, refuse_planted
from tests.support.proxy import FaultProxy
from tests.support.queues import Queues
from tests.support.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping


# A busy machine is slow, which is no failure.
settings.register_profile("tests", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _service_models_are_read_once() -> Iterator[None]:
    """Every transport has a session of its own, and each would parse botocore's JSON files again: 0.1 s of CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", cache(botocore.loaders.create_loader))
        yield


@pytest.fixture(scope="session", autouse=True)
def _event_names_are_translated_once() -> Iterator[None]:
    """Every session and client would compare each of its hooks' names with each of its aliases: much of their CPU."""
    aliaser: Any = botocore.hooks.EventAliaser(botocore.hooks.HierarchicalEmitter())
    translated = cache(aliaser._alias_event_name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.hooks.EventAliaser._alias_event_name", lambda _, name: translated(name))
        yield


@pytest.fixture(scope="session", autouse=True)
def _signatures_of_hooks_are_read_once() -> Iterator[None]:
    """Every session registers its hooks again, and reads the signature of each: a sixth of the CPU of short tests."""
    accepts_kwargs = cache(botocore.hooks.accepts_kwargs)
    with pytest.MonkeyPatch.context() as patch:
        # The function of a method: the cache must not keep sessions alive.
        patch.setattr("botocore.hooks.accepts_kwargs", lambda hook: accepts_kwargs(getattr(hook, "__func__", hook)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _this_machines_authorities_are_left_out() -> Iterator[None]:
    """Every transport reads what AWS_CA_BUNDLE names: 20 ms of CPU for a system's authorities."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_CA_BUNDLE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heard() -> None:
    """Restore signals that a background shell (SIGINT) or nohup (SIGHUP) ignores; commands under test inherit that."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def ministack() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker("ministack") as broker:
        yield broker


@pytest.fixture(scope="session")
def moto() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker("moto") as broker:
        yield broker


@pytest.fixture(params=list(BACKENDS))
def broker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """Each broker in turn, in the environment."""
    found: EmbeddedBroker = request.getfixturevalue(request.param)
    lead_to(found.environment, monkeypatch)
    return found


@pytest.fixture
def fast_broker(ministack: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """The default local broker, in the environment."""
    lead_to(ministack.environment, monkeypatch)
    return ministack


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail each test whose output or log holds a secret of its settings."""
    report = yield
    try:
        refuse_planted(*(text for _, text in report.sections))
    except AssertionError as error:
        report.outcome, report.longrepr = "failed", str(error)
    return report


def lead_to(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment, with a secret that nothing may print, and a prefix that nobody else has."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    monkeypatch.setenv("SMARTPIPE_PREFIX", f"t{uuid4().hex[:8]}-")


@pytest.fixture
def queues() -> Queues:
    """What is in the environment's queues, seen from outside."""
    return Queues(boto3.client("sqs"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One for each test worker, to stop and to start; for no more than its address, take ``postgres_url``."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One for each test worker, to stop and to start; for no more than its address, take ``redis_url``."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """A database with smartpipe's tables: that of SMARTPIPE_TEST_POSTGRES_URL, or of a server of our own."""
    url: str = os.environ.get("SMARTPIPE_TEST_POSTGRES_URL") or request.getfixturevalue("postgres_server").url
    with ThreadPoolExecutor() as pool:  # in a loop of its own, wherever this fixture was asked for
        pool.submit(asyncio.run, migrate(url)).result()
    return url


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """That of SMARTPIPE_TEST_REDIS_URL, or of a server of our own."""
    return os.environ.get("SMARTPIPE_TEST_REDIS_URL") or str(request.getfixturevalue("redis_server").url)


@pytest.fixture(scope="session")
def dynamodb(moto: EmbeddedBroker) -> Iterator[FaultProxy]:
    """moto's DynamoDB, made atomic, with all calls to be seen and hindered."""
    with FaultProxy(moto.endpoint_url, max_concurrent=1) as proxy:
        yield proxy


@pytest.fixture
def dynamodb_url(moto: EmbeddedBroker, dynamodb: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A table of claims of its own, in the environment's DynamoDB."""
    lead_to({**moto.environment, "AWS_ENDPOINT_URL": dynamodb.endpoint_url}, monkeypatch)
    dynamodb.calls.clear()
    dynamodb.peak_concurrency = 0
    yield make_table()
    dynamodb.faults.clear()
