"""The pytest plugin. pytest loads it in every test run where smartpipe is installed, so it imports little."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from smartpipe.local import EmbeddedBroker


def _entered_brokers() -> Any:
    module = sys.modules.get("smartpipe.testing.broker")
    return module.entered if module else []


@pytest.hookimpl(hookwrapper=True)  # the older form, which every pytest since 2016 supports
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """Print the timelines of a failed test's memory brokers."""
    report: pytest.TestReport = (yield).get_result()
    if report.when == "call" and report.failed:
        for broker in _entered_brokers():
            report.sections.append(("smartpipe: timeline of the memory broker", broker.timeline or "empty"))
    if report.when == "teardown":
        _entered_brokers().clear()


@pytest.fixture(scope="session")
def _smartpipe_moto_server() -> Iterator[EmbeddedBroker]:
    from smartpipe.local import EmbeddedBroker

    with EmbeddedBroker("moto") as broker:
        yield broker


@pytest.fixture
def smartpipe_moto(_smartpipe_moto_server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """Start a moto server on a free port. Point AWS's variables to it, and set a prefix for this test.

    Needs ``pip install 'smartpipe[moto]'``.
    """
    for name, value in _smartpipe_moto_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SMARTPIPE_PREFIX", f"t{uuid4().hex[:8]}-")
    return _smartpipe_moto_server
