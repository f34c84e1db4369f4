"""What every idempotency store guarantees: memory, Redis, PostgreSQL and DynamoDB."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.idempotency.store import Claimed, Completed, InProgress
from tests.support.places import LONG, Place, claim_of, until_claimed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from smartpipe.idempotency.store import Claim, ClaimOutcome, Store


@pytest.fixture(params=["memory", "redis", "postgres", "dynamodb"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
async def place(url: str) -> AsyncIterator[Place]:
    place = Place(url)
    yield place
    await place.aclose()


@pytest.fixture
async def store(place: Place) -> Store:
    return await place.open()


async def test_an_unknown_key_is_claimed_as_the_first_attempt(store: Store) -> None:
    assert await store.claim([claim_of("order-1")]) == [Claimed(1)]


async def test_a_held_key_is_in_progress_until_its_lease_ends(store: Store) -> None:
    await store.claim([claim_of("order-1", lease_seconds=LONG)])

    [outcome] = await store.claim([claim_of("order-1")])

    assert isinstance(outcome, InProgress)
    assert LONG - 100 < outcome.seconds <= LONG + 1


async def test_of_fifty_claims_at_once_from_several_connections_one_is_granted(place: Place) -> None:
    stores = [await place.open() for _ in range(5)]

    outcomes = await asyncio.gather(*(stores[n % 5].claim([claim_of("order-1")]) for n in range(50)))

    assert _kinds(outcomes) == {Claimed: 1, InProgress: 49}


async def test_of_fifty_claims_of_a_lease_that_ran_out_one_is_granted(place: Place) -> None:
    stores = [await place.open() for _ in range(5)]
    await stores[0].claim([claim_of("order-1", lease_seconds=0.1)])
    await asyncio.sleep(0.2)

    outcomes = await asyncio.gather(*(stores[n % 5].claim([claim_of("order-1")]) for n in range(50)))

    assert _kinds(outcomes) == {Claimed: 1, InProgress: 49}
    assert [Claimed(2)] in outcomes


async def test_of_one_key_twice_in_a_call_the_second_sees_the_first(store: Store) -> None:
    first, other, second = await store.claim([claim_of("order-1"), claim_of("order-2"), claim_of("order-1")])

    assert (first, other) == (Claimed(1), Claimed(1))
    assert isinstance(second, InProgress)
    assert LONG - 100 < second.seconds <= LONG + 1


async def test_outcomes_are_in_the_order_of_the_claims(store: Store) -> None:
    done, held, given_back = claim_of("done"), claim_of("held"), claim_of("given back")
    await store.claim([held, given_back, done])
    await store.complete([done])
    await store.release([given_back])

    names = ["new", "done", "held", "given back", "done", "another"]
    outcomes = await store.claim([claim_of(name) for name in names])

    assert [outcome if not isinstance(outcome, InProgress) else None for outcome in outcomes] == [
        Claimed(1), Completed(), None, Claimed(2), Completed(), Claimed(1),
    ]  # fmt: skip


async def test_the_answers_of_holders_are_in_the_order_of_the_claims(store: Store) -> None:
    held = [claim_of(f"order-{n}") for n in range(4)]
    await store.claim([held[3], held[1]])

    assert await store.renew(held) == [False, True, False, True]
    assert await store.complete(held) == [False, True, False, True]


async def test_no_claims_are_no_trouble(store: Store) -> None:
    assert await store.claim([]) == []
    assert await store.renew([]) == await store.complete([]) == await store.release([]) == []
    assert await store.read([]) == []
    await store.forget([])


async def test_a_claim_repeated_after_a_lost_answer_gets_the_same_answer(store: Store) -> None:
    claim = claim_of("order-1")

    assert await store.claim([claim]) == await store.claim([claim]) == [Claimed(1)]
    assert await store.claim([claim, claim]) == [Claimed(1), Claimed(1)]


async def test_a_lease_that_runs_out_frees_the_key_and_counts_the_attempts(store: Store) -> None:
    await store.claim([claim_of("order-1", lease_seconds=0.1)])

    assert await until_claimed(store, claim_of("order-1", lease_seconds=0.1)) == Claimed(2)
    assert await until_claimed(store, claim_of("order-1")) == Claimed(3)


async def test_attempts_are_forgotten_after_lease_and_ttl(store: Store) -> None:
    await store.claim([claim_of("order-1", lease_seconds=0.1, ttl_seconds=0.1)])

    await asyncio.sleep(1.3)  # a memory in whole seconds lasts up to one more

    assert await store.claim([claim_of("order-1")]) == [Claimed(1)]


async def test_of_fifty_claims_of_an_expired_record_one_is_granted(place: Place) -> None:
    stores = [await place.open() for _ in range(5)]
    await stores[0].claim([claim_of("order-1", lease_seconds=0.1, ttl_seconds=0.1)])
    await asyncio.sleep(1.3)

    outcomes = await asyncio.gather(*(stores[n % 5].claim([claim_of("order-1")]) for n in range(50)))

    assert _kinds(outcomes) == {Claimed: 1, InProgress: 49}
    assert [Claimed(1)] in outcomes


async def test_a_renewed_lease_lasts_for_its_full_time_again(store: Store) -> None:
    claim = claim_of("order-1", lease_seconds=0.2)
    await store.claim([claim])

    assert await store.renew([claim._replace(lease_seconds=LONG)]) == [True]
    await asyncio.sleep(0.3)
    [outcome] = await store.claim([claim_of("order-1")])

    assert isinstance(outcome, InProgress)
    assert outcome.seconds > LONG - 100


async def test_a_renewed_lease_can_run_out(store: Store) -> None:
    claim = claim_of("order-1")
    await store.claim([claim])

    assert await store.renew([claim._replace(lease_seconds=0.1)]) == [True]

    assert await until_claimed(store, claim_of("order-1")) == Claimed(2)


async def test_a_lease_that_ran_out_unnoticed_can_still_be_renewed_and_completed(store: Store) -> None:
    claim = claim_of("order-1", lease_seconds=0.1)
    await store.claim([claim])
    await asyncio.sleep(0.2)

    assert await store.renew([claim]) == [True]
    await asyncio.sleep(0.2)
    assert await store.complete([claim]) == [True]

    assert await store.claim([claim_of("order-1")]) == [Completed()]


async def test_a_completion_is_seen_by_all_connections(place: Place) -> None:
    here, there = await place.open(), await place.open()
    claim = claim_of("order-1", lease_seconds=0.1)
    await here.claim([claim])

    assert await here.complete([claim]) == [True]
    await asyncio.sleep(0.2)  # beyond the lease

    assert await there.claim([claim_of("order-1")]) == [Completed()]


async def test_a_completion_is_forgotten_after_its_ttl(store: Store) -> None:
    claim = claim_of("order-1", ttl_seconds=0.3)
    await store.claim([claim])
    await store.complete([claim])

    assert await until_claimed(store, claim_of("order-1")) == Claimed(1)
    assert await store.complete([claim]) == [False]


async def test_a_released_key_is_free_immediately_and_keeps_its_count(store: Store) -> None:
    claim = claim_of("order-1")
    await store.claim([claim])

    assert await store.release([claim]) == [True]

    assert await store.claim([claim_of("order-1")]) == [Claimed(2)]


async def test_the_count_of_a_release_is_forgotten_after_its_ttl(store: Store) -> None:
    claim = claim_of("order-1", ttl_seconds=0.1)
    await store.claim([claim])
    await store.release([claim])

    await asyncio.sleep(1.3)

    assert await store.claim([claim_of("order-1")]) == [Claimed(1)]


async def test_a_holder_that_lost_its_claim_changes_nothing(place: Place) -> None:
    here, there = await place.open(), await place.open()
    old, new = claim_of("order-1", lease_seconds=0.1), claim_of("order-1")
    await here.claim([old])
    await until_claimed(there, new)

    assert await here.renew([old]) == await here.complete([old]) == await here.release([old]) == [False]

    [outcome] = await here.claim([claim_of("order-1")])
    assert isinstance(outcome, InProgress)
    assert outcome.seconds > LONG - 100
    assert await there.complete([new]) == [True]
    assert await here.renew([old]) == await here.complete([old]) == await here.release([old]) == [False]
    assert await here.claim([claim_of("order-1")]) == [Completed()]


async def test_complete_and_release_can_be_repeated_after_a_lost_answer(store: Store) -> None:
    completed, released = claim_of("order-1"), claim_of("order-2")
    await store.claim([completed, released])

    assert await store.complete([completed]) == await store.complete([completed]) == [True]
    assert await store.complete([completed, completed]) == [True, True]
    assert await store.release([released]) == await store.release([released]) == [True]

    assert await store.claim([claim_of("order-1"), claim_of("order-2")]) == [Completed(), Claimed(2)]


async def test_a_repeated_completion_is_not_remembered_for_longer(store: Store) -> None:
    claim = claim_of("order-1", ttl_seconds=0.3)
    await store.claim([claim])
    await store.complete([claim])

    await store.complete([claim._replace(ttl_seconds=LONG)])
    await store.renew([claim._replace(ttl_seconds=LONG)])

    assert await until_claimed(store, claim_of("order-1")) == Claimed(1)


async def test_a_completed_claim_cannot_be_released_nor_a_released_one_completed(store: Store) -> None:
    completed, released = claim_of("order-1"), claim_of("order-2")
    await store.claim([completed, released])
    await store.complete([completed])
    await store.release([released])

    assert await store.renew([completed, released]) == [True, False]
    assert await store.release([completed]) == [False]
    assert await store.complete([released]) == [False]

    assert await store.claim([claim_of("order-1"), claim_of("order-2")]) == [Completed(), Claimed(2)]


async def test_a_token_that_never_held_a_key_changes_nothing(store: Store) -> None:
    await store.claim([claim_of("order-1")])

    for key in ("order-1", "unknown"):
        stranger = claim_of(key)
        assert await store.renew([stranger]) == [False]
        assert await store.complete([stranger]) == [False]
        assert await store.release([stranger]) == [False]

    assert await store.claim([claim_of("unknown")]) == [Claimed(1)]


async def test_read_returns_the_state_of_each_key_and_claims_nothing(store: Store) -> None:
    held, done, given_back, lapsed = (claim_of(name) for name in ("held", "done", "given back", "lapsed"))
    await store.claim([held, done, given_back, lapsed._replace(lease_seconds=0.1)])
    await store.complete([done])
    await store.release([given_back])
    await asyncio.sleep(0.2)

    keys = ["new", "done", "held", "given back", "lapsed", "done"]
    seen = await store.read(keys)
    again = await store.read(keys)

    for new, completed, in_progress, *rest in (seen, again):
        assert (new, completed, rest) == (None, Completed(), [None, None, Completed()])
        assert isinstance(in_progress, InProgress)
        assert LONG - 100 < in_progress.seconds <= LONG + 1
    assert await store.claim([claim_of("new"), claim_of("given back")]) == [Claimed(1), Claimed(2)]
    assert await store.complete([held]) == [True]


async def test_read_returns_no_completion_after_its_ttl(store: Store) -> None:
    claim = claim_of("order-1", ttl_seconds=0.1)
    await store.claim([claim])
    await store.complete([claim])

    await asyncio.sleep(1.3)  # a memory in whole seconds lasts up to one more

    assert await store.read(["order-1"]) == [None]


async def test_a_forgotten_key_is_unknown_for_any_holder(store: Store) -> None:
    held, completed = claim_of("order-1"), claim_of("order-2")
    await store.claim([held, completed])
    await store.complete([completed])

    await store.forget(["order-1", "order-2", "order-3", "order-1"])

    assert await store.read(["order-1", "order-2"]) == [None, None]
    assert await store.complete([held]) == [False]
    assert await store.claim([claim_of("order-1"), claim_of("order-2")]) == [Claimed(1), Claimed(1)]


@pytest.mark.parametrize(
    "key",
    [
        "søknad-日本-🦊", "o'brien\"); --", "a b\tc\n{}%s\\", "x" * 512, "🦊" * 512, "with\0nul", "$1", ":key", "#key",
        " ",
        "half of a fox \ud83e",
    ],
    ids=repr,
)  # fmt: skip
async def test_a_key_may_have_any_characters(store: Store, key: str) -> None:
    claim = claim_of(key)

    assert await store.claim([claim, claim_of(key + ".")]) == [Claimed(1), Claimed(1)]
    assert await store.renew([claim]) == await store.complete([claim]) == [True]
    assert await store.claim([claim_of(key)]) == await store.read([key]) == [Completed()]
    await store.forget([key])
    assert await store.claim([claim_of(key)]) == [Claimed(1)]


async def test_batches_in_opposite_orders_do_not_deadlock(place: Place) -> None:
    stores = [await place.open() for _ in range(4)]

    for round_ in range(3):
        keys = [f"{round_}-{n}" for n in range(8)]
        orders = [keys, keys[::-1], keys[4:] + keys[:4], keys[::2] + keys[1::2]]
        batches = [[claim_of(key) for key in order] for order in orders]
        outcomes = await _each(stores, "claim", batches)
        won = [
            [claim for claim, outcome in zip(batch, said, strict=True) if isinstance(outcome, Claimed)]
            for batch, said in zip(batches, outcomes, strict=True)
        ]
        assert sorted(claim.key for claims in won for claim in claims) == sorted(keys)

        said = await asyncio.gather(
            _each(stores, "renew", batches),
            _each(stores[::-1], "claim", [[claim_of(claim.key) for claim in batch] for batch in batches]),
            _each(stores, "complete", won),
        )
        assert sum(answers.count(True) for answers in said[0]) == len(keys)
        assert all(all(answers) for answers in said[2])
        await asyncio.gather(*(store.forget(order) for store, order in zip(stores, orders, strict=True)))


async def test_calls_that_are_cancelled_leave_the_others_their_answers(store: Store) -> None:
    calls = [asyncio.create_task(store.claim([claim_of(f"order-{n}", lease_seconds=LONG + n)])) for n in range(20)]
    await asyncio.sleep(0.001)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    for n in range(20, 30):
        assert await store.claim([claim_of(f"order-{n}")]) == [Claimed(1)]
    assert {call.result()[0] for call in calls[1::2]} == {Claimed(1)}


async def test_a_second_close_does_nothing(place: Place) -> None:
    store = await place.open()

    await store.aclose()
    await store.aclose()


async def _each(stores: list[Store], verb: str, batches: list[list[Claim]]) -> list[list[Any]]:
    """Ask each store with its own batch, all at once."""
    calls: list[Awaitable[list[Any]]] = [
        getattr(store, verb)(batch) for store, batch in zip(stores, batches, strict=True)
    ]
    return await asyncio.gather(*calls)


def _kinds(outcomes: list[list[ClaimOutcome]]) -> dict[type, int]:
    return dict(Counter(type(outcome) for said in outcomes for outcome in said))
