"""The tables of the PostgreSQL store: plain SQL files, each run once."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from smartpipe.idempotency.stores.database import FAULTS, DatabaseUrl

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg

CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 300.0
"""For a migration that waits for another, or for a table that is in use."""


def migrations() -> dict[str, str]:
    """Return the SQL of every migration by its name, in their order."""
    found = (files("smartpipe.idempotency.stores") / "migrations").iterdir()
    return {file.name.removesuffix(".sql"): file.read_text() for file in sorted(found, key=lambda file: file.name)}


async def migrate(
    url: str, setting: str = "SMARTPIPE_IDEMPOTENCY_URL", *, forget_old_claims: bool = False
) -> list[str]:
    """Run the migrations that this database lacks, in one transaction; return their names.

    It may be called again, and by several at once: one runs them, the others wait and find nothing to do.

    Args:
        setting: Where *url* comes from, for errors.
        forget_old_claims: Delete the claims of earlier versions that this one cannot use. Without it, the migration
            fails while there are some, because their effects may then happen again.

    Raises:
        ConfigError: A URL that cannot be read, or that leads to a pooler in statement mode.
        StoreError: The database cannot be reached, or refuses, for instance for want of the right to create tables.
    """
    database = DatabaseUrl.read(url, setting)
    try:
        async with database.connected(timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS) as connection:
            await database.is_pooled(connection)  # in statement mode it raises
            async with connection.transaction():
                if forget_old_claims:
                    await connection.execute("SELECT set_config('smartpipe.forget_old_claims', 'yes', true)")
                return await _migrate(connection)
    except FAULTS as error:
        raise database.fault("migrate", error) from error


async def _migrate(connection: asyncpg.Connection) -> list[str]:
    wanted = migrations()
    lock = next(iter(wanted.values())).partition("pg_advisory_xact_lock(")[2].partition(")")[0]
    await connection.execute(f"SELECT pg_advisory_xact_lock({lock})")
    missing = await missing_migrations(connection)
    for name in missing:
        await connection.execute(wanted[name])
    return missing


async def missing_migrations(connection: asyncpg.Connection | asyncpg.Pool, topic: str = "") -> list[str]:
    """Return the names of the migrations that this database lacks, or of those of one *topic*, as in ``claims``.

    It may have more: those of a later version, which migrates before its processes start, beside ones that still run.
    """
    if await connection.fetchval("SELECT to_regclass('smartpipe_migrations')") is None:
        return _named(migrations(), topic)
    there = {row["name"] for row in await connection.fetch("SELECT name FROM smartpipe_migrations")}
    return _named([name for name in migrations() if name not in there], topic)


def _named(names: Iterable[str], topic: str) -> list[str]:
    return [name for name in names if name.endswith(topic)]
