"""``smartpipe store``: creates the tables for idempotent handlers and for the outbox."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import typer

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.open_store import is_store_url
from smartpipe.settings import StoreSettings
from smartpipe.urls import is_postgres, scheme_of
from smartpipe.version import __version__

if TYPE_CHECKING:
    from smartpipe.idempotency.stores.database import DatabaseUrl

CLAIMS = "SMARTPIPE_IDEMPOTENCY_URL"
OUTBOX = "SMARTPIPE_OUTBOX_URL"


def run_migrate(*, as_json: bool, forget_old_claims: bool = False) -> None:
    """Run the migrations that each PostgreSQL database in the settings lacks, and print their names.

    If two URLs lead to one database, it is migrated for the first, and there is nothing to do for the second.

    Args:
        forget_old_claims: Delete the claims of earlier versions, which this version cannot use.

    Raises:
        ConfigError: No setting leads to a PostgreSQL database, or a setting cannot be read.
        StoreError: A database is unreachable or refuses. The others were migrated.
    """
    databases = _databases(StoreSettings.load())
    from smartpipe.idempotency.stores.migrate import migrate  # if asyncpg is missing, _databases has raised

    done: dict[str, list[str]] = {}
    failures: list[str] = []
    for database, (setting, url) in databases.items():
        try:
            names = asyncio.run(migrate(url, setting, forget_old_claims=forget_old_claims))
            done.setdefault(database.server, []).extend(names)
        except StoreError as error:
            failures.append(str(error))
    _report(done, as_json=as_json)
    if failures:
        raise StoreError("\n".join(failures))


def print_sql(*, as_json: bool, forget_old_claims: bool = False) -> None:
    """Print the SQL of all migrations, for a database administrator or another migration tool.

    It needs no database and no setting. Run the SQL in one transaction. If you run it again, it changes only what is
    missing.

    Args:
        forget_old_claims: Include the statement that permits the deletion of claims of earlier versions.

    Raises:
        ConfigError: *as_json* is set, because SQL is not JSON.
    """
    if as_json:
        raise ConfigError("--sql prints SQL: remove --json")
    try:
        from smartpipe.idempotency.stores.migrate import read_migrations
    except ModuleNotFoundError as error:
        raise _missing_package(error) from None
    lines = [
        f"-- The tables of smartpipe {__version__}. Run all of this in one transaction:",
        "--   psql --single-transaction -v ON_ERROR_STOP=1 -f FILE",
    ]
    if forget_old_claims:
        lines.append("SELECT set_config('smartpipe.forget_old_claims', 'yes', true);")
    for name, sql in read_migrations().items():
        lines += ["", f"-- {name}.sql", sql.strip()]
    typer.echo("\n".join(lines))


def _databases(settings: StoreSettings) -> dict[DatabaseUrl, tuple[str, str]]:
    """Return each distinct PostgreSQL database, with the first setting that leads to it and the URL in the setting."""
    databases: dict[DatabaseUrl, tuple[str, str]] = {}
    errors: list[str] = []
    other = ""
    for setting, secret in ((CLAIMS, settings.idempotency_url), (OUTBOX, settings.outbox_url)):
        url = secret.get_secret_value().strip() if secret else ""
        if is_postgres(url):
            try:
                databases.setdefault(_parse(url, setting), (setting, url))
            except ConfigError as error:
                errors += error.problems
        elif url:
            other = f"only PostgreSQL has tables to migrate, but {setting} leads to {scheme_of(url) or '...'}://"
            if setting == OUTBOX or not is_store_url(url):  # not an idempotency store either
                errors.append(other)
    if not databases and not errors:
        reason = other or "no database is set"
        errors = [f"{reason}: set {CLAIMS} or {OUTBOX}, as in postgresql://user:password@host/name"]
    if errors:
        raise ConfigError(errors)
    return databases


def _parse(url: str, setting: str) -> DatabaseUrl:
    try:
        from smartpipe.idempotency.stores.database import DatabaseUrl
    except ModuleNotFoundError as error:
        raise _missing_package(error) from None
    return DatabaseUrl.parse(url, setting)


def _missing_package(error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(f"PostgreSQL needs the package {error.name}; run pip install 'smartpipe[postgres]'")


def _report(done: dict[str, list[str]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(done))
        return
    for server, names in done.items():
        for name in names:
            typer.echo(f"  {name}")
        count = f"{len(names)} migration{'' if len(names) == 1 else 's'} run" if names else "nothing to migrate"
        typer.echo(f"{count} at {server}")
