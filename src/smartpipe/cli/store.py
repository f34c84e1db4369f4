"""``smartpipe store``: the tables that idempotent handlers need."""

from __future__ import annotations

import asyncio
import json

import typer

from smartpipe.errors import ConfigError
from smartpipe.settings import WorkerSettings


def run_migrate(*, as_json: bool, forget_old_claims: bool = False) -> None:
    """Run the migrations that the database of ``SMARTPIPE_IDEMPOTENCY_URL`` (or ``_OUTBOX_URL``) lacks; say which.

    Raises:
        ConfigError: The setting is missing, or leads to no PostgreSQL.
        StoreError: The database cannot be reached, or refuses.
    """
    settings = WorkerSettings.load()
    url = settings.idempotency_url or settings.outbox_url
    if url is None:
        msg = (
            "which database? Set SMARTPIPE_IDEMPOTENCY_URL or SMARTPIPE_OUTBOX_URL, as in "
            "postgresql://user:password@host/name"
        )
        raise ConfigError(msg)
    scheme = url.get_secret_value().partition("://")[0].lower()
    if scheme not in {"postgresql", "postgres"}:
        raise ConfigError(f"only PostgreSQL has tables to migrate, and SMARTPIPE_IDEMPOTENCY_URL leads to {scheme}://")
    try:
        from smartpipe.effects.stores.migrate import migrate
    except ModuleNotFoundError as error:
        msg = f"PostgreSQL needs the package {error.name}; run pip install 'smartpipe[postgres]'"
        raise ConfigError(msg) from None
    names = asyncio.run(migrate(url.get_secret_value(), forget_old_claims=forget_old_claims))
    if as_json:
        typer.echo(json.dumps(names))
    elif names:
        for name in names:
            typer.echo(f"  {name}")
        typer.echo(f"{len(names)} migration{'' if len(names) == 1 else 's'} run")
    else:
        typer.echo("nothing to migrate")
