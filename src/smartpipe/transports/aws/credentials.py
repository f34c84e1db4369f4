"""Credentials that AWS refuses before their own date: fetched anew at once, and the call goes on.

botocore looks at the expiry that came with them and at nothing else, and makes no second attempt of a call
that was refused for them. Both hooks below are for its event ``needs-retry``: None leaves the call failed,
0 signs it anew and sends it again. Only credentials that can be fetched are: those of a role, a container, an
instance; what stands in the environment or in a file stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from botocore.credentials import RefreshableCredentials

from smartpipe.transports.aws.errors import STALE, code_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiobotocore.session import AioSession
    from botocore.session import Session

log = logging.getLogger("smartpipe.aws")

REFRESH_EVERY_SECONDS = 10.0
"""Not more often, whether it helped or not: the caller's own waits come in between."""

# The fetch makes calls of its own, of STS, which must not wait for the fetch that they are part of.
_fetching: ContextVar[bool] = ContextVar("smartpipe_fetching_credentials", default=False)


class _Refresh:
    """When to fetch, and what came of it; all callers of a session share one."""

    def __init__(self) -> None:
        self._fetched_at = -math.inf
        self._renewed = False

    @contextmanager
    def _fetch(self, credentials: RefreshableCredentials) -> Iterator[Any]:
        log.warning("AWS refuses the credentials as expired or unknown: fetching new ones")
        known: Any = credentials
        before, outer = known._frozen_credentials, _fetching.set(True)  # noqa: SLF001 - botocore has no call for it
        _forget_cached(known)
        try:
            with suppress(RuntimeError):  # the new ones have expired too; botocore says so in its log
                yield known
        finally:
            _fetching.reset(outer)
        # Not reached when the caller was cancelled: then the next one fetches.
        self._fetched_at = time.monotonic()
        self._renewed = known._frozen_credentials != before  # noqa: SLF001

    @property
    def _due(self) -> bool:
        return time.monotonic() - self._fetched_at >= REFRESH_EVERY_SECONDS


class Refresh(_Refresh):
    """Fetches the credentials of an asyncio session anew."""

    def __init__(self, session: AioSession) -> None:
        super().__init__()
        self._session = session
        self._turn = asyncio.Lock()

    async def __call__(self, *, response: Any, attempts: int, **_: Any) -> int | None:
        """Answer botocore's event."""
        return 0 if _refused(response, attempts) and await self.renewed() else None

    async def renewed(self) -> bool:
        """Fetch new credentials, unless that was done a moment ago; return whether there are any."""
        async with self._turn:
            credentials: Any = await self._session.get_credentials()
            if self._due and isinstance(credentials, RefreshableCredentials):
                with self._fetch(credentials) as known:
                    async with known._refresh_lock:  # noqa: SLF001
                        await known._protected_refresh(is_mandatory=False)  # noqa: SLF001
        return self._renewed


class _BlockingRefresh(_Refresh):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._turn = threading.Lock()

    def __call__(self, *, response: Any, attempts: int, **_: Any) -> int | None:
        if not _refused(response, attempts):
            return None
        with self._turn:
            credentials: Any = self._session.get_credentials()
            if self._due and isinstance(credentials, RefreshableCredentials):
                with self._fetch(credentials) as known, known._refresh_lock:  # noqa: SLF001
                    known._protected_refresh(is_mandatory=False)  # noqa: SLF001
        return 0 if self._renewed else None


def refresh_when_refused(session: AioSession) -> Refresh:
    """Let the clients that *session* will make fetch their credentials anew when AWS refuses them."""
    refresh = Refresh(session)
    session.register("needs-retry", refresh, unique_id="smartpipe-credentials")
    return refresh


def refresh_when_refused_blocking(session: Session) -> None:
    """Do the same for botocore's own clients."""
    refresh: Any = _BlockingRefresh(session)  # the stubs know of no handler that answers
    session.register("needs-retry", refresh, unique_id="smartpipe-credentials")


def _refused(response: tuple[Any, Mapping[str, Any]] | None, attempts: int) -> bool:
    """Whether it is the first answer of a call, and one about its credentials; without an answer there is None."""
    if response is None or attempts > 1 or _fetching.get():
        return False
    http, parsed = response
    return http.status_code >= 300 and code_of(parsed) in STALE  # noqa: PLR2004


def _forget_cached(credentials: Any) -> None:
    """Let the next fetch be one: that of an assumed role would answer from its own cache."""
    fetcher = getattr(credentials._refresh_using, "__self__", None)  # noqa: SLF001
    cache = getattr(fetcher, "_cache", None)
    if isinstance(cache, dict):
        cache.pop(getattr(fetcher, "_cache_key", None), None)
