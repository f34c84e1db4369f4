"""Asks a child how it fares, on its Unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import aiohttp

if TYPE_CHECKING:
    from pathlib import Path

# More patient than probers are by default (Kubernetes: 1 s), so that theirs is the patience that counts.
ASK_SECONDS = 3.0


class Answered(NamedTuple):
    """What it said."""

    status: int
    text: str


class Unanswered(Exception):
    """It did not answer; ``listening`` is whether somebody took the question."""

    def __init__(self, *, listening: bool) -> None:
        super().__init__()
        self.listening = listening


async def ask(socket: Path, path: str) -> Answered:
    """Return the answer.

    Raises:
        Unanswered: Nobody listens there, or does not answer within 3 s.
    """
    timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
    connector = aiohttp.UnixConnector(str(socket))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(f"http://child{path}") as response,
        ):
            return Answered(response.status, await response.text())
    except aiohttp.ClientConnectorError:
        raise Unanswered(listening=False) from None
    except (TimeoutError, aiohttp.ClientError):
        raise Unanswered(listening=True) from None
