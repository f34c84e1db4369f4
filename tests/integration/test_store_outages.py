"""Stores whose servers are down, hang, restart or refuse."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.store import Claimed, Completed
from smartpipe.idempotency.stores import dynamodb as dynamodb_store
from smartpipe.idempotency.stores import postgres, redis
from smartpipe.idempotency.stores.migrate import migrate
from tests.support.places import Place, claim_of
from tests.support.proxy import Fault
from tests.support.servers import PostgresServer, RedisServer, Server
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from smartpipe.idempotency.store import Store
    from tests.support.proxy import FaultProxy

BOUND_SECONDS = 40.0
"""Far above every timeout of the stores, and below the test's own."""


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that runs again when the test ends."""
    found: Server = request.getfixturevalue(f"{request.param}_server")
    if request.param == "postgres":
        request.getfixturevalue("postgres_url")
    yield found
    found.stop()
    found.start()


@pytest.fixture
async def store(server: Server) -> AsyncIterator[Store]:
    place = Place(server.url)
    yield await place.open()
    await place.aclose()


async def _all_verbs_fail(store: Store) -> None:
    claim = claim_of("order-1")
    for call in (store.claim([claim]), store.renew([claim]), store.complete([claim]), store.release([claim])):
        async with asyncio.timeout(BOUND_SECONDS):
            with pytest.raises(StoreError):
                await call
    async with asyncio.timeout(BOUND_SECONDS):
        with pytest.raises(StoreError):
            await store.forget(["order-1"])


async def test_a_store_whose_server_is_down_says_so_and_works_again_when_it_is_up(server: Server, store: Store) -> None:
    held, completed = claim_of("held"), claim_of("completed")
    await store.claim([held, completed])
    await store.complete([completed])
    server.stop()

    await _all_verbs_fail(store)

    server.start()
    assert await store.claim([claim_of("order-1")]) == [Claimed(1)]
    if isinstance(server, PostgresServer):
        assert await store.complete([held]) == [True]
        assert await store.claim([claim_of("completed")]) == [Completed()]


async def test_a_restart_between_two_calls_is_not_noticed(server: Server, store: Store) -> None:
    await asyncio.gather(*(store.claim([claim_of(f"before-{n}")]) for n in range(8)))

    server.stop()
    server.start()

    assert await asyncio.gather(*(store.claim([claim_of(f"after-{n}")]) for n in range(8))) == [[Claimed(1)]] * 8


async def test_a_server_that_hangs_is_given_up_in_bounded_time(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.claim([claim_of("before")])
    server.freeze()

    with monkeypatch.context() as patch:
        patch.setattr(redis, "CALL_SECONDS", 0.5)
        patch.setattr(postgres, "CALL_SECONDS", 0.5)
        await _all_verbs_fail(store)
        outcomes = await asyncio.wait_for(
            asyncio.gather(*(store.claim([claim_of(f"during-{n}")]) for n in range(30)), return_exceptions=True),
            BOUND_SECONDS,
        )
    server.thaw()

    assert {type(outcome) for outcome in outcomes} == {StoreError}
    assert await store.claim([claim_of("after")]) == [Claimed(1)]


async def test_a_server_that_is_down_at_the_start_may_be_tried_again(server: Server) -> None:
    server.stop()
    place = Place(server.url)
    with pytest.raises(StoreError):
        await asyncio.wait_for(place.open(), BOUND_SECONDS)
    [store] = place.stores
    server.start()

    await store.open()

    assert await store.claim([claim_of("order-1")]) == [Claimed(1)]
    await place.aclose()


@pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:9", "postgresql://ada:s3cret@127.0.0.1:9/claims"])
async def test_where_nobody_listens_the_error_names_the_server_and_not_the_password(url: str) -> None:
    store = open_store(url)

    with pytest.raises(StoreError, match="127.0.0.1:9") as caught:
        await asyncio.wait_for(store.open(), BOUND_SECONDS)
    await store.aclose()

    assert "s3cret" not in str(caught.value)


async def test_a_store_that_is_not_open_says_so(postgres_url: str, dynamodb_url: str) -> None:
    for url in (postgres_url, dynamodb_url):
        with pytest.raises(StoreError, match="is not open"):
            await open_store(url).claim([claim_of("order-1")])


async def test_dynamodb_throttles_are_errors_of_the_store(dynamodb: FaultProxy, dynamodb_url: str) -> None:
    place = Place(dynamodb_url)
    store = await place.open()
    dynamodb.add(Fault("UpdateItem", skip=1, times=1, answer=(400, "ThrottlingException", "slow down")))
    claims = [claim_of(f"order-{n}") for n in range(3)]

    with pytest.raises(StoreError, match="ThrottlingException"):
        await store.claim(claims)

    # Two of the three were claimed; who repeats the same claims holds all.
    assert await store.claim(claims) == [Claimed(1)] * 3
    await place.aclose()


async def test_a_refused_claim_takes_one_call_of_dynamodb(dynamodb: FaultProxy, dynamodb_url: str) -> None:
    place = Place(dynamodb_url)
    store = await place.open()
    completed = claim_of("order-1")
    await store.claim([completed])
    await store.complete([completed])
    dynamodb.calls.clear()

    await store.claim([claim_of("order-1")])

    assert dynamodb.operations() == ["UpdateItem"]
    await place.aclose()


async def test_a_batch_is_many_calls_of_dynamodb_but_not_too_many_at_once(
    dynamodb: FaultProxy, dynamodb_url: str
) -> None:
    place = Place(dynamodb_url)
    store = await place.open()

    assert await store.claim([claim_of(f"order-{n}") for n in range(80)]) == [Claimed(1)] * 80

    assert 1 < dynamodb.peak_concurrency <= dynamodb_store.CONCURRENCY
    await place.aclose()


async def test_a_lost_answer_of_dynamodb_is_an_error_and_the_claim_can_be_repeated(
    dynamodb: FaultProxy, dynamodb_url: str
) -> None:
    place = Place(dynamodb_url)
    store = await place.open()
    dynamodb.add(Fault("UpdateItem", times=1, drop="reply"))
    claim = claim_of("order-1")

    with pytest.raises(StoreError):
        await store.claim([claim])

    assert await store.claim([claim]) == [Claimed(1)]
    await place.aclose()


async def test_a_dynamodb_that_hangs_is_given_up_in_bounded_time(
    dynamodb: FaultProxy, dynamodb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamodb_store, "BATCH_SECONDS", 0.5)
    place = Place(dynamodb_url)
    store = await place.open()
    dynamodb.add(Fault("UpdateItem", times=1, delay_seconds=2.0))

    with pytest.raises(StoreError, match="no answer"):
        await asyncio.wait_for(store.claim([claim_of("order-1")]), BOUND_SECONDS)

    await until(lambda: not dynamodb.open_calls)
    await place.aclose()


async def test_a_missing_table_of_dynamodb_is_told_with_the_command_that_makes_it(
    dynamodb_url: str,
) -> None:
    store = open_store("dynamodb://missing")

    with pytest.raises(ConfigError, match="'missing'.*smartpipe topology apply"):
        await store.open()
    await store.aclose()


async def test_a_dynamodb_table_of_another_kind_is_refused(dynamodb_url: str) -> None:
    import boto3

    attributes = [{"AttributeName": "id", "AttributeType": "S"}]
    keys = [{"AttributeName": "id", "KeyType": "HASH"}]
    client = boto3.client("dynamodb")
    client.create_table(
        TableName="orders",
        AttributeDefinitions=attributes,  # type: ignore[arg-type]
        KeySchema=keys,  # type: ignore[arg-type]
        BillingMode="PAY_PER_REQUEST",
    )
    store = open_store("dynamodb://orders")

    with pytest.raises(ConfigError, match="'orders' is not one of claims"):
        await store.open()
    await store.aclose()
    client.delete_table(TableName="orders")
    client.close()


async def test_a_database_without_tables_is_told_with_the_command_that_makes_them(
    postgres_server: PostgresServer,
) -> None:
    with postgres_server.database() as url:
        store = open_store(url)
        with pytest.raises(ConfigError, match="lacks 0001_claims, 0003_keys_of_claims: run smartpipe store migrate"):
            await store.open()

        assert await migrate(url) == ["0001_claims", "0002_outbox", "0003_keys_of_claims"]

        await store.open()
        await store.aclose()


async def test_a_redis_that_may_evict_claims_is_warned_of(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    import redis as client

    with client.Redis.from_url(redis_server.url) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        place = Place(redis_server.url)
        await place.open()
        admin.config_set("maxmemory-policy", "noeviction")
        await place.aclose()

    assert "set noeviction" in caplog.text
