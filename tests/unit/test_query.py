"""The answers of a child over its Unix socket, and the ways in which it does not answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smartpipe.telemetry.prometheus import OPENMETRICS, TEXT
from smartpipe.worker.health import HealthServer, ProbeResult
from smartpipe.worker.supervisor import query as query_module
from smartpipe.worker.supervisor.query import NoResponseError, Response, query

if TYPE_CHECKING:
    from pathlib import Path


class Report:
    async def livez(self) -> ProbeResult:
        return ProbeResult(ok=True, body={"alive": True})

    async def readyz(self) -> ProbeResult:
        return ProbeResult(ok=False, body={"ready": False})

    async def metrics(self, content_type: str = TEXT) -> str:
        return f"up 1 {content_type.partition(';')[0]}\n"


async def test_a_child_that_listens_is_asked_over_its_socket(tmp_path: Path) -> None:
    socket = tmp_path / "1.sock"
    async with HealthServer(Report(), "unused", 0, socket=socket):
        assert await query(socket, "/livez") == Response(200, '{"alive": true}')
        assert await query(socket, "/readyz") == Response(503, '{"ready": false}')
        assert await query(socket, "/metrics") == Response(200, "up 1 text/plain\n")
        opened = await query(socket, "/metrics", accept=OPENMETRICS)
        assert opened == Response(200, "up 1 application/openmetrics-text\n")


async def test_a_child_that_does_not_listen_is_told_from_one_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "QUERY_SECONDS", 0.05)
    over = asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    with pytest.raises(NoResponseError) as absent:
        await query(tmp_path / "none.sock", "/livez")
    assert (absent.value.listening, absent.value.args) == (False, ())
    for number, serve in enumerate((hang_up, hang)):
        socket = tmp_path / f"{number}.sock"
        async with await asyncio.start_unix_server(serve, str(socket)):
            with pytest.raises(NoResponseError) as silent:
                await query(socket, "/livez")
            assert silent.value.listening
            over.set()
