"""The refresh of credentials that AWS has refused, which may itself call AWS with refused credentials."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiobotocore.credentials import AioRefreshableCredentials
from botocore.credentials import Credentials, RefreshableCredentials

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


class Fetched:
    """Refreshable credentials for asyncio or blocking code, and the number of times that they were fetched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, blocking: bool) -> None:
        self.now = 100.0
        self.fetches = 0
        self.key = "OLD"
        monkeypatch.setattr("smartpipe.transports.aws.credentials.time.monotonic", lambda: self.now)
        self._blocking = blocking
        kind: Any = RefreshableCredentials if blocking else AioRefreshableCredentials
        self.credentials = kind("OLD", "old", "old", EXPIRES, self._fetch if blocking else self._fetch_async, "role")
        session: Any = SimpleNamespace(get_credentials=self._get if blocking else self._get_async)
        self.refresh: Any = _BlockingRefresh(session) if blocking else Refresh(session)

    def _get(self) -> Any:
        return self.credentials

    async def _get_async(self) -> Any:
        return self.credentials

    def _fetch(self) -> dict[str, str]:
        self.fetches += 1
        return FRESH | {"access_key": self.key}

    async def _fetch_async(self) -> dict[str, str]:
        return self._fetch()

    async def handle(self, attempts: int = 1) -> int | None:
        answer = self.refresh(response=REFUSAL, attempts=attempts)
        result: int | None = answer if self._blocking else await answer
        return result


@pytest.fixture(params=[False, True], ids=["asyncio", "blocking"])
def fetched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fetched:
    return Fetched(monkeypatch, blocking=request.param)


async def test_credentials_are_fetched_once_in_ten_seconds_for_all_calls(fetched: Fetched) -> None:
    steps = []
    for now, key in ((100.0, "A"), (100.0, "B"), (109.9, "B"), (110.0, "B"), (119.9, "C"), (120.0, "B")):
        fetched.now, fetched.key = now, key
        steps.append((await fetched.handle(), fetched.fetches))

    assert steps == [(0, 1), (0, 1), (0, 1), (0, 2), (0, 2), (None, 3)]  # the last ones are not new


async def test_only_credentials_that_can_be_fetched_are_refreshed(fetched: Fetched) -> None:
    fetched.credentials = Credentials("KEY", "secret")

    assert [await fetched.handle(), await fetched.handle()] == [None, None]


async def test_the_second_response_to_a_call_fetches_nothing(fetched: Fetched) -> None:
    assert await fetched.handle(attempts=2) is None
    assert fetched.fetches == 0


async def test_new_credentials_that_have_expired_too_are_used_no_more_than_the_old_ones(fetched: Fetched) -> None:
    expired = {**FRESH, "expiry_time": (EXPIRES - timedelta(hours=2)).isoformat()}
    fetched.credentials._refresh_using = (lambda: expired) if fetched._blocking else partial(answer, expired)

    assert await fetched.handle() in (None, 0)
    fetched.now += 10
    fetched.credentials._refresh_using = fetched._fetch if fetched._blocking else fetched._fetch_async
    fetched.key = "NEWER"
    assert await fetched.handle() == 0


async def answer(value: Any) -> Any:
    return value


async def test_the_cache_of_an_assumed_role_is_cleared_first(fetched: Fetched) -> None:
    class Fetcher:
        _cache_key = "role"

        def __init__(self) -> None:
            self._cache = {"role": "old", "other": "kept"}
            self.seen: list[dict[str, str]] = []

        def fetch(self) -> dict[str, str]:
            self.seen.append(dict(self._cache))
            return FRESH

        async def fetch_async(self) -> dict[str, str]:
            return self.fetch()

    fetcher = Fetcher()
    fetched.credentials._refresh_using = fetcher.fetch if fetched._blocking else fetcher.fetch_async

    assert await fetched.handle() == 0
    assert fetcher.seen == [{"other": "kept"}]
