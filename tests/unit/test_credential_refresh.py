"""The refresh of credentials that AWS has refused, which may itself call AWS with refused credentials."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from aiobotocore.credentials import AioRefreshableCredentials
from botocore.credentials import RefreshableCredentials

from smartpipe.transports.aws.credentials import Refresh, _BlockingRefresh

REFUSAL = (SimpleNamespace(status_code=403), {"Error": {"Code": "ExpiredToken"}})
EXPIRES = datetime.now(UTC) + timedelta(hours=1)
FRESH = {
    "access_key": "NEW",
    "secret_key": "new",
    "token": "new",
    "expiry_time": (EXPIRES + timedelta(hours=1)).isoformat(),
}


async def test_a_call_of_the_refresh_itself_that_is_refused_does_not_wait_for_the_refresh() -> None:
    answers: list[int | None] = []

    async def assume_role() -> dict[str, str]:
        answers.append(await refresh(response=REFUSAL, attempts=1))
        return FRESH

    credentials = AioRefreshableCredentials("OLD", "old", "old", EXPIRES, assume_role, "assume-role")

    async def get_credentials() -> Any:
        return credentials

    session: Any = SimpleNamespace(get_credentials=get_credentials)
    refresh = Refresh(session)

    assert await asyncio.wait_for(refresh.refresh(), 45)
    assert answers == [None]
    assert (await credentials.get_frozen_credentials()).access_key == "NEW"


def test_a_blocking_call_of_the_refresh_itself_does_not_wait_either() -> None:
    answers: list[int | None] = []

    def assume_role() -> dict[str, str]:
        answers.append(refresh(response=REFUSAL, attempts=1))
        return FRESH

    credentials = RefreshableCredentials("OLD", "old", "old", EXPIRES, assume_role, "assume-role")
    session: Any = SimpleNamespace(get_credentials=lambda: credentials)
    refresh = _BlockingRefresh(session)
    thread = threading.Thread(target=refresh, kwargs={"response": REFUSAL, "attempts": 1}, daemon=True)
    thread.start()
    thread.join(45)

    assert not thread.is_alive()
    assert answers == [None]
