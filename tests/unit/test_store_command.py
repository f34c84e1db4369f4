"""The command `smartpipe store migrate`: the databases that it migrates, and its output. No database is asked."""

from __future__ import annotations

import builtins
import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.cli.store import print_sql, run_migrate
from smartpipe.errors import StoreError
from smartpipe.idempotency.stores.migrate import read_migrations
from smartpipe.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., list[tuple[str, str, bool]]]

CLAIMS, OUTBOX = "SMARTPIPE_IDEMPOTENCY_URL", "SMARTPIPE_OUTBOX_URL"
ONE, TWO = "postgresql://ada:secret@one/shop", "postgresql://ada:secret@two/shop"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that migrates the given URLs; it returns the calls of the migration."""

    def run(claims: str | None, outbox: str | None, results: Any = (["0001"],), **options: Any) -> Any:
        calls: list[Any] = []
        left = list(results)
        for name, url in ((CLAIMS, claims), (OUTBOX, outbox)):
            if url is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, url)

        async def migrate(url: str, setting: str, *, forget_old_claims: bool) -> list[str]:
            calls.append((url, setting, forget_old_claims))
            result = left.pop(0)
            if isinstance(result, Exception):
                raise result
            return list(result)

        monkeypatch.setattr("smartpipe.idempotency.stores.migrate.migrate", migrate)
        run_migrate(**{"as_json": False, **options})
        return calls

    return run


@pytest.mark.parametrize(
    ("claims", "outbox", "migrated"),
    [
        (ONE, None, [(ONE, CLAIMS)]),
        (None, TWO, [(TWO, OUTBOX)]),
        (ONE, TWO, [(ONE, CLAIMS), (TWO, OUTBOX)]),
        (ONE, ONE, [(ONE, CLAIMS)]),
        ("redis://cache", TWO, [(TWO, OUTBOX)]),
        ("memory://", TWO, [(TWO, OUTBOX)]),
    ],
)
def test_each_database_of_the_settings_is_migrated_once(
    run: Run, claims: str | None, outbox: str | None, migrated: list[tuple[str, str]]
) -> None:
    assert run(claims, outbox, ([], [])) == [(*one, False) for one in migrated]


def test_old_claims_are_deleted_on_request(run: Run) -> None:
    assert run(ONE, None, forget_old_claims=True) == [(ONE, CLAIMS, True)]


@pytest.mark.parametrize(
    ("results", "out"),
    [
        (([], ["0001", "0002"]), "nothing to migrate at {one}\n  0001\n  0002\n2 migrations run at {two}\n"),
        ((["0001"], []), "  0001\n1 migration run at {one}\nnothing to migrate at {two}\n"),
    ],
)
def test_the_migrations_of_each_database_are_listed(
    run: Run, results: Any, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(ONE, TWO, results)

    one, two = "postgresql://one/shop", "postgresql://two/shop"
    assert capsys.readouterr().out == out.format(one=one, two=two)


def test_as_json_each_database_has_a_list_of_migrations(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run(ONE, TWO, (["0001"], []), as_json=True)

    assert json.loads(capsys.readouterr().out) == {"postgresql://one/shop": ["0001"], "postgresql://two/shop": []}


def test_two_databases_on_one_server_are_listed_together(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    calls = run(ONE, f"{ONE}?statement_cache_size=0", (["0001"], ["0002"]), as_json=True)

    assert len(calls) == 2
    assert list(json.loads(capsys.readouterr().out).values()) == [["0001", "0002"]]


def test_after_a_failure_the_other_database_is_migrated_too(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoreError) as raised:
        run(ONE, TWO, (StoreError("one is down"), ["0001"]))
    assert str(raised.value) == "one is down"
    assert capsys.readouterr().out == "  0001\n1 migration run at postgresql://two/shop\n"

    with pytest.raises(StoreError) as raised:
        run(ONE, TWO, (StoreError("one is down"), StoreError("two is down")))
    assert str(raised.value) == "one is down\ntwo is down"
    assert capsys.readouterr().out == ""


HOW = f"set {CLAIMS} or {OUTBOX}, as in postgresql://user:password@host/name"
ONLY = "only PostgreSQL has tables to migrate, but"


@pytest.mark.parametrize(
    ("claims", "outbox", "errors"),
    [
        (None, None, [f"no database is set: {HOW}"]),
        ("", "", [f"no database is set: {HOW}"]),
        ("redis://ada:secret@cache", None, [f"{ONLY} {CLAIMS} leads to redis://: {HOW}"]),
        ("memory://", None, [f"{ONLY} {CLAIMS} leads to memory://: {HOW}"]),
        ("mysql://ada:secret@one", None, [f"{ONLY} {CLAIMS} leads to mysql://"]),
        ("secret", None, [f"{ONLY} {CLAIMS} leads to ...://"]),
        (ONE, "redis://cache", [f"{ONLY} {OUTBOX} leads to redis://"]),
        (
            f"{ONE}?statement_cache_size=x",
            f"{TWO}?statement_cache_size=y",
            [
                f"{CLAIMS}: statement_cache_size must be a number, 0 behind a connection pooler",
                f"{OUTBOX}: statement_cache_size must be a number, 0 behind a connection pooler",
            ],
        ),
    ],
)
def test_settings_without_a_database_to_migrate_are_an_error(
    run: Run, claims: str | None, outbox: str | None, errors: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        run(claims, outbox, ())

    assert list(raised.value.problems) == errors


@pytest.mark.parametrize("forget", [False, True])
def test_the_sql_of_all_migrations_is_printed_for_one_transaction(
    forget: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    print_sql(as_json=False, forget_old_claims=forget)

    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first == f"-- The tables of smartpipe {__version__}. Run all of this in one transaction:"
    assert second == "--   psql --single-transaction -v ON_ERROR_STOP=1 -f FILE"
    expected = ["SELECT set_config('smartpipe.forget_old_claims', 'yes', true);"] if forget else []
    for name, sql in read_migrations().items():
        expected += ["", f"-- {name}.sql", *sql.strip().splitlines()]
    assert lines == expected


def test_sql_is_not_json() -> None:
    with pytest.raises(ConfigError, match="--sql prints SQL: remove --json"):
        print_sql(as_json=True)


@pytest.mark.parametrize("function", [lambda: run_migrate(as_json=False), lambda: print_sql(as_json=False)])
def test_without_its_package_postgresql_cannot_be_migrated(
    function: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.startswith("smartpipe.idempotency.stores."):
            raise ModuleNotFoundError(name="asyncpg")
        return import_module(name, *arguments)

    monkeypatch.setenv(CLAIMS, ONE)
    monkeypatch.setattr(builtins, "__import__", refuse)

    with pytest.raises(ConfigError, match=r"PostgreSQL needs the package asyncpg; run pip install 'smartpipe\[postg"):
        function()
