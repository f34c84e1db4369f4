"""Alembic beside smartpipe, on a real PostgreSQL."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Integer, MetaData, Table, create_engine

from smartpipe.idempotency.stores.migrate import read_migrations
from smartpipe.outbox import include_object
from smartpipe.outbox.alembic import TABLES
from tests.support.processes import smartpipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    """A schema without any table."""
    schema = f"alembic_{uuid4().hex}"
    with connect(postgres_url) as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    yield f"{postgres_url}{'&' if '?' in postgres_url else '?'}options=-csearch_path%3D{schema}"
    with connect(postgres_url) as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")


@contextmanager
def connect(url: str) -> Iterator[Connection]:
    engine = create_engine(re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def migrate_with_sql(connection: Connection) -> None:
    """Run the migrations as a revision of Alembic does, with the output of the command."""
    printed = smartpipe("store", "migrate", "--sql")
    assert (printed.returncode, printed.stderr) == (0, "")
    Operations(MigrationContext.configure(connection)).execute(printed.stdout)


def find_changes(connection: Connection, **options: Any) -> list[Any]:
    """Return the changes that autogenerate proposes for an application with one table."""
    models = MetaData()
    Table("orders", models, Column("id", Integer, primary_key=True))
    changes: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), models)
    return changes


def test_autogenerate_leaves_the_tables_of_smartpipe_alone(url: str) -> None:
    with connect(url) as connection:
        migrate_with_sql(connection)
        connection.exec_driver_sql("CREATE TABLE smartpipe_like (id integer)")
        unaware = find_changes(connection)
        changes = find_changes(connection, include_object=include_object)

    dropped = {table.name for name, table in ((one[0], one[1]) for one in unaware) if name == "remove_table"}
    assert dropped == {*TABLES, "smartpipe_like"}
    assert sorted((name, table.name) for name, table in changes) == [
        ("add_table", "orders"),
        ("remove_table", "smartpipe_like"),
    ]


def test_the_printed_sql_can_be_run_again_and_leaves_nothing_to_migrate(url: str) -> None:
    with connect(url) as connection:
        migrate_with_sql(connection)
        migrate_with_sql(connection)

    result = smartpipe("store", "migrate", SMARTPIPE_OUTBOX_URL=url, SMARTPIPE_IDEMPOTENCY_URL="")

    assert result.returncode == 0, result.stderr
    assert "nothing to migrate" in result.stdout


def test_the_hook_knows_every_table_that_a_migration_creates() -> None:
    created = {
        name for sql in read_migrations().values() for name in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", sql)
    }

    assert created == TABLES


def test_the_printed_sql_can_permit_the_deletion_of_old_claims() -> None:
    plain, permitting = (
        smartpipe("store", "migrate", "--sql", *flags).stdout for flags in ((), ("--forget-old-claims",))
    )
    as_json = smartpipe("store", "migrate", "--sql", "--json")

    statement = "SELECT set_config('smartpipe.forget_old_claims', 'yes', true);"
    assert statement not in plain.split("-- 0001")[0]
    assert statement in permitting.split("-- 0001")[0]
    assert as_json.returncode == 2
