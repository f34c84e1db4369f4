"""Connections to PostgreSQL: reads its URLs, connects, and finds out whether a connection pooler is in between."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from smartpipe.errors import ConfigError, StoreError
from smartpipe.urls import describe_url, is_postgres, is_readable, redact, scheme_of, unreadable_url_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""asyncpg raises these when the server cannot be reached or refuses; a timeout is an OSError."""
# A prepared statement that another connection has, or has not: server connections change under the client.
_MIXED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
CLOSE_SECONDS = 2.0
CACHE_SIZE = "statement_cache_size"
DEFAULT_CACHE_SIZE = 100
"""asyncpg's own."""
# SQLAlchemy's names of options that asyncpg calls otherwise.
_RENAMED = {"prepared_statement_cache_size": CACHE_SIZE, "ssl": "sslmode"}


class DatabaseUrl(NamedTuple):
    """A URL of PostgreSQL, as asyncpg reads it.

    Args:
        server: The URL as it may be shown.
        cache_size: The option ``statement_cache_size``: 0 says that there is a pooler, anything above that there is
            none, or one that keeps prepared statements; None: find out.
    """

    dsn: str
    server: str
    cache_size: int | None

    @classmethod
    def read(cls, url: str, setting: str) -> Self:
        """Read *url*: ``postgresql://``, ``postgres://``, or either with SQLAlchemy's driver, as ``+asyncpg``.

        Args:
            setting: Where it comes from, for the error.

        Raises:
            ConfigError: It cannot be read. The error shows no part of it but the scheme.
        """
        url = url.strip()
        scheme = scheme_of(url)
        if not is_postgres(url):
            found = f"{scheme}:// is not PostgreSQL" if scheme else "it is not a URL"
            raise ConfigError(f"{setting}: {found}; write postgresql://user:password@host/name")
        if not is_readable(url):
            raise ConfigError(unreadable_url_message(setting, scheme))
        parts = urlsplit(url)
        options = {_RENAMED.get(name, name): value for name, value in parse_qsl(parts.query, keep_blank_values=True)}
        size = options.pop(CACHE_SIZE, None)
        if size is not None and not re.fullmatch(r"[0-9]{1,6}", size):
            raise ConfigError(f"{setting}: {CACHE_SIZE} must be a number, 0 behind a connection pooler")
        dsn = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(options), ""))
        return cls(dsn, describe_url(dsn), None if size is None else int(size))

    @asynccontextmanager
    async def connected(self, **options: Any) -> AsyncIterator[asyncpg.Connection]:
        """Give a connection, and close it at the end, politely if that takes at most 2 s.

        Args:
            options: Of asyncpg.connect. By default it has no cache of prepared statements, so that it works through a
                pooler as well.

        Raises:
            ConfigError: asyncpg cannot read an option of the URL, or a pooler refuses it.
        """
        try:
            connection = await asyncpg.connect(self.dsn, **{CACHE_SIZE: 0, **options})
        except ValueError:
            raise self.refused() from None
        except asyncpg.ProtocolViolationError as error:
            if "startup parameter" not in str(error):
                raise
            raise ConfigError(
                f"{self.server} is a connection pooler that refuses an option of this URL: {error}; set it on the role "
                "or the database instead"
            ) from None
        try:
            yield connection
        finally:
            try:
                with suppress(*FAULTS):
                    await connection.close(timeout=CLOSE_SECONDS)
            finally:
                connection.terminate()  # does nothing after a polite close

    async def is_pooled(self, connection: asyncpg.Connection) -> bool:
        """Return whether *connection*, one of ``connected``, leads to a pooler such as PgBouncer.

        A pooler sends its clients a cancellation key of its own, so the process id in that key is not the one of the
        server process that answers. In which mode the pooler works it does not say: transaction mode is assumed.

        Raises:
            ConfigError: It works in statement mode, which allows no transactions.
        """
        try:
            async with connection.transaction():
                answering = await connection.fetchval("SELECT pg_backend_pid()")
        except asyncpg.PostgresError as error:
            if "statement pooling" not in str(error):  # PgBouncer has one SQLSTATE, 08P01, for all its refusals
                raise
            raise ConfigError(
                f"{self.server} is a connection pooler in statement mode, which allows no transactions: set its "
                "pool_mode to transaction or session for this database, or connect past it"
            ) from None
        return bool(connection.get_server_pid() != answering)

    def cache_options(self, *, pooled: bool) -> dict[str, Any]:
        """Return the options that let asyncpg keep prepared statements, or not: where they work, as the URL says."""
        size = self.cache_size
        return {CACHE_SIZE: (0 if pooled else DEFAULT_CACHE_SIZE) if size is None else size}

    def refused(self) -> ConfigError:
        """Return the error for an option that asyncpg refuses, whose own text quotes parts of the URL."""
        return ConfigError(f"{self.server}: asyncpg cannot read an option of this URL, such as sslmode")

    def fault(self, verb: str, error: BaseException) -> StoreError:
        """Return the StoreError for one of FAULTS, without any secret."""
        detail = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        advice = f"; through a connection pooler, add ?{CACHE_SIZE}=0 to the URL" if isinstance(error, _MIXED) else ""
        return StoreError(f"{verb} at {self.server}: {redact(detail)}{advice}")


class PooledConnection(asyncpg.Connection):
    """A connection through a pooler, whose server connections others use in between.

    The statements that ``prepare`` and ``cursor`` name are left on a server connection, where a second process of
    ours would use the same names: asyncpg numbers them from 1 in each process.
    """

    __slots__ = ()

    def _get_unique_id(self, prefix: str) -> str:
        return f"__smartpipe_{prefix}_{uuid4().hex}__"
