"""Roles with the permissions that docs/security.md names, and no others."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from smartpipe import StoreError
from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.store import Claim, Claimed, Completed
from smartpipe.idempotency.stores.migrate import migrate
from smartpipe.idempotency.stores.redis import RedisStore
from smartpipe.outbox import Outbox, Relay, RelayOptions
from smartpipe.outbox.statements import CLEAN_UP
from smartpipe.topology.table_and_bucket import TABLE_REDRIVE_ACTIONS, TABLE_USE_ACTIONS
from tests.support.events import ADA
from tests.support.fakes import FakeTransport
from tests.support.proxy import Fault
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smartpipe.idempotency.store import Store
    from tests.support.proxy import FaultProxy

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
ROLES = ("worker", "application", "relay")


@pytest.fixture
async def urls(postgres_url: str) -> AsyncIterator[dict[str, str]]:
    """Create a database with new roles that have the page's grants; yield a URL for each role."""
    name = f"rights_{uuid4().hex[:8]}"
    names = {role: f"{name}_{role}" for role in ROLES}
    owner = await asyncpg.connect(postgres_url)
    await owner.execute(f"CREATE DATABASE {name}")
    url = postgres_url.replace("/postgres?", f"/{name}?")
    await migrate(url)
    database = await asyncpg.connect(url)
    for role in names.values():
        await database.execute(f"CREATE ROLE {role} LOGIN")
    grants = re.findall(r"^GRANT (.*) TO (\w+);$", PAGE, re.MULTILINE)
    assert {role for _, role in grants} == set(ROLES)
    for rights, role in grants:
        await database.execute(f"GRANT {rights} TO {names[role]}")
    yield {role: re.sub(r"//postgres(:[^@]*)?@", f"//{own}@", url) for role, own in names.items()}
    for role in names.values():
        await database.execute(f"DROP OWNED BY {role}")
        await database.execute(f"DROP ROLE {role}")
    await database.close()
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


async def assert_claims(store: Store) -> None:
    claim = Claim("k", "t", 30, 60)
    await store.open()
    assert await store.claim([claim]) == [Claimed(1)]
    assert await store.renew([claim]) == [True]
    assert await store.complete([claim]) == [True]
    assert await store.read(["k"]) == [Completed()]
    await store.forget(["k"])
    assert await store.claim([claim]) == [Claimed(1)]
    assert await store.release([claim]) == [True]
    await store.aclose()


async def test_a_worker_claims_with_its_grants(urls: dict[str, str]) -> None:
    await assert_claims(open_store(urls["worker"]))


async def test_an_application_may_write_to_the_outbox_and_not_read_it(urls: dict[str, str]) -> None:
    connection = await asyncpg.connect(urls["application"])
    async with connection.transaction():
        event_id = await Outbox("shop").publish(ADA, connection=connection)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetch("SELECT * FROM smartpipe_outbox")
    await connection.close()

    transport = FakeTransport()
    relay = Relay(urls["relay"], transport)
    await relay.drain()

    assert [event_id in message.body for message in transport.entries("publish")] == [True]
    cleaner = await asyncpg.connect(urls["relay"])
    assert await cleaner.execute(CLEAN_UP, -1.0, 10) == "DELETE 1"
    await cleaner.close()
    for url in (urls["worker"], urls["relay"]):
        stranger = await asyncpg.connect(url)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await Outbox("shop").publish(ADA, connection=stranger, autocommit=True)
        await stranger.close()


@asynccontextmanager
async def redis_user(redis_url: str, rights: str) -> AsyncIterator[tuple[str, str]]:
    """Create a user with these rights; yield its URL and its name."""
    from redis.asyncio import Redis

    name = f"worker{uuid4().hex[:8]}"
    async with Redis.from_url(redis_url) as owner:
        execute: Any = owner.execute_command
        await execute("ACL", "SETUSER", name, "on", ">s3cr3t", "~smartpipe:*", *rights.split())
        try:
            yield re.sub(r"^(\w+)://", rf"\1://{name}:s3cr3t@", redis_url), name
        finally:
            await owner.acl_deluser(name)


[LEAST_RIGHTS] = re.findall(r"A Redis user needs `~smartpipe:\* ([^`]*)`", PAGE)
[ALSO_ENOUGH] = re.findall(r"`~smartpipe:\* ([^`]*)` works too", PAGE)


@pytest.mark.parametrize("rights", [LEAST_RIGHTS, ALSO_ENOUGH])
async def test_a_redis_user_claims_with_the_permissions_of_the_page(
    redis_url: str, rights: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis_user(redis_url, rights) as (url, name):
        await assert_claims(open_store(url, prefix=name))

    assert caplog.text == ""


@pytest.mark.parametrize("right", LEAST_RIGHTS.split()[1:])
async def test_without_one_permission_of_the_page_a_call_fails_or_a_line_says_what_was_not_checked(
    redis_url: str, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    from redis.asyncio import Redis

    rights = " ".join(one for one in LEAST_RIGHTS.split() if one != right)
    async with Redis.from_url(redis_url) as owner, redis_user(redis_url, rights) as (url, name):
        store = RedisStore(url, prefix=name)
        await owner.script_flush()
        await owner.delete("smartpipe:version")
        old = f"smartpipe:{name}|old"
        await owner.hset(old, "state", "released")
        await owner.set(store._key("other"), "of another type")
        refusal = caplog.text
        try:
            await store.open()
            refusal = caplog.text
            await store.claim([Claim("other", "t", 30, 60)])
            await assert_claims(store)
        except StoreError as error:
            refusal = str(error)
        finally:
            await owner.delete(old)
            await store.aclose()

    words = ("permission", "can't run this command", "EXEC", "does not answer INFO", "was not checked")
    assert any(word in refusal for word in words)


async def test_a_redis_user_without_info_claims_and_a_line_says_what_is_unknown(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis_user(redis_url, "+@all -@dangerous") as (url, name):
        await assert_claims(open_store(url, prefix=name))

    [line] = caplog.messages
    assert "does not answer INFO, so it is unknown whether it may drop claims" in line
    assert "s3cr3t" not in line


@pytest.mark.parametrize("refused", ["-get", "-scan", "-set", "-get -scan -set -info"])
async def test_a_redis_user_without_the_checks_of_the_start_claims(
    redis_url: str, refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    from redis.asyncio import Redis

    async with Redis.from_url(redis_url) as owner:
        await owner.delete("smartpipe:version")
    async with redis_user(redis_url, f"+@all {refused}") as (url, name):
        await assert_claims(open_store(url, prefix=name))

    assert len(caplog.messages) == (2 if "info" in refused else 1)
    assert "was not checked for claims of earlier versions" in caplog.messages[-1]


async def test_a_postgresql_role_that_may_not_read_the_migrations_claims(
    urls: dict[str, str], postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    role = re.findall(r"//([^@:]*)", urls["worker"])[0]
    owner = await asyncpg.connect(
        re.sub(r"//[^@]*@", f"//{re.findall(r'//([^@]*)@', postgres_url)[0]}@", urls["worker"])
    )
    await owner.execute(f"REVOKE SELECT ON smartpipe_migrations FROM {role}")
    await owner.close()

    await assert_claims(open_store(urls["worker"]))

    assert "The version of the tables for claims is not checked" in caplog.text


async def test_a_role_without_describe_table_claims(
    dynamodb_url: str, dynamodb: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    dynamodb.add(Fault("DescribeTable", answer=(400, "AccessDeniedException", "not authorized")))

    await assert_claims(open_store(dynamodb_url))

    assert "is not checked, because these credentials lack dynamodb:DescribeTable" in caplog.text


async def test_a_worker_uses_each_permission_on_its_table_and_a_redrive_its_own(
    dynamodb_url: str, dynamodb: FaultProxy
) -> None:
    store, claim = open_store(dynamodb_url), Claim("k", "t", 30, 60)
    dynamodb.calls.clear()

    await store.open()
    for call in (store.claim, store.renew, store.release, store.claim, store.complete):
        await call([claim])
    assert {f"dynamodb:{name}" for name in dynamodb.operations()} == set(TABLE_USE_ACTIONS)

    dynamodb.calls.clear()
    await store.open()
    await store.read(["k"])
    await store.forget(["k"])
    assert {f"dynamodb:{name}" for name in dynamodb.operations()} == set(TABLE_REDRIVE_ACTIONS)
    await store.aclose()


@pytest.mark.parametrize("right", ["SELECT ON smartpipe_migrations", "DELETE ON smartpipe_outbox"])
async def test_a_relay_without_an_optional_grant_publishes_and_says_so_once(
    urls: dict[str, str], right: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.outbox.relay.CLEAN_UP_EVERY_SECONDS", 0)
    owner = await asyncpg.connect(re.sub(r"//[^@]*@", "//postgres@", urls["relay"]))
    await owner.execute(f"REVOKE {right} FROM {re.findall(r'//([^@:]*)', urls['relay'])[0]}")
    async with owner.transaction():
        await Outbox("shop").publish(ADA, connection=owner)
    transport = FakeTransport()
    relay = Relay(urls["relay"], transport, RelayOptions(poll_seconds=0.1))

    running = asyncio.create_task(relay.run())
    await until(lambda: transport.entries("publish"))
    async with owner.transaction():
        await Outbox("shop").publish(ADA, connection=owner)
    await until(lambda: len(transport.entries("publish")) == 2)
    relay.stop()
    await running
    await owner.close()

    assert len([line for line in caplog.messages if "permission denied" in line]) == 1
