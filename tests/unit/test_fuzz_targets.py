"""A little of ``make fuzz`` in every run of the tests: its seeds, and what Hypothesis makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    import random


@pytest.mark.parametrize("name", TARGETS)
def test_what_others_wrote_is_read_or_refused_by_name(name: str) -> None:
    target, seeds = TARGETS[name]

    @given(data=st.one_of(st.binary(max_size=400), st.builds(_mutated, st.sampled_from(seeds), st.randoms())))
    @settings(max_examples=150)
    def check(data: bytes) -> None:
        target(data)

    for seed in seeds:
        target(seed)
    check()


def _mutated(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randint(0, 8)):
        at = chance.randint(0, len(data))
        data[at : at + chance.randint(0, 3)] = chance.choice(
            [b"", b"[", b"{", b'"', b"\\", b"\0", b"9", b"\xff", b"\r\n"]
        )
    return bytes(data)
