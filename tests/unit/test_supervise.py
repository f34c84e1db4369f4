from __future__ import annotations

from typing import Any

import pytest

from smartpipe.cli.supervise import quick_to_drain, worker_arguments
from smartpipe.settings import WorkerSettings


def test_a_child_gets_its_supervisors_flags_but_neither_its_address_nor_children_of_its_own() -> None:
    flags = {"processes": 4, "concurrency": 3, "drain_seconds": None, "host": "::", "port": 80, "log_level": "debug"}

    arguments = worker_arguments("shop:service", flags)

    assert arguments == (
        *("worker", "shop:service"),
        *("--processes", "1"),
        *("--concurrency", "3"),
        *("--log-level", "debug"),
    )


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ({}, None, 1),
        ({"wait_seconds": None}, "7", 7),
        ({"wait_seconds": 5}, None, 5),
        ({"wait_seconds": 5}, "7", 5),
    ],
)
def test_in_development_polls_are_short_unless_somebody_chose(
    flags: dict[str, Any], environment: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMARTPIPE_WAIT_SECONDS", raising=False)
    if environment is not None:
        monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", environment)

    assert quick_to_drain(flags, WorkerSettings.load(**flags))["wait_seconds"] == expected
