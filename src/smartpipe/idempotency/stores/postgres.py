"""Claims in PostgreSQL. Each method runs one statement; a claim can be completed in the caller's transaction."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import asyncpg

from smartpipe.connections import describe, execute, sqlstate_of
from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.store import Claimed, Completed, InProgress, claim_state
from smartpipe.idempotency.stores.database import DATABASE_ERRORS, DatabaseUrl, PooledConnection
from smartpipe.idempotency.stores.migrate import missing_migrations
from smartpipe.idempotency.stores.records import limit_attempt, limit_lease, stored_key
from smartpipe.idempotency.stores.statements import (
    CLAIM,
    COMPLETE,
    FORGET,
    PURGE,
    READ,
    RELEASE,
    RENEW,
    claim_document,
    complete_in_statement,
    find_statement,
)
from smartpipe.process_guard import ProcessGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from smartpipe.idempotency.store import Claim, ClaimOutcome, ClaimState

log = logging.getLogger("smartpipe.stores")

CALL_SECONDS = 5.0
ACQUIRE_SECONDS = 30.0
PURGE_SECONDS = 60.0
PURGE_ROWS = 1_000
CLAIM_CONNECTIONS = 4
UNDEFINED_TABLE = "42P01"
"""https://www.postgresql.org/docs/current/errcodes-appendix.html"""
MAX_KEY_BYTES = 2_600
"""An index row has at most 2,704 bytes: https://www.postgresql.org/docs/current/btree.html"""

# The connection has ended, perhaps long before, when its server did.
_CONNECTION_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    ConnectionError,
)


class PostgresStore:
    """Claims in the table ``smartpipe_claims``, which ``smartpipe store migrate`` creates.

    Leases expire by the server's clock. Once a minute, a process that claims deletes expired records.

    When it is opened, it detects a connection pooler in front of the server, and then uses no prepared statements,
    which costs a second round trip for each call. The URL's option ``statement_cache_size`` overrides this: with 0
    there are no prepared statements, with a higher number there are.

    Args:
        connections: The number of handlers that can have a connection from ``acquire`` at the same time. Claims use
            four other connections, so that handlers cannot prevent leases from being renewed.

    Raises:
        ConfigError: The URL cannot be read.
    """

    def __init__(self, url: str, *, prefix: str = "", connections: int = 10) -> None:
        self._database = DatabaseUrl.parse(url, "SMARTPIPE_IDEMPOTENCY_URL")
        self._server = self._database.server
        self._guard = ProcessGuard(f"the store at {self._server}")
        self._prefix = prefix
        self._connections = connections
        self._claim_pool: asyncpg.Pool | None = None
        self._handler_pool: asyncpg.Pool | None = None
        self._purging: asyncio.Task[None] | None = None
        self._purged_at = 0.0

    async def open(self) -> None:
        """Connect, and check that the table exists.

        Raises:
            ConfigError: The table does not exist or is from an older version, or the URL leads to a pooler in
                statement mode.
            StoreError: The server is unreachable.
        """
        self._guard.check()
        self._purged_at = asyncio.get_running_loop().time()
        database = self._database
        try:
            async with database.connect(timeout=CALL_SECONDS, command_timeout=CALL_SECONDS) as connection:
                pooled = await database.is_pooled(connection)
                missing = await missing_migrations(connection, "claims")
            if missing:
                raise ConfigError(f"{self._server} lacks {', '.join(missing)}: run smartpipe store migrate")
            if self._claim_pool is None:
                await self._open_pools(pooled=pooled)
        except DATABASE_ERRORS as error:
            raise self._error("open", error) from error

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim the keys that are unknown or released, or whose lease has expired.

        A lease starts when the call arrives at the server.
        """
        if not claims:
            return []
        first = {self._key(claim.key): claim for claim in reversed(claims)}
        rows = {row["key"]: row for row in await self._call("claim", CLAIM, *_columns(first.items()))}
        self._purge_if_due()
        # If a key occurs twice, only the first claim was sent, and its row answers the second one as well.
        return [_outcome(rows[self._key(claim.key)], claim) for claim in claims]

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Renew each lease for ``lease_seconds`` from now."""
        return await self._change("renew", RENEW, claims)

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Mark each claim as completed."""
        return await self._change("complete", COMPLETE, claims)

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Release each claim."""
        return await self._change("release", RELEASE, claims)

    async def read(self, keys: Sequence[str]) -> list[ClaimState]:
        """Return the state of each key."""
        stored = [self._key(key) for key in keys]
        rows = await self._call("read", READ, stored) if stored else []
        found = {row["key"]: claim_state(row["state"], limit_lease(row["seconds"])) for row in rows}
        return [found.get(key) for key in stored]

    async def forget(self, keys: Sequence[str]) -> None:
        """Delete the records of these keys."""
        if keys:
            await self._call("forget", FORGET, [self._key(key) for key in keys])

    async def complete_in(self, connection: Any, claim: Claim) -> bool:
        """Complete *claim* in the caller's transaction. It is completed when the transaction commits.

        Call it last: until the commit the row stays locked, and renewing or claiming it waits. Under REPEATABLE READ
        or SERIALIZABLE it fails if the lease was renewed since the transaction began.

        Args:
            connection: A connection from ``acquire``, or any connection or session of asyncpg, SQLAlchemy or psycopg
                to the same database, in a transaction.

        Returns:
            Whether the token still holds its key. If it does not, roll back.

        Raises:
            StoreError: The statement failed, and so did the transaction.
        """
        try:
            return await self._execute(connection, complete_in_statement, claim) == 1
        except Exception as error:  # each driver has its own
            raise self._error("complete_in", error) from error

    async def check_database(self, connection: Any, claim: Claim, label: str) -> None:
        """Check that *connection* leads to the database that has *claim*, in which ``complete_in`` will look for it.

        Args:
            connection: As in ``complete_in``.
            label: The caller's call, for the error.

        Raises:
            ConfigError: There is no such table or record.
            StoreError: The statement failed.
        """
        try:
            found = await self._execute(connection, find_statement, claim)
        except Exception as error:
            if sqlstate_of(error) != UNDEFINED_TABLE:
                raise self._error("check_database", error) from error
            found = 0
            reason = "has no table smartpipe_claims in its search_path"
        else:
            reason = "does not have the claim of this event"
        if found == 0:
            raise ConfigError(
                f"{describe(label, connection)} leads to a database that {reason}: it must be the database of "
                f"SMARTPIPE_IDEMPOTENCY_URL, {self._server}, because one transaction commits your changes and the claim"
            )

    async def _execute(self, connection: Any, statement: Callable[[str], str], claim: Claim) -> int:
        document = claim_document(self._key(claim.key), claim.token, claim.ttl_seconds)
        async with asyncio.timeout(CALL_SECONDS):
            return await execute(connection, statement, document)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """Provide a connection of asyncpg. Errors of the caller's own statements are not converted.

        Raises:
            StoreError: No connection was free or could be opened within 30 s.
        """
        pool = self._require_open(self._handler_pool)
        try:
            connection = await pool.acquire(timeout=ACQUIRE_SECONDS)
        except DATABASE_ERRORS as error:
            raise self._error("acquire", error) from error
        try:
            yield connection
        finally:
            # A connection that breaks here must not look like a failure of the caller, whose transaction has ended.
            with suppress(*DATABASE_ERRORS):
                await pool.release(connection, timeout=CALL_SECONDS)

    async def purge(self, limit: int = PURGE_ROWS) -> int:
        """Delete at most *limit* expired records, and return their number."""
        return len(await self._call("purge", PURGE, limit))

    async def aclose(self) -> None:
        """Disconnect. Connections that handlers still have after 5 s are terminated. A second call does nothing."""
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.wait([self._purging])
            self._purging = None
        pools = (self._claim_pool, self._handler_pool)
        self._claim_pool, self._handler_pool = None, None
        for pool in pools:
            if pool is not None:
                try:
                    async with asyncio.timeout(CALL_SECONDS):
                        await pool.close()
                except DATABASE_ERRORS:
                    pool.terminate()

    async def _open_pools(self, *, pooled: bool) -> None:
        options = self._database.cache_options(pooled=pooled)
        if pooled:
            log.info(
                "%s is a connection pooler: using statement_cache_size=%d for claims", self._server, *options.values()
            )
            options |= {"connection_class": PooledConnection, "init": _learn_types}
        # Claims do not change their session, and a reset would cost each call a second round trip. Behind a pooler a
        # reset could reach another server connection than the one that was used.
        self._claim_pool = await self._open_pool(
            CLAIM_CONNECTIONS, command_timeout=CALL_SECONDS, reset=_skip_reset, **options
        )
        self._handler_pool = await self._open_pool(
            self._connections, **({"reset": _skip_reset} if pooled else {}), **options
        )

    async def _open_pool(self, size: int, **options: Any) -> asyncpg.Pool:
        return await asyncpg.create_pool(self._database.dsn, min_size=0, max_size=size, timeout=CALL_SECONDS, **options)

    async def _change(self, method: str, statement: str, claims: Sequence[Claim]) -> list[bool]:
        if not claims:
            return []
        keyed = [(self._key(claim.key), claim) for claim in claims]
        changed = {(row["key"], row["token"]) for row in await self._call(method, statement, *_columns(keyed))}
        return [(key, claim.token) in changed for key, claim in keyed]

    async def _call(self, method: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        pool = self._require_open(self._claim_pool)
        for tries_left in (1, 0):
            try:
                async with pool.acquire(timeout=CALL_SECONDS) as connection:
                    return await connection.fetch(statement, *arguments, timeout=CALL_SECONDS)
            except DATABASE_ERRORS as error:
                # Retry once, on a new connection. Because of the token every method can be repeated.
                if not (tries_left and isinstance(error, _CONNECTION_ERRORS)):
                    raise self._error(method, error) from error
        raise AssertionError

    def _purge_if_due(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._purged_at >= PURGE_SECONDS and (self._purging is None or self._purging.done()):
            self._purged_at = now
            self._purging = asyncio.create_task(self._purge_all())

    async def _purge_all(self) -> None:
        try:
            while await self.purge() == PURGE_ROWS:
                pass
        except StoreError as error:
            log.warning("Cannot delete expired claims, will retry: %s", error)

    def _require_open(self, pool: asyncpg.Pool | None) -> asyncpg.Pool:
        self._guard.check()
        if pool is None:
            raise StoreError(f"the store at {self._server} is not open")
        return pool

    def _error(self, method: str, error: BaseException) -> StoreError:
        return self._database.store_error(
            method, getattr(error, "orig", None) or error
        )  # SQLAlchemy's has the statement

    def _key(self, key: str) -> str:
        return stored_key(self._prefix, key, max_bytes=MAX_KEY_BYTES)


async def _skip_reset(connection: Any) -> None:
    """Do nothing."""


async def _learn_types(connection: Any) -> None:
    """Make asyncpg look up the types of our parameters in one transaction, because it changes ``jit`` meanwhile."""
    async with connection.transaction():
        await connection.fetch("SELECT $1::text[], $2::float8[]", [], [])


def _columns(claims: Iterable[tuple[str, Claim]]) -> tuple[list[str], list[str], list[float], list[float]]:
    """Return lists of keys, tokens, lease and time to live in seconds, for ``unnest``."""
    pairs = list(claims)
    return (
        [key for key, _ in pairs],
        [claim.token for _, claim in pairs],
        [claim.lease_seconds for _, claim in pairs],
        [claim.ttl_seconds for _, claim in pairs],
    )


def _outcome(row: asyncpg.Record, claim: Claim) -> ClaimOutcome:
    if row["state"] == "completed":
        return Completed()
    if row["token"] == claim.token:
        return Claimed(limit_attempt(row["attempt"]))
    return InProgress(limit_lease(row["seconds"]))
