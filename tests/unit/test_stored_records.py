"""How stores write the keys of claims, and what they read from records that another program may have written."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Any

import pytest
from redis.exceptions import ResponseError

from smartpipe.idempotency.store import Claim, Claimed, Completed, InProgress, claim_state
from smartpipe.idempotency.stores.dynamodb import _outcome_of, _record_of, _unchanged, _values
from smartpipe.idempotency.stores.records import limit_attempt, limit_lease, stored_key
from smartpipe.idempotency.stores.redis import _read_state
from smartpipe.keys import compose


@pytest.mark.parametrize(("key", "max_bytes", "kept"), [
    ("k" * 12, 20, True), ("k" * 13, 20, False), ("\u00e4" * 6, 20, True), ("\u00e4" * 7, 20, False),
])  # fmt: skip
def test_a_key_is_kept_up_to_the_last_byte(key: str, max_bytes: int, kept: bool) -> None:
    stored = stored_key("prefix-", key, max_bytes=max_bytes)

    assert (stored == f"prefix-/{key}") is kept
    assert kept or stored == f"={sha256(compose('prefix-', key).encode()).hexdigest()}"


def test_a_digest_keeps_the_prefix_where_both_fit() -> None:
    digest = sha256(compose("a/b", "\0").encode()).hexdigest()

    assert stored_key("a/b", "\0", max_bytes=70) == f"a!2Fb={digest}"
    assert stored_key("a/b", "\0", max_bytes=69) == f"={digest}"


@pytest.mark.parametrize(("seconds", "expected"), [
    (-1, 0), (0, 0), (0.5, 0.5), (43_200, 43_200), (43_201, 43_200), (math.inf, 43_200), (-math.inf, 0), (math.nan, 0),
])  # fmt: skip
def test_a_lease_from_a_store_is_at_most_half_a_day(seconds: float, expected: float) -> None:
    assert limit_lease(seconds) == expected


@pytest.mark.parametrize(("number", "expected"), [
    (-1, 1), (0, 1), (1, 1), (2.9, 2), (2_147_483_646, 2_147_483_646), (2_147_483_647, 2_147_483_646),
    (math.inf, 2_147_483_646), (math.nan, 1),
])  # fmt: skip
def test_an_attempt_from_a_store_is_a_positive_number(number: float, expected: int) -> None:
    assert limit_attempt(number) == expected
    assert type(limit_attempt(number)) is int


@pytest.mark.parametrize(("state", "left", "expected"), [
    ("completed", 0, Completed()), ("completed", 5, Completed()), ("held", 5, InProgress(5)), ("held", 0, None),
    ("held", -1, None), ("held", 0.001, InProgress(0.001)), ("released", 5, None), ("other", 5, None),
])  # fmt: skip
def test_a_state_is_that_of_a_completed_or_a_held_claim(state: str, left: float, expected: object) -> None:
    assert claim_state(state, left) == expected


NOW = 1_000_000


@pytest.mark.parametrize(("answer", "expected"), [
    ([b"completed", b"0"], Completed()),
    ([b"held", b"1001500"], InProgress(1.5)),
    (["held", "1001500"], InProgress(1.5)),
    ([b"held", b"1000000"], None),
    ([b"held", b"1e99"], InProgress(43_200)),
    ([b"held", b"soon"], None),
    ([b"held", None], None),
    ([b"released", b"1001500"], None),
    ([None, None], None),
    ([b"\xff", b"\xff"], None),
    (ResponseError("WRONGTYPE Operation against a key"), None),
], ids=str)  # fmt: skip
def test_a_record_of_redis_is_read(answer: Any, expected: object) -> None:
    assert _read_state(answer, NOW) == expected


def test_another_error_of_redis_is_not_a_free_key() -> None:
    with pytest.raises(ResponseError, match="NOPERM"):
        _read_state(ResponseError("NOPERM no"), NOW)


ITEM: dict[str, Any] = {
    "token": {"S": "t"}, "state": {"S": "held"}, "attempt": {"N": "2"}, "lease_until": {"N": "1000.5"},
    "expires_at": {"N": "2000"},
}  # fmt: skip


def test_an_item_of_dynamodb_is_a_claim_only_with_all_of_its_attributes() -> None:
    record = _record_of(ITEM)

    assert record == ("t", "held", 2, 1_000.5, 2_000)
    for name in ITEM:
        assert _record_of({key: value for key, value in ITEM.items() if key != name}) is None
        assert _record_of({**ITEM, name: {"B": "x"}}) is None
    assert _record_of({**ITEM, "state": {"S": "other"}}) is None
    assert _record_of({**ITEM, "attempt": {"N": "many"}}) is None
    assert _record_of(None) is None
    condition, values = _unchanged({**ITEM, "attempt": {"S": "x"}} | {"state": {"S": "held"}})
    assert condition.count(" AND ") == 4
    assert values[":old_attempt"] == {"S": "x"}
    absent = [f"attribute_not_exists(#{name})" for name in ("token", "expires_at", "state", "lease_until", "attempt")]
    assert _unchanged({}) == (" AND ".join(absent), {})


@pytest.mark.parametrize(("state", "token", "expected"), [
    ("completed", "mine", Completed()), ("held", "t", Claimed(2)), ("held", "mine", InProgress(0.5)),
])  # fmt: skip
def test_the_outcome_of_a_refused_write_is_that_of_the_record(state: str, token: str, expected: object) -> None:
    record = _record_of({**ITEM, "state": {"S": state}})
    assert record is not None

    assert _outcome_of(record, Claim("k", token, 30, 60), now=1_000.0) == expected


def test_times_in_dynamodb_are_rounded_up_to_seconds() -> None:
    values = _values(Claim("k", "t", 30.25, 60.25), 1_000.5)

    assert {name: value["N"] for name, value in values.items() if "N" in value} == {
        ":zero": "0", ":one": "1", ":now": "1000.500", ":lease_until": "1030.750", ":expires_at": "1091",
        ":memory": "1061",
    }  # fmt: skip
