"""Refreshes credentials that AWS refuses before they expire.

botocore looks only at the expiry date of credentials, and does not repeat a call that AWS refused because of them.
The hooks below handle botocore's event ``needs-retry``: None lets the call fail, 0 signs it again and sends it again.
Only credentials that can be fetched are refreshed: those of a role, a container or an instance. Credentials from the
environment or from a file stay as they are.
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
"""The shortest time between two refreshes, successful or not. Meanwhile the callers wait between their attempts."""

# A refresh makes calls of its own, of STS. Without this variable they would wait for the refresh that they belong to.
_in_refresh: ContextVar[bool] = ContextVar("smartpipe_refreshing_credentials", default=False)


class _Refresh:
    """When credentials were last refreshed, and whether that brought new ones. All callers of a session share one."""

    def __init__(self) -> None:
        self._refreshed_at = -math.inf
        self._found_new = False

    @contextmanager
    def _refreshing(self, credentials: RefreshableCredentials) -> Iterator[Any]:
        log.warning("AWS refuses the credentials as expired or unknown. Fetching new ones")
        internals: Any = credentials
        before, outer = internals._frozen_credentials, _in_refresh.set(True)  # noqa: SLF001 - botocore has no call for it
        _clear_cache(internals)
        try:
            with suppress(RuntimeError):  # the new ones have expired too, and botocore's log says so
                yield internals
        finally:
            _in_refresh.reset(outer)
        # A cancelled caller does not get here. The next caller refreshes then.
        self._refreshed_at = time.monotonic()
        self._found_new = internals._frozen_credentials != before  # noqa: SLF001

    @property
    def _due(self) -> bool:
        return time.monotonic() - self._refreshed_at >= REFRESH_EVERY_SECONDS


class Refresh(_Refresh):
    """Refreshes the credentials of an asyncio session."""

    def __init__(self, session: AioSession) -> None:
        super().__init__()
        self._session = session
        self._lock = asyncio.Lock()

    async def __call__(self, *, response: Any, attempts: int, **_: Any) -> int | None:
        """Handle botocore's event."""
        return 0 if _is_refusal(response, attempts) and await self.refresh() else None

    async def refresh(self) -> bool:
        """Fetch new credentials, unless that was done a moment ago. Return whether the last fetch brought new ones."""
        async with self._lock:
            credentials: Any = await self._session.get_credentials()
            if self._due and isinstance(credentials, RefreshableCredentials):
                with self._refreshing(credentials) as internals:
                    async with internals._refresh_lock:  # noqa: SLF001
                        await internals._protected_refresh(is_mandatory=False)  # noqa: SLF001
        return self._found_new


class _BlockingRefresh(_Refresh):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._lock = threading.Lock()

    def __call__(self, *, response: Any, attempts: int, **_: Any) -> int | None:
        if not _is_refusal(response, attempts):
            return None
        with self._lock:
            credentials: Any = self._session.get_credentials()
            if self._due and isinstance(credentials, RefreshableCredentials):
                with self._refreshing(credentials) as internals, internals._refresh_lock:  # noqa: SLF001
                    internals._protected_refresh(is_mandatory=False)  # noqa: SLF001
        return 0 if self._found_new else None


def refresh_when_refused(session: AioSession) -> Refresh:
    """Let the clients that *session* will open refresh their credentials when AWS refuses them."""
    refresh = Refresh(session)
    session.register("needs-retry", refresh, unique_id="smartpipe-credentials")
    return refresh


def refresh_when_refused_blocking(session: Session) -> None:
    """Do the same for the clients of a blocking session."""
    refresh: Any = _BlockingRefresh(session)  # the stubs allow no handler that returns a value
    session.register("needs-retry", refresh, unique_id="smartpipe-credentials")


def _is_refusal(response: tuple[Any, Mapping[str, Any]] | None, attempts: int) -> bool:
    """Return whether this is the first response to a call and refuses its credentials. None means no response."""
    if response is None or attempts > 1 or _in_refresh.get():
        return False
    http, parsed = response
    return http.status_code >= 300 and code_of(parsed) in STALE  # noqa: PLR2004


def _clear_cache(credentials: Any) -> None:
    """Let the next refresh make a call. For an assumed role it would return the credentials of its cache."""
    fetcher = getattr(credentials._refresh_using, "__self__", None)  # noqa: SLF001
    cache = getattr(fetcher, "_cache", None)
    if isinstance(cache, dict):
        cache.pop(getattr(fetcher, "_cache_key", None), None)
