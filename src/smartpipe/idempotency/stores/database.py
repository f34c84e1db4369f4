"""Connections to PostgreSQL: parses its URLs, connects, and detects a connection pooler in between."""

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

DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""asyncpg raises these if the server is unreachable or refuses. A timeout is an OSError."""
# Raised through a pooler, if a prepared statement belongs to another server connection.
_PREPARED_STATEMENT_ERRORS = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
# asyncpg sends options that it does not know to the server, as settings of the session.
_REFUSED_OPTIONS = (
    asyncpg.UndefinedObjectError, asyncpg.CantChangeRuntimeParamError, asyncpg.InvalidParameterValueError,
)  # fmt: skip
CLOSE_SECONDS = 2.0
CACHE_SIZE = "statement_cache_size"
DEFAULT_CACHE_SIZE = 100
"""The default of asyncpg."""
# SQLAlchemy's names of options, and those of asyncpg.
_RENAMED = {"prepared_statement_cache_size": CACHE_SIZE, "ssl": "sslmode"}


class DatabaseUrl(NamedTuple):
    """A URL of PostgreSQL, in the form of asyncpg.

    Args:
        server: The URL without secrets.
        cache_size: The option ``statement_cache_size``. 0: there is a pooler. Above 0: there is none, or it supports
            prepared statements. None: detect a pooler.
    """

    dsn: str
    server: str
    cache_size: int | None

    @classmethod
    def parse(cls, url: str, setting: str) -> Self:
        """Parse *url*: ``postgresql://``, ``postgres://``, or either with a driver of SQLAlchemy, as ``+asyncpg``.

        Args:
            setting: The setting that contains it, for the error message.

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
    async def connect(self, **options: Any) -> AsyncIterator[asyncpg.Connection]:
        """Provide a connection. At the end it is closed, and terminated if that takes longer than 2 s.

        Args:
            options: Options of asyncpg.connect. By default there is no cache of prepared statements, so that the
                connection works through a pooler as well.

        Raises:
            ConfigError: asyncpg cannot read an option of the URL, or the server or a pooler refuses the option.
        """
        try:
            connection = await asyncpg.connect(self.dsn, **{CACHE_SIZE: 0, **options})
        except ValueError:
            raise self._option_error() from None
        except _REFUSED_OPTIONS as error:
            raise ConfigError(f"{self.server} refuses an option of this URL: {redact(str(error))}") from None
        except asyncpg.ProtocolViolationError as error:
            if "startup parameter" not in str(error):
                raise
            raise ConfigError(
                f"{self.server} is a connection pooler that refuses an option of this URL: {error}; set the option on "
                "the role or the database instead"
            ) from None
        try:
            yield connection
        finally:
            try:
                with suppress(*DATABASE_ERRORS):
                    await connection.close(timeout=CLOSE_SECONDS)
            finally:
                connection.terminate()  # does nothing after a successful close

    async def is_pooled(self, connection: asyncpg.Connection) -> bool:
        """Return whether *connection*, from ``connect``, leads to a pooler such as PgBouncer.

        A pooler sends its clients its own cancellation key. The process id in that key differs from the id of the
        server process that answers. A pooler does not report its mode; transaction mode is assumed.

        Raises:
            ConfigError: The pooler is in statement mode, which allows no transactions.
        """
        try:
            async with connection.transaction():
                answering = await connection.fetchval("SELECT pg_backend_pid()")
        except asyncpg.PostgresError as error:
            if "statement pooling" not in str(error):  # PgBouncer uses the SQLSTATE 08P01 for all its refusals
                raise
            raise ConfigError(
                f"{self.server} is a connection pooler in statement mode, which allows no transactions: set its "
                "pool_mode to transaction or session for this database, or connect directly to the server"
            ) from None
        return bool(connection.get_server_pid() != answering)

    def cache_options(self, *, pooled: bool) -> dict[str, Any]:
        """Return asyncpg's option for prepared statements: the URL's, or else none if *pooled*."""
        size = self.cache_size
        return {CACHE_SIZE: (0 if pooled else DEFAULT_CACHE_SIZE) if size is None else size}

    def store_error(self, action: str, error: BaseException) -> StoreError:
        """Return the StoreError for one of DATABASE_ERRORS, without secrets."""
        detail = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        mixed_up = isinstance(error, _PREPARED_STATEMENT_ERRORS)
        advice = f"; through a connection pooler, add ?{CACHE_SIZE}=0 to the URL" if mixed_up else ""
        return StoreError(f"{action} at {self.server}: {redact(detail)}{advice}")

    def _option_error(self) -> ConfigError:
        """Return the error for an option that asyncpg refuses. asyncpg's own text quotes parts of the URL."""
        return ConfigError(f"{self.server}: asyncpg cannot read an option of this URL, such as sslmode")


class PooledConnection(asyncpg.Connection):
    """A connection through a pooler, which lets other clients use its server connections in between.

    The named statements of ``prepare`` and ``cursor`` remain on a server connection. Another process of ours would use
    the same names for its own, because asyncpg numbers them from 1 in each process. So each name is unique here.
    """

    __slots__ = ()

    def _get_unique_id(self, prefix: str) -> str:
        return f"__smartpipe_{prefix}_{uuid4().hex}__"
