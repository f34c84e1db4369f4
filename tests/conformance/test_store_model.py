"""Random calls: every store must return the same results as the memory store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smartpipe.idempotency.store import Claim, InProgress
from smartpipe.idempotency.stores.memory import MemoryStore
from tests.support.places import LONG, Place

if TYPE_CHECKING:
    from smartpipe.idempotency.store import Store

SHORT = 0.001
"""What lasts so long is over after the call in which it began."""
PAUSE_SECONDS = 0.01


class Step(NamedTuple):
    """One call, of some keys with some tokens: so few that they meet."""

    verb: str
    claims: list[tuple[str, str]]
    lease_seconds: float
    ttl_seconds: float


def _without_repeated_keys(step: Step) -> Step:
    return step._replace(claims=[*{one[0]: one for one in step.claims}.values()]) if SHORT in step else step


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(["claim", "claim", "claim", "renew", "complete", "release", "forget", "look"]),
        st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("123")), min_size=1, max_size=4),
        st.sampled_from([SHORT, LONG]),
        st.sampled_from([SHORT, LONG, LONG]),
    ).map(_without_repeated_keys),
    max_size=12,
)
"""A call with a short time has each key once. A busy machine may interrupt a server for longer than that in the middle
of the call, and then the record of a key has expired when the call comes to it again."""


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_every_store_behaves_like_the_memory_store(request: pytest.FixtureRequest, kind: str) -> None:
    place = Place(request.getfixturevalue(f"{kind}_url"))

    with asyncio.Runner() as runner:
        store = runner.run(place.open())

        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(steps)
        def check(steps: list[Step]) -> None:
            runner.run(_both_agree(store, steps))

        try:
            check()
        finally:
            runner.run(place.aclose())


async def _both_agree(store: Store, steps: list[Step]) -> None:
    model = MemoryStore()
    await store.forget(["A", "B"])
    for step in steps:
        assert await _answer(store, step) == await _answer(model, step)
        if SHORT in step:
            await asyncio.sleep(PAUSE_SECONDS)


async def _answer(store: Store, step: Step) -> object:
    if step.verb == "forget":
        await store.forget([key for key, _ in step.claims])
        return None
    if step.verb == "look":
        return _plain(await store.read([key for key, _ in step.claims]))
    claims = [Claim(key, token, step.lease_seconds, step.ttl_seconds) for key, token in step.claims]
    return _plain(await getattr(store, step.verb)(claims))


def _plain(answers: list[Any]) -> list[Any]:
    """Return them without what depends on the time that passes."""
    return [
        ("in progress", answer.seconds > LONG / 2) if isinstance(answer, InProgress) else answer for answer in answers
    ]
