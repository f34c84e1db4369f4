"""The process in which ``smartpipe dev`` imports the services again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psutil

from smartpipe.cli.dev.services import describe_current_services
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_cancelled_import_of_the_services_ends_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    monkeypatch.chdir(tmp_path)
    describing = asyncio.create_task(describe_current_services(["endless:service"], ""))
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process = int((tmp_path / "pid").read_text())

    describing.cancel()
    async with asyncio.timeout(45):
        await asyncio.wait([describing])

    assert describing.cancelled()
    assert not psutil.pid_exists(process)
