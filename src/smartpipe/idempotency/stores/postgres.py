"""Claims in PostgreSQL: one statement a verb, or one inside of the caller's own transaction."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import asyncpg

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.store import Claimed, Completed, InProgress, known
from smartpipe.idempotency.stores.database import FAULTS, DatabaseUrl, PooledConnection
from smartpipe.idempotency.stores.keys import stored_key
from smartpipe.idempotency.stores.migrate import missing_migrations
from smartpipe.idempotency.stores.reading import limit_attempt, limit_lease
from smartpipe.idempotency.stores.statements import CLAIM, COMPLETE, COMPLETE_IN, FORGET, LOOK, PURGE, RELEASE, RENEW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from smartpipe.idempotency.store import Claim, ClaimOutcome, Known

log = logging.getLogger("smartpipe.stores")

CALL_SECONDS = 5.0
ACQUIRE_SECONDS = 30.0
PURGE_SECONDS = 60.0
PURGE_ROWS = 1_000
CLAIM_CONNECTIONS = 4
MAX_KEY_BYTES = 2_600
"""An index row has at most 2,704 bytes: https://www.postgresql.org/docs/current/btree.html"""

# A connection that ended, perhaps long before, with the server that it led to.
_ENDED = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    ConnectionError,
)


class PostgresStore:
    """Claims in the table ``smartpipe_claims``, judged by the server's clock; ``smartpipe store migrate`` makes it.

    Once a minute it deletes what nobody remembers any more.

    Args:
        connections: How many handlers may hold a connection of ``acquire`` at once. Claims have four of their own, so
            that handlers who hold theirs cannot keep leases from being renewed.

    It looks when it is opened whether a connection pooler is before the server, and then does without prepared
    statements, which costs a second round trip for each call. The URL's option ``statement_cache_size`` decides that
    instead: 0 without them, above that with them.

    Raises:
        ConfigError: A URL that cannot be read.
    """

    def __init__(self, url: str, *, prefix: str = "", connections: int = 10) -> None:
        self._database = DatabaseUrl.read(url, "SMARTPIPE_IDEMPOTENCY_URL")
        self._server = self._database.server
        self._prefix = prefix
        self._connections = connections
        self._claims: asyncpg.Pool | None = None
        self._handlers: asyncpg.Pool | None = None
        self._purging: asyncio.Task[None] | None = None
        self._purged_at = 0.0

    async def open(self) -> None:
        """Connect, and check that the table is there.

        Raises:
            ConfigError: It is not, or an older version's; or the URL leads to a pooler in statement mode.
            StoreError: The server cannot be asked.
        """
        self._purged_at = asyncio.get_running_loop().time()
        database = self._database
        try:
            async with database.connected(timeout=CALL_SECONDS, command_timeout=CALL_SECONDS) as connection:
                pooled = await database.is_pooled(connection)
                missing = await missing_migrations(connection, "claims")
            if missing:
                raise ConfigError(f"{self._server} lacks {', '.join(missing)}: run smartpipe store migrate")
            if self._claims is None:
                await self._make_pools(pooled=pooled)
        except FAULTS as error:
            raise self._fault("open", error) from error

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim what is unknown, released, or whose lease has run out. A lease counts from the call's arrival."""
        if not claims:
            return []
        first = {self._key(claim.key): claim for claim in reversed(claims)}
        rows = {row["key"]: row for row in await self._call("claim", CLAIM, *_columns(first.items()))}
        self._purge_now_and_then()
        # Of a key that stands here twice, the second is told what the first has made of it.
        return [_outcome(rows[self._key(claim.key)], claim) for claim in claims]

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Let each lease last ``lease_seconds`` from now."""
        return await self._change("renew", RENEW, claims)

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Say that each effect has happened."""
        return await self._change("complete", COMPLETE, claims)

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Give back what did not succeed."""
        return await self._change("release", RELEASE, claims)

    async def look(self, keys: Sequence[str]) -> list[Known]:
        """Say what is known of each key."""
        stored = [self._key(key) for key in keys]
        rows = await self._call("look", LOOK, stored) if stored else []
        found = {row["key"]: known(row["state"], limit_lease(row["seconds"])) for row in rows}
        return [found.get(key) for key in stored]

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove all memory of these keys."""
        if keys:
            await self._call("forget", FORGET, [self._key(key) for key in keys])

    async def complete_in(self, connection: Any, claim: Claim) -> bool:
        """Complete *claim* within the caller's transaction, with whose commit it becomes true.

        Call it last: until the commit the row stays locked, and renewing or claiming it waits. Under REPEATABLE READ
        or SERIALIZABLE it fails when the lease was renewed since the transaction began.

        Args:
            connection: One of ``acquire``, or any of asyncpg to the same database, in a transaction.

        Returns:
            Whether the token still holds its key: if not, roll back.

        Raises:
            StoreError: The statement failed, and with it the transaction.
        """
        values = (self._key(claim.key), claim.token, str(claim.ttl_seconds))
        try:
            status: str = await connection.execute(COMPLETE_IN, *values, timeout=CALL_SECONDS)
        except FAULTS as error:
            raise self._fault("complete_in", error) from error
        return status == "UPDATE 1"

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """Give a connection of asyncpg; errors of the caller's own statements pass as they are.

        Raises:
            StoreError: None was free or could be made within 30 s.
        """
        pool = self._opened(self._handlers)
        try:
            connection = await pool.acquire(timeout=ACQUIRE_SECONDS)
        except FAULTS as error:
            raise self._fault("acquire", error) from error
        try:
            yield connection
        finally:
            # What was committed is committed: a connection that breaks now is no failure of the caller's.
            with suppress(*FAULTS):
                await pool.release(connection, timeout=CALL_SECONDS)

    async def purge(self, limit: int = PURGE_ROWS) -> int:
        """Delete at most *limit* keys that are remembered no more; return how many it were."""
        return len(await self._call("purge", PURGE, limit))

    async def aclose(self) -> None:
        """Disconnect, and break off what handlers still hold after 5 s. A second call does nothing."""
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.wait([self._purging])
            self._purging = None
        pools, self._claims, self._handlers = (self._claims, self._handlers), None, None
        for pool in pools:
            if pool is not None:
                try:
                    async with asyncio.timeout(CALL_SECONDS):
                        await pool.close()
                except FAULTS:
                    pool.terminate()

    async def _make_pools(self, *, pooled: bool) -> None:
        options = self._database.cache_options(pooled=pooled)
        if pooled:
            log.info(
                "%s is a connection pooler: claims go with statement_cache_size=%d", self._server, *options.values()
            )
            options |= {"connection_class": PooledConnection, "init": _learn_types}
        # Claims leave nothing behind in their session; a reset would cost each call a second round trip. Behind a
        # pooler a reset would reach any server connection, and not the one that was used.
        self._claims = await self._pool(CLAIM_CONNECTIONS, command_timeout=CALL_SECONDS, reset=_keep, **options)
        self._handlers = await self._pool(self._connections, **({"reset": _keep} if pooled else {}), **options)

    async def _pool(self, size: int, **options: Any) -> asyncpg.Pool:
        return await asyncpg.create_pool(self._database.dsn, min_size=0, max_size=size, timeout=CALL_SECONDS, **options)

    async def _change(self, verb: str, statement: str, claims: Sequence[Claim]) -> list[bool]:
        if not claims:
            return []
        keyed = [(self._key(claim.key), claim) for claim in claims]
        changed = {(row["key"], row["token"]) for row in await self._call(verb, statement, *_columns(keyed))}
        return [(key, claim.token) in changed for key, claim in keyed]

    async def _call(self, verb: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        pool = self._opened(self._claims)
        for tries_left in (1, 0):
            try:
                async with pool.acquire(timeout=CALL_SECONDS) as connection:
                    return await connection.fetch(statement, *arguments, timeout=CALL_SECONDS)
            except FAULTS as error:
                # Once more, over a new connection: a token makes every verb one that may be repeated.
                if not (tries_left and isinstance(error, _ENDED)):
                    raise self._fault(verb, error) from error
        raise AssertionError

    def _purge_now_and_then(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._purged_at >= PURGE_SECONDS and (self._purging is None or self._purging.done()):
            self._purged_at = now
            self._purging = asyncio.create_task(self._purge_all())

    async def _purge_all(self) -> None:
        try:
            while await self.purge() == PURGE_ROWS:
                pass
        except StoreError as error:
            log.warning("expired claims were not deleted, and will be tried again: %s", error)

    def _opened(self, pool: asyncpg.Pool | None) -> asyncpg.Pool:
        if pool is None:
            raise StoreError(f"the store at {self._server} is not open")
        return pool

    def _fault(self, verb: str, error: BaseException) -> StoreError:
        return self._database.fault(verb, error)

    def _key(self, key: str) -> str:
        return stored_key(self._prefix, key, max_bytes=MAX_KEY_BYTES)


async def _keep(connection: Any) -> None:
    """Reset nothing."""


async def _learn_types(connection: Any) -> None:
    """Let asyncpg ask for the types of our parameters on one server connection: meanwhile it switches ``jit`` off."""
    async with connection.transaction():
        await connection.fetch("SELECT $1::text[], $2::float8[]", [], [])


def _columns(claims: Iterable[tuple[str, Claim]]) -> tuple[list[str], list[str], list[float], list[float]]:
    """Return keys, tokens, leases and memories, as unnest takes them."""
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
