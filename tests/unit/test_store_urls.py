"""Which store a URL leads to, what a wrong one is told, and what is never told."""

from __future__ import annotations

import sys

import pytest

from smartpipe.errors import ConfigError
from smartpipe.idempotency.open_store import is_store_url, open_store
from smartpipe.idempotency.stores.dynamodb import DynamoStore
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.idempotency.stores.postgres import PostgresStore
from smartpipe.idempotency.stores.records import stored_key
from smartpipe.idempotency.stores.redis import RedisStore
from smartpipe.urls import describe_url

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", MemoryStore),
        ("redis://localhost", RedisStore),
        ("redis://ada:pa%40ss@cache.internal:6379/3", RedisStore),
        ("rediss://:secret@cache.internal", RedisStore),
        ("rediss://cache.internal:6380/2?ssl_cert_reqs=none&socket_keepalive=yes&health_check_interval=30", RedisStore),
        ("valkey://ada:pa%40ss@cache.internal:6379/3", RedisStore),
        ("valkeys://cache.internal", RedisStore),
        ("postgresql+asyncpg://ada:pa%2Fss@db.internal:5432/claims?ssl=require", PostgresStore),
        ("postgres+psycopg://db.internal/claims", PostgresStore),
        (
            "postgresql://ada:x@one.internal:5432,two.internal:5433/claims?target_session_attrs=read-write",
            PostgresStore,
        ),
        ("postgresql://ada:x@[::1]:5432/claims", PostgresStore),
        ("postgresql://ada:x@[fe80::1%25eth0]:5432/claims", PostgresStore),
        ("postgresql://ada:x@%2Frun%2Fpostgresql/claims", PostgresStore),
        ("unix:///run/redis.sock?db=1", RedisStore),
        ("postgresql://ada:pa%2Fss@db.internal:5432/claims?sslmode=require", PostgresStore),
        ("postgres://db.internal/claims", PostgresStore),
        ("postgresql://ada@/claims?host=/run/postgresql", PostgresStore),
        ("dynamodb://Claims_of-staging.1", DynamoStore),
        ("REDIS://localhost", RedisStore),
        (" dynamodb://claims\n", DynamoStore),
        ("postgresql://db.internal/claims\n", PostgresStore),
    ],
)
def test_a_url_leads_to_its_store(url: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")

    assert isinstance(open_store(url), kind)


def test_an_option_of_the_url_cannot_change_the_form_of_answers() -> None:
    store = open_store("rediss://cache?decode_responses=true&ssl_cert_reqs=none")

    assert isinstance(store, RedisStore)
    assert store._redis.connection_pool.connection_kwargs["decode_responses"] is False


def test_a_dynamodb_url_keeps_the_case_of_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")

    store = open_store("dynamodb://Claims")

    assert isinstance(store, DynamoStore)
    assert store.table == "Claims"


@pytest.mark.parametrize("url", ["mysql://db/claims", "localhost:6379", "", "://", f"{SECRET}", f"x{SECRET}@host://"])
def test_an_unknown_scheme_is_told_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigError, match="is not one of memory://, redis://") as caught:
        open_store(url)

    assert f"{SECRET}@" not in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "url",
    [
        f"redis://ada:{SECRET}/x@cache",
        f"redis://ada:1?{SECRET}@cache",
        f"redis://:1/{SECRET}@cache",
        f"redis://ada:{SECRET}@x@cache",
        f"redis://cache:{SECRET}",
        f"redis://ada:[{SECRET}@cache",
        f"postgresql://ada:{SECRET}/x@db/claims",
        f"postgresql://ada:{SECRET}#x@db/claims",
        f"postgresql://ada:x@db:{SECRET}/claims",
        f"dynamodb://table/{SECRET}",
        "dynamodb://",
        "redis://cache?socket_timeout=soon",
        f"redis://cache?passwrd={SECRET}",
        f"redis://cache/{SECRET}",
        f"valkey://ada:{SECRET}/x@cache",
        f"valkeys://cache:{SECRET}",
        f"postgresql+asyncpg://ada:{SECRET}?x@db/claims",
        f"postgresql://ada:{SECRET}@x@db/claims",
        f"postgresql://{SECRET}[x@db/claims",
        f"postgresql://db1,db2:{SECRET}/claims",
        f"rediss://cache?ssl_cert_reqs={SECRET}",
        f"rediss://cache?ssl_ca_certs=/{SECRET}",
        f"valkeys://cache?ssl_certfile=/{SECRET}&ssl_keyfile=/{SECRET}",
        f"redis://cache?protocol=9&username={SECRET}",
        "redis://cache?ssl_cert_reqs=none",
        "valkey://cache?ssl_ca_certs=/etc/hosts",
    ],
)
def test_a_url_that_cannot_be_read_is_told_without_any_part_of_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")

    with pytest.raises(ConfigError, match="cannot be read") as caught:
        open_store(url)

    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("redis://cache", "redis", "redis"),
        ("rediss://cache", "redis", "redis"),
        ("postgres://db", "asyncpg", "postgres"),
    ],
)
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if name.partition(".")[0] == package or "smartpipe.idempotency.stores." in name
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without(package), *sys.meta_path])

    with pytest.raises(ConfigError) as caught:
        open_store(url)

    assert f"pip install 'smartpipe[{extra}]'" in str(caught.value)


class _Without:
    """An importer that has not got a package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_no_region_is_told_as_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")

    with pytest.raises(ConfigError, match="no AWS region"):
        open_store("dynamodb://claims")


@pytest.mark.parametrize(
    "url",
    [
        f"{SECRET}",
        f"ada:{SECRET}@db",
        f"ada:{SECRET}@db://x",
        f"postgresql://ada:{SECRET}/x@db/claims",
        f"postgresql://ada:x/{SECRET}@db/claims",
        f"postgresql://ada:x@{SECRET}@db/claims",
        f"postgresql://ada:{SECRET}",
        f"postgresql://ada:{SECRET}/x",
        f"postgresql://db/claims?password={SECRET}",
        f"postgresql://db/claims?password=x@{SECRET}",
        f"postgresql://db/claims#{SECRET}",
        f"redis://:{SECRET}@",
        f"redis://[{SECRET}@db",
    ],
)
def test_nothing_of_a_password_is_shown_where_it_cannot_be_told_from_the_rest(url: str) -> None:
    assert SECRET not in describe_url(url)


def test_what_is_shown_of_a_url_is_its_server() -> None:
    assert describe_url(f"postgresql://ada:{SECRET}@db:5432/claims?password={SECRET}") == "postgresql://db:5432/claims"
    assert describe_url(f"unix://ada@/run/redis.sock?password={SECRET}") == "unix:///run/redis.sock"


def test_a_key_is_stored_under_its_prefix_or_as_its_digest() -> None:
    assert stored_key("staging-", "order-1", max_bytes=100) == "staging-/order-1"
    for key in ("with\0nul", "x" * 200, "\ud83e"):
        stored = stored_key("staging-", key, max_bytes=100)
        assert stored.startswith("staging-=")
        assert len(stored.encode()) <= 100
    assert stored_key("", "a\0", max_bytes=99) != stored_key("", "b\0", max_bytes=99)


@pytest.mark.parametrize(("url", "known"), [
    ("memory://", True), ("redis://x", True), ("valkeys://x", True), ("unix:///x", True), ("postgres+x://y", True),
    ("dynamodb://t", True), ("mysql://x", False), ("memory", False), ("", False),
])  # fmt: skip
def test_a_store_is_known_by_its_scheme(url: str, known: bool) -> None:
    assert is_store_url(url) is known
