"""A key in a store that smartpipe did not write, or not so, is a claim or counts as unknown; nothing crashes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import boto3
import pytest
import redis

from smartpipe.idempotency.store import Claimed, Completed, InProgress
from tests.support.places import Place, claim_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAR = "99999999999"


@pytest.fixture
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    place = Place(request.getfixturevalue(request.param))
    yield place
    await place.aclose()


async def verbs_agree(place: Place, key: str) -> None:
    """Every verb treats the key as unknown, and a good claim of the same call is granted."""
    store = await place.open()
    stranger, other = claim_of(key), claim_of("good")

    assert await store.read([key, "good"]) == [None, None]
    for verb in (store.renew, store.complete, store.release):
        assert await verb([claim_of(key)]) == [False]
    granted, as_well = await store.claim([stranger, other])
    assert isinstance(granted, Claimed)
    assert granted.attempt in {1, 2}
    assert as_well == Claimed(1)
    assert await store.complete([stranger, other]) == [True, True]
    assert await store.read([key, "good"]) == [Completed(), Completed()]


HASHES: list[Any] = [
    "text",
    ["a", "list"],
    {"state": "foo", "token": "t", "attempt": "x", "until": "soon"},
    {"state": "held"},
    {"state": "held", "token": "t", "attempt": "1", "until": "nan"},
    {"state": "held", "token": "t", "attempt": "1", "until": "-inf"},
    {"state": "\ud83e".encode("utf-8", "surrogatepass"), "token": b"\xff\x00", "attempt": b"\xff", "until": b"\xff"},
    {"state": "released", "token": "t", "attempt": "-7", "until": "1e400"},
    {"anything": "else"},
]


@pytest.mark.parametrize("place", ["redis_url"], indirect=True)
@pytest.mark.parametrize("found", HASHES)
async def test_a_redis_key_that_is_not_a_claim_is_unknown(place: Place, found: Any) -> None:
    store: Any = await place.open()
    with redis.Redis.from_url(place.url) as client:
        key = store._key("order-1")
        if isinstance(found, dict):
            client.hset(key, mapping=found)
        elif isinstance(found, list):
            client.rpush(key, *found)
        else:
            client.set(key, found)

    await verbs_agree(place, "order-1")


@pytest.mark.parametrize("place", ["redis_url"], indirect=True)
@pytest.mark.parametrize("until", ["inf", "1e300", FAR + "0000"])
async def test_a_lease_in_redis_without_end_is_one_of_half_a_day(place: Place, until: str) -> None:
    store: Any = await place.open()
    with redis.Redis.from_url(place.url) as client:
        client.hset(store._key("a"), mapping={"state": "held", "token": "t", "attempt": "1", "until": until})

    assert await store.claim([claim_of("a")]) == [InProgress(43_200.0)]
    assert await store.read(["a"]) == [InProgress(43_200.0)]


@pytest.mark.parametrize("place", ["redis_url"], indirect=True)
async def test_a_lease_in_redis_of_less_than_a_millisecond_is_not_a_completion(place: Place) -> None:
    store: Any = await place.open()
    with redis.Redis.from_url(place.url) as client:
        seconds, microseconds = client.time()
        until = f"{seconds * 1000 + microseconds // 1000 + 60_000}.5"
        client.hset(store._key("a"), mapping={"state": "held", "token": "t", "attempt": "1", "until": until})

    [outcome] = await store.claim([claim_of("a")])

    assert isinstance(outcome, InProgress)


@pytest.mark.parametrize("place", ["redis_url"], indirect=True)
async def test_texts_that_redis_decodes_by_itself_are_read_as_well(place: Place) -> None:
    place.url += ("&" if "?" in place.url else "?") + "decode_responses=true"
    await verbs_agree(place, "order-1")


@pytest.mark.parametrize("place", ["postgres_url"], indirect=True)
async def test_a_lease_in_postgresql_without_end_is_one_of_half_a_day_and_attempts_do_not_overflow(
    place: Place,
) -> None:
    store: Any = await place.open()
    connection = await asyncpg.connect(place.url)
    await connection.executemany(
        "INSERT INTO smartpipe_claims VALUES ($1, 't', $2, $3, $4::text::timestamptz, 'infinity')",
        [
            (store._key("endless"), "held", 1, "infinity"),
            (store._key("ancient"), "held", 2_147_483_647, "-infinity"),
            (store._key("negative"), "released", -7, "-infinity"),
        ],
    )
    await connection.close()

    assert await store.read(["endless", "ancient", "negative"]) == [InProgress(43_200.0), None, None]
    assert await store.claim([claim_of("endless"), claim_of("ancient"), claim_of("negative")]) == [
        InProgress(43_200.0),
        Claimed(2_147_483_646),
        Claimed(1),
    ]


GOOD = {
    "token": {"S": "t"},
    "state": {"S": "held"},
    "attempt": {"N": "1"},
    "lease_until": {"N": FAR},
    "expires_at": {"N": FAR},
}


@pytest.mark.parametrize("place", ["dynamodb_url"], indirect=True)
@pytest.mark.parametrize(
    "found",
    [
        {},
        {"anything": {"S": "else"}},
        {**GOOD, "expires_at": {"S": "soon"}},
        {**GOOD, "lease_until": {"S": "soon"}},
        {**GOOD, "state": {"S": "foo"}},
        {**GOOD, "state": {"N": "1"}},
        {**GOOD, "token": {"BOOL": True}},
        {**GOOD, "attempt": {"S": "x"}},
        {**GOOD, "state": {"S": "released"}, "attempt": {"S": "x"}},
        {name: value for name, value in GOOD.items() if name != "attempt"},
        {name: {"M": {}} for name in GOOD},
    ],
)
async def test_a_dynamodb_item_that_is_not_a_claim_is_unknown(place: Place, found: Any) -> None:
    store: Any = await place.open()
    client: Any = boto3.client("dynamodb")
    client.put_item(TableName=store.table, Item={**store._key("order-1"), **found})
    client.close()

    await verbs_agree(place, "order-1")


@pytest.mark.parametrize("place", ["dynamodb_url"], indirect=True)
async def test_a_lease_in_dynamodb_without_end_is_one_of_half_a_day(place: Place) -> None:
    store: Any = await place.open()
    client: Any = boto3.client("dynamodb")
    client.put_item(TableName=store.table, Item={**store._key("a"), **GOOD, "attempt": {"N": "-3"}})
    client.close()

    assert await store.claim([claim_of("a")]) == [InProgress(43_200.0)]
    assert await store.read(["a"]) == [InProgress(43_200.0)]
