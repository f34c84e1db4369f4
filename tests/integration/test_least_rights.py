"""Roles with the permissions that docs/security.md names, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.store import Claim, Claimed, Completed
from smartpipe.idempotency.stores.migrate import migrate
from smartpipe.outbox import Outbox, Relay
from smartpipe.outbox.statements import CLEAN_UP
from tests.support.events import ADA
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smartpipe.idempotency.store import Store

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


async def test_a_redis_user_claims_with_the_permissions_of_the_page(redis_url: str) -> None:
    from redis.asyncio import Redis

    [rights] = re.findall(r"A Redis user needs `~smartpipe:\* ([^`]*)`", PAGE)
    categories = [right for right in rights.split() if "@" in right]
    commands = [right for right in rights.split() if "@" not in right]
    user = f"worker{uuid4().hex[:8]}"
    async with Redis.from_url(redis_url) as owner:
        await owner.acl_setuser(
            user, enabled=True, passwords=["+s3cr3t"], keys=["smartpipe:*"], categories=categories, commands=commands
        )
        try:
            url = re.sub(r"^(\w+)://", rf"\1://{user}:s3cr3t@", redis_url)
            await assert_claims(open_store(url, prefix=user))
        finally:
            await owner.acl_deluser(user)
