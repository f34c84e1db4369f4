from __future__ import annotations

import asyncio
from typing import Any

import pytest

from smartpipe.cli.supervise import build_worker_arguments, shorten_polls
from smartpipe.settings import WorkerSettings
from smartpipe.worker.supervisor.supervisor import Supervisor


def test_a_child_gets_the_supervisors_flags_without_address_and_number_of_processes() -> None:
    flags = {"processes": 4, "concurrency": 3, "drain_seconds": None, "host": "::", "port": 80, "log_level": "debug"}

    arguments = build_worker_arguments(["shop:service", "shop:other"], flags)

    assert arguments == (
        *("worker", "shop:service", "shop:other"),
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
def test_in_development_polls_are_short_unless_the_user_has_set_a_value(
    flags: dict[str, Any], environment: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMARTPIPE_WAIT_SECONDS", raising=False)
    if environment is not None:
        monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", environment)

    assert shorten_polls(flags, WorkerSettings.load(**flags))["wait_seconds"] == expected


async def test_a_preparation_that_fails_ends_the_supervisor_with_its_code() -> None:
    prepared = 0

    async def prepare() -> int:
        nonlocal prepared
        prepared += 1
        return 3

    supervisor = Supervisor([], drain_seconds=5, liveness_seconds=30, prepare=prepare)

    assert await asyncio.wait_for(supervisor.run(), 45) == 3
    assert prepared == 1
