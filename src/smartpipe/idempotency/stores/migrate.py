"""Creates the tables in PostgreSQL. Migrations are SQL files, and each is run once."""

from __future__ import annotations

import logging
from importlib.resources import files
from typing import TYPE_CHECKING

from asyncpg import InsufficientPrivilegeError

from smartpipe.idempotency.stores.database import DATABASE_ERRORS, DatabaseUrl

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg

log = logging.getLogger("smartpipe.stores")

CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 300.0
"""Allows for a migration that waits for another one, or for a table that is in use."""


def read_migrations() -> dict[str, str]:
    """Return the SQL of every migration by its name, in the order in which they run."""
    found = (files("smartpipe.idempotency.stores") / "migrations").iterdir()
    return {file.name.removesuffix(".sql"): file.read_text() for file in sorted(found, key=lambda file: file.name)}


async def migrate(
    url: str, setting: str = "SMARTPIPE_IDEMPOTENCY_URL", *, forget_old_claims: bool = False
) -> list[str]:
    """Run the migrations that this database lacks, in one transaction, and return their names.

    It can be called repeatedly, and by several processes concurrently: one runs the migrations, and the others wait and
    find nothing to do.

    Args:
        setting: The setting that contains *url*, for error messages.
        forget_old_claims: Delete the claims of earlier versions, which this version cannot use. Without it, the
            migration fails while there are such claims, because without them handlers could run again.

    Raises:
        ConfigError: The URL cannot be read, or leads to a pooler in statement mode.
        StoreError: The database is unreachable or refuses, for example because the user may not create tables.
    """
    database = DatabaseUrl.parse(url, setting)
    try:
        async with database.connect(timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS) as connection:
            await database.is_pooled(connection)  # raises in statement mode
            async with connection.transaction():
                if forget_old_claims:
                    await connection.execute("SELECT set_config('smartpipe.forget_old_claims', 'yes', true)")
                return await _migrate(connection)
    except DATABASE_ERRORS as error:
        raise database.store_error("migrate", error) from error


async def _migrate(connection: asyncpg.Connection) -> list[str]:
    migrations = read_migrations()
    # The first migration takes this lock too, so only one process at a time runs migrations.
    lock = next(iter(migrations.values())).partition("pg_advisory_xact_lock(")[2].partition(")")[0]
    await connection.execute(f"SELECT pg_advisory_xact_lock({lock})")
    missing = await missing_migrations(connection)
    for name in missing:
        await connection.execute(migrations[name])
    return missing


async def missing_migrations(connection: asyncpg.Connection | asyncpg.Pool, topic: str = "") -> list[str]:
    """Return the names of the migrations that this database lacks; with a *topic*, such as ``claims``, only its own.

    The database may have others: a later version migrates before its processes start, while older ones still run. With
    a topic, none are missing if the role may not read their list: a process that uses the tables needs only those.
    """
    if await connection.fetchval("SELECT to_regclass('smartpipe_migrations')") is None:
        return _select(read_migrations(), topic)
    try:
        done = {row["name"] for row in await connection.fetch("SELECT name FROM smartpipe_migrations")}
    except InsufficientPrivilegeError as error:
        if not topic:
            raise
        log.warning("The version of the tables for %s is not checked: %s", topic, error)
        return []
    return _select([name for name in read_migrations() if name not in done], topic)


def _select(names: Iterable[str], topic: str) -> list[str]:
    return [name for name in names if name.endswith(topic)]
