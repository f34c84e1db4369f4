"""Claims over a long time: every renewal, every probe, and no call to the store too many."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.consumer.guard import MAX_DEFERRAL_SECONDS, _seconds_until_retry
from smartpipe.errors import StoreError
from smartpipe.idempotency.claims import PROBE_SECONDS, Claims
from smartpipe.idempotency.store import Claim, Claimed, InProgress
from smartpipe.idempotency.stores.memory import MemoryStore
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.idempotency.store import ClaimOutcome

LEASE_SECONDS = 30.0
INTERVAL_SECONDS = 10.0


class CountingStore(MemoryStore):
    """A store that counts its calls by verb. It is unavailable while ``down``, and for the verbs in ``refused``."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.refused: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.renewed: list[tuple[float, list[str]]] = []

    def _count(self, verb: str) -> None:
        self.calls[verb] += 1
        if self.down or verb in self.refused:
            raise StoreError("the store is down")

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        self._count("renew")
        self.renewed.append((asyncio.get_running_loop().time(), [claim.key for claim in claims]))
        return [True] * len(claims)

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        self._count("release")
        return [True] * len(claims)

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        self._count("complete")
        return [True] * len(claims)


def make_claim(key: str, lease_seconds: float = LEASE_SECONDS) -> Claim:
    return Claim(key, f"token of {key}", lease_seconds, 3_600)


class Held:
    """Claims that are held in a store, and those that were lost."""

    def __init__(self, store: CountingStore | None = None) -> None:
        self.store = CountingStore() if store is None else store
        self.claims = Claims(self.store)
        self.lost: list[str] = []

    def hold(self, key: str, lease_seconds: float = LEASE_SECONDS) -> Claim:
        claim = make_claim(key, lease_seconds)
        self.claims.hold(claim, asyncio.get_running_loop().time(), lambda: self.lost.append(key))
        return claim


def test_a_claim_is_renewed_three_times_in_a_lease_for_as_long_as_it_is_held() -> None:
    async def main() -> Held:
        held = Held()
        held.hold("a")
        await asyncio.sleep(10 * LEASE_SECONDS + 1)
        await held.claims.aclose()
        return held

    held = run_virtually(main())
    assert [time for time, _ in held.store.renewed] == [INTERVAL_SECONDS * number for number in range(1, 31)]
    assert held.lost == []


@pytest.mark.parametrize("gap_seconds", [1, 4, 6, 9])
def test_later_claims_are_renewed_although_an_earlier_one_was_dropped(gap_seconds: float) -> None:
    async def main() -> Held:
        held = Held()
        for number in range(5):  # the timer of each is running when it is dropped
            earlier = held.hold(f"earlier{number}")
            await asyncio.sleep(gap_seconds)
            later = held.hold(f"later{number}")
            held.claims.drop(earlier)
            await asyncio.sleep(2 * LEASE_SECONDS)
            held.claims.drop(later)
            await asyncio.sleep(LEASE_SECONDS)
        await held.claims.aclose()
        return held

    renewed = Counter(key for _, keys in run_virtually(main()).store.renewed for key in keys)
    assert set(renewed) == {f"later{number}" for number in range(5)}
    assert set(renewed.values()) <= {5, 6}  # every 10 s in 60 s


def test_claims_that_are_due_within_half_an_interval_share_a_call() -> None:
    async def main() -> Held:
        held = Held()
        for number in range(10):
            held.hold(str(number))
            await asyncio.sleep(0.4)
        await asyncio.sleep(10 * LEASE_SECONDS)
        await held.claims.aclose()
        return held

    store = run_virtually(main()).store
    assert store.calls["renew"] <= 31
    assert all(len(keys) == 10 for _, keys in store.renewed[1:])


def test_a_short_lease_is_renewed_in_time_beside_a_long_one() -> None:
    async def main() -> Held:
        held = Held()
        held.hold("long", 3_000)
        held.claims.drop(held.hold("dropped"))
        await asyncio.sleep(1_500)
        held.hold("short")
        await asyncio.sleep(1_001)
        await held.claims.aclose()
        return held

    renewed = Counter(key for _, keys in run_virtually(main()).store.renewed for key in keys)
    assert 99 <= renewed["short"] <= 101
    assert 2 <= renewed["long"] <= 5


def test_the_lease_of_a_queue_with_a_short_timeout_is_not_lost_beside_that_of_a_long_one() -> None:
    """An event whose claim had expired could be handled a second time."""

    async def main() -> Held:
        held = Held()
        held.hold("long", 43_200)
        await asyncio.sleep(1)
        for number in range(3):
            held.claims.drop(held.hold(f"dropped{number}", 10))
            short = held.hold(f"short{number}", 10)
            await asyncio.sleep(100)
            held.claims.drop(short)
            await asyncio.sleep(100)
        await held.claims.aclose()
        return held

    held = run_virtually(main())
    times = [time for time, keys in held.store.renewed if keys[0].startswith("short")]
    assert len(times) in range(3 * 29, 3 * 30 + 1)  # three in ten seconds
    assert len(held.store.renewed) == len(times)


def test_nothing_is_renewed_while_no_claim_is_held() -> None:
    async def main() -> Held:
        held = Held()
        for number in range(3):
            held.claims.drop(held.hold(str(number)))
            await asyncio.sleep(1_000)
        await held.claims.aclose()
        return held

    assert run_virtually(main()).store.calls["renew"] == 0


def test_a_renewal_that_fails_is_repeated_at_the_next_interval_and_the_claim_lasts_until_its_lease_ends() -> None:
    async def main() -> None:
        held = Held()
        held.hold("a")
        for _ in range(2):  # two outages, and between them the lease is whole again
            held.store.down = True
            before = held.store.calls["renew"]
            await asyncio.sleep(LEASE_SECONDS - INTERVAL_SECONDS)
            assert held.lost == []
            assert 1 <= held.store.calls["renew"] - before <= 2
            assert held.claims.failures > 0
            held.store.down = False
            await asyncio.sleep(2 * LEASE_SECONDS)
            assert (held.lost, held.claims.failures) == ([], 0)

        held.store.down = True
        await asyncio.sleep(LEASE_SECONDS + INTERVAL_SECONDS)
        assert held.lost == ["a"]
        before = held.store.calls["renew"]
        await asyncio.sleep(10 * LEASE_SECONDS)
        assert (held.lost, held.store.calls["renew"]) == (["a"], before)  # once, and not renewed any more
        await held.claims.aclose()

    run_virtually(main())


def test_an_outage_that_a_renewal_notices_ends_without_another_message() -> None:
    """A worker is not ready while calls fail. Neither a claim nor a message need come for it to be ready again."""

    reported: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        held = Held()
        for _ in range(2):
            claim = held.hold("a")
            held.store.down = True
            await asyncio.sleep(INTERVAL_SECONDS + 1)
            held.claims.drop(claim)
            probes = held.store.calls["release"]
            await asyncio.sleep(10 * PROBE_SECONDS)
            assert held.claims.failures > 0
            assert 9 <= held.store.calls["release"] - probes <= 11
            held.store.down = False
            await asyncio.sleep(PROBE_SECONDS + 1)
            assert held.claims.failures == 0
            probes = held.store.calls["release"]
            await asyncio.sleep(100 * PROBE_SECONDS)
            assert held.store.calls["release"] == probes
        await held.claims.aclose()
        gc.collect()  # asyncio reports errors that no caller has asked for

    run_virtually(main())
    assert reported == []


def test_a_renewal_that_succeeds_ends_an_outage() -> None:
    async def main() -> list[int]:
        held = Held()
        held.store.refused = {"renew", "release"}  # so that no probe succeeds
        held.hold("a", 24)
        found = []
        for seconds in (8.5, 1.0):  # the renewals at 8 s and at 24 s fail, and those at 16 s and at 32 s succeed
            held.store.refused.add("renew")
            await asyncio.sleep(seconds)
            found.append(held.claims.failures)
            held.store.refused.discard("renew")
            await asyncio.sleep(8)
            found.append(held.claims.failures)
            await asyncio.sleep(7)
        await held.claims.aclose()
        return found

    found = run_virtually(main())
    assert [failures > 0 for failures in found] == [True, False, True, False]


def test_closing_waits_for_a_renewal_in_flight_and_starts_no_other() -> None:
    steps: list[str] = []

    class SlowStore(CountingStore):
        async def renew(self, claims: Sequence[Claim]) -> list[bool]:
            await asyncio.sleep(2)
            steps.append("renewed")
            return await super().renew(claims)

        async def aclose(self) -> None:
            steps.append("closed")

    async def main() -> None:
        claims = Claims(SlowStore())
        claims.hold(make_claim("a"), 0.0, lambda: None)
        await asyncio.sleep(INTERVAL_SECONDS + 1)
        await claims.aclose()
        await asyncio.sleep(LEASE_SECONDS)

    run_virtually(main())
    assert steps == ["renewed", "closed"]


@pytest.mark.parametrize(("hangs", "reason"), [(False, "the store is down"), (True, "no answer")])
def test_the_reason_why_leases_cannot_be_renewed_is_logged(
    hangs: bool, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingStore(CountingStore):
        async def renew(self, claims: Sequence[Claim]) -> list[bool]:
            if hangs:
                await asyncio.sleep(1_000)
            return await super().renew(claims)

    async def main() -> None:
        held = Held(FailingStore())
        held.store.down = True
        claim = held.hold("a")
        await asyncio.sleep(1.9 * INTERVAL_SECONDS)
        held.claims.drop(claim)
        await held.claims.aclose()

    run_virtually(main())
    assert caplog.messages == [f"Cannot renew the leases of claims, retrying: {reason}"]


def test_a_store_that_was_closed_in_an_outage_is_called_no_more() -> None:
    async def main() -> tuple[Counter[str], Counter[str]]:
        held = Held()
        held.store.down = True
        await held.claims.release(make_claim("a"))
        await held.claims.aclose()
        closed = held.store.calls.copy()
        await asyncio.sleep(10 * PROBE_SECONDS)
        return closed, held.store.calls

    assert run_virtually(main()) == ({"release": 1}, {"release": 1})


def test_a_completion_is_repeated_for_half_a_minute_and_not_in_a_busy_loop() -> None:
    async def main() -> tuple[int, float]:
        held = Held()
        held.store.down = True
        started = asyncio.get_running_loop().time()
        with pytest.raises(StoreError):
            await held.claims.complete(make_claim("a"))
        seconds = asyncio.get_running_loop().time() - started
        await held.claims.aclose()
        return held.store.calls["complete"], seconds

    calls, seconds = run_virtually(main())
    assert 5 <= calls <= 100
    assert 30 <= seconds <= 33.1


@pytest.mark.parametrize(
    ("left", "receives", "lease", "expected"),
    [
        (12.0, 1, 30.0, 12.0),  # the rest of the lease
        (12.0, 3, 30.0, 12.0),
        (12.0, 4, 30.0, 60.0),  # from the fourth delivery on, twice as long each time
        (12.0, 5, 30.0, 120.0),
        (12.0, 7, 30.0, MAX_DEFERRAL_SECONDS),
        (12.0, 1_000, 30.0, MAX_DEFERRAL_SECONDS),  # for ever
        (299.0, 1_000, 10.0, MAX_DEFERRAL_SECONDS),
        (900.0, 5, 30.0, 900.0),  # never before the lease ends
        (900.0, 4, 900.0, 900.0),
    ],
)
def test_a_deferral_lasts_at_least_as_long_as_the_claim_and_otherwise_five_minutes_at_most(
    left: float, receives: int, lease: float, expected: float
) -> None:
    assert _seconds_until_retry(left, receives, lease) == expected


def test_claims_of_one_moment_are_sent_in_calls_of_a_hundred_and_each_gets_its_own_answer() -> None:
    class Sized(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
            self.sizes.append(len(claims))
            return await super().claim(claims)

    async def main() -> None:
        store = Sized()
        claims = Claims(store)
        await claims.claim(make_claim("150")._replace(token="other"))
        outcomes = await asyncio.gather(*(claims.claim(make_claim(str(number))) for number in range(201)))
        assert store.sizes == [1, 100, 100, 1]
        assert [type(outcome) for outcome in outcomes].index(InProgress) == 150
        assert sum(isinstance(outcome, Claimed) for outcome in outcomes) == 200
        await claims.claim(make_claim("next"))
        assert store.sizes[4:] == [1]
        await claims.aclose()

    run_virtually(main())


@pytest.mark.parametrize(("error", "message"), [
    (StoreError("the store is down"), "the store is down"),
    (None, "the idempotency store did not answer within 5 s"),
    (KeyError("secret"), "the idempotency store failed: KeyError"),
])  # fmt: skip
def test_each_failed_call_is_counted_and_has_its_reason(error: Exception | None, message: str) -> None:
    class Failing(CountingStore):
        async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
            if error is not None:
                raise error
            await asyncio.sleep(1_000)
            return []

    async def main() -> list[int]:
        store, found = Failing(), list[int]()
        store.refused = {"release"}  # so that no probe succeeds
        claims = Claims(store)
        for _ in range(2):
            with pytest.raises(StoreError, match=f"^{message}$"):
                await claims.claim(make_claim("a"))
            found.append(claims.failures)
        assert await claims.complete(make_claim("a"))
        found.append(claims.failures)
        await claims.aclose()
        return found

    first, second, last = run_virtually(main())
    assert (first, second > 1, last) == (1, True, 0)


def test_a_lease_is_renewed_for_its_full_time_and_lost_only_at_its_end() -> None:
    """A renewal that fails counts the lease from the last one that succeeded."""

    async def main() -> list[float]:
        held, lost = Held(), list[float]()
        loop = asyncio.get_running_loop()
        held.claims.hold(make_claim("a"), loop.time(), lambda: lost.append(loop.time()))
        await asyncio.sleep(INTERVAL_SECONDS + 0.5)
        held.store.down = True
        await asyncio.sleep(10 * LEASE_SECONDS)
        await held.claims.aclose()
        return lost

    # Renewed at 10 s until 40 s; the renewals at 20 s and 30 s fail, and the one at 40 s is too late.
    assert run_virtually(main()) == [4 * INTERVAL_SECONDS]


def test_a_claim_that_the_store_does_not_renew_is_lost_and_the_others_are_kept() -> None:
    class Refusing(CountingStore):
        async def renew(self, claims: Sequence[Claim]) -> list[bool]:
            await super().renew(claims)
            return [claim.key != "b" for claim in claims]

    async def main() -> Held:
        held = Held(Refusing())
        for key in "abc":
            held.hold(key)
        await asyncio.sleep(2 * INTERVAL_SECONDS + 1)
        await held.claims.aclose()
        return held

    held = run_virtually(main())
    assert held.lost == ["b"]
    assert [keys for _, keys in held.store.renewed] == [["a", "b", "c"], ["a", "c"]]


def test_a_claim_that_is_dropped_while_it_is_renewed_is_not_lost() -> None:
    class Slow(CountingStore):
        async def renew(self, claims: Sequence[Claim]) -> list[bool]:
            await asyncio.sleep(2)
            return [False] * len(claims)

    async def main() -> list[str]:
        held = Held(Slow())
        claim = held.hold("a")
        await asyncio.sleep(INTERVAL_SECONDS + 1)
        held.claims.drop(claim)
        await asyncio.sleep(LEASE_SECONDS)
        await held.claims.aclose()
        return held.lost

    assert run_virtually(main()) == []


@pytest.mark.parametrize("claimed", [True, False])
def test_a_cancelled_caller_releases_what_the_store_then_grants(claimed: bool) -> None:
    class Slow(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.released: list[str] = []

        async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
            await asyncio.sleep(2)
            return await super().claim(claims)

        async def release(self, claims: Sequence[Claim]) -> list[bool]:
            self.released += [claim.key for claim in claims]
            return await super().release(claims)

    async def main() -> list[str]:
        store = Slow()
        claims = Claims(store)
        if not claimed:
            await claims.claim(make_claim("a")._replace(token="other"))
        waiting = asyncio.create_task(claims.claim(make_claim("a")))
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await claims.aclose()
        return store.released

    assert run_virtually(main()) == (["a"] if claimed else [])


def test_a_release_that_fails_says_when_the_lease_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        held = Held()
        held.store.down = True
        await held.claims.release(make_claim("a"))
        await held.claims.aclose()

    run_virtually(main())
    assert caplog.messages == ["Cannot release a claim, its lease will expire in 30 s: the store is down"]
