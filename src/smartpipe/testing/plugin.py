"""The pytest plugin. It loads in every test run of whoever installs smartpipe, so it imports nothing at first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from smartpipe.local import EmbeddedBroker


def _entered() -> Any:
    module = sys.modules.get("smartpipe.testing.broker")
    return module.entered if module else []


@pytest.hookimpl(hookwrapper=True)  # the old kind, which every pytest since 2016 knows
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """Show below a failed test what happened on its memory brokers."""
    report: pytest.TestReport = (yield).get_result()
    if report.when == "call" and report.failed:
        for broker in _entered():
            report.sections.append(("smartpipe: what happened on the memory broker", broker.timeline or "nothing"))
    if report.when == "teardown":
        _entered().clear()


@pytest.fixture(scope="session")
def _smartpipe_moto_server() -> Iterator[EmbeddedBroker]:
    from smartpipe.local import EmbeddedBroker

    with EmbeddedBroker("moto") as broker:
        yield broker


@pytest.fixture
def smartpipe_moto(_smartpipe_moto_server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """A moto server on a free port of this machine, in the environment, under a prefix of this test's own.

    Needs ``pip install 'smartpipe[moto]'``.
    """
    for name, value in _smartpipe_moto_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SMARTPIPE_PREFIX", f"t{uuid4().hex[:8]}-")
    return _smartpipe_moto_server
