"""Composed keys: other values, another key; and each key is one that its store or service takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from hashlib import sha256
from itertools import combinations
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, Secret, SecretStr

from smartpipe import Event, Idempotency, Topic
from smartpipe.envelope import wrap
from smartpipe.envelope.ids import DerivedIds
from smartpipe.idempotency.store import HandlerName
from smartpipe.idempotency.stores.records import stored_key
from smartpipe.keys import compose, compose_bounded, escape, own_sqs_id, shorten, sqs_id, typed_text
from smartpipe.limits import MAX_ID_LENGTH

# Any text at all, lone surrogates and NUL included, with much of what a careless encoding would confuse.
ANYTHING = st.text(st.characters() | st.sampled_from("/|!:.%=\0\ud83d\ude00é"), max_size=12)
PARTS = st.lists(ANYTHING, min_size=1, max_size=5)
KEY = re.compile(r"[A-Za-z0-9._!/-]*")
SQS_ID = re.compile(r"[!-~]{1,128}")


@given(PARTS, PARTS)
@example(["a|b", "c"], ["a", "b|c"])
@example(["a/b", "c"], ["a", "b/c"])
@example(["a", ""], ["a"])
@example(["!2F"], ["/"])
@example(["\ud83d\ude00"], ["\U0001f600"])
@example(["é"], ["e\u0301"])
@example(["A"], ["a"])
def test_different_parts_have_different_keys_and_equal_parts_the_same(one: list[str], other: list[str]) -> None:
    assert (compose(*one) == compose(*other)) == (one == other)


@given(PARTS, PARTS, st.integers(71, 90))
def test_a_digest_in_place_of_a_long_key_is_no_other_parts_key(one: list[str], other: list[str], limit: int) -> None:
    keys = [compose_bounded(*parts, max_length=limit) for parts in (one, other, [compose_bounded(*one, max_length=-1)])]

    assert (keys[0] == keys[1]) == (one == other)
    assert keys[2] != keys[0]
    assert all(len(key) <= limit for key in keys)


@given(PARTS)
def test_a_key_is_plain_ascii_and_has_no_part_that_a_path_would_resolve(parts: list[str]) -> None:
    key = compose(*parts)

    assert KEY.fullmatch(key)
    assert not {".", ".."} & set(key.split("/"))


@pytest.mark.parametrize("part", ["order-1", "0190b5b8-8e3c-7d3f-9f3a-1c2d3e4f5a6b", "app.handlers.charge", ""])
def test_what_needs_no_escape_can_be_read_as_it_is(part: str) -> None:
    assert escape(part) == part


@given(ANYTHING.filter(bool), ANYTHING.filter(bool))
def test_an_sqs_id_is_one_that_sqs_takes_and_no_other_values(one: str, other: str) -> None:
    assert SQS_ID.fullmatch(sqs_id(one))
    assert (sqs_id(one) == sqs_id(other)) == (one == other)


@pytest.mark.parametrize("value", ["order-1", "a|b", "!" * MAX_ID_LENGTH])
def test_a_value_that_sqs_takes_is_the_id_that_other_producers_send_too(value: str) -> None:
    assert sqs_id(value) == value


@pytest.mark.parametrize("value", ["with space", "é", "x" * 129, "\0", "\ud83e"])
def test_a_value_that_looks_like_the_digest_of_another_has_an_id_of_its_own(value: str) -> None:
    digest = sqs_id(value)

    assert SQS_ID.fullmatch(digest)
    assert sqs_id(digest) != digest


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
@example("a", "bc", "ab", "c")
@example("a/", "b", "a", "/b")
@example("", "a/b", "a", "b")
@example("", "sha256:" + 64 * "0", "", "\0")
def test_keys_of_two_prefixes_never_meet_in_one_store(prefix: str, key: str, prefix_2: str, key_2: str) -> None:
    one, other = (stored_key(*pair, max_bytes=200) for pair in ((prefix, key), (prefix_2, key_2)))

    assert (one == other) == ((prefix, key) == (prefix_2, key_2))
    for stored in (one, other):
        assert "\0" not in stored
        assert len(stored.encode()) <= 200


def test_a_digest_in_a_store_is_no_other_keys_text() -> None:
    digest = stored_key("", "with\0nul", max_bytes=100)
    literal = digest.partition("/")[2] or digest

    assert stored_key("", digest, max_bytes=100) != digest
    assert stored_key("", literal, max_bytes=100) != digest


NAMES = st.builds(HandlerName, ANYTHING, ANYTHING, ANYTHING, ANYTHING)
FIELDS = st.none() | st.sampled_from(["", 0, 1, "1", "0"]) | ANYTHING
CLAIMED = st.tuples(NAMES, FIELDS, ANYTHING, ANYTHING)


class Valued(Event, topic=Topic("keys"), type="keys.valued", version="1.0"):
    value: int | str | None = None


def claim_key(claimed: tuple[HandlerName, int | str | None, str, str]) -> str:
    name, value, source, id_ = claimed
    envelope = wrap(Valued.model_construct(value=value), source=source)._replace(id=id_)
    return Idempotency(key="value").key_of(name, envelope)


@given(CLAIMED, CLAIMED)
@example((HandlerName("a", "bc", "q", "f"), None, "s", "1"), (HandlerName("ab", "c", "q", "f"), None, "s", "1"))
@example((HandlerName("", "s", "q", "f"), None, "value", "str/1"), (HandlerName("", "s", "q", "f"), "1", "", ""))
def test_deliveries_share_a_claim_if_and_only_if_handler_and_event_are_the_same(
    one: tuple[HandlerName, int | str | None, str, str], other: tuple[HandlerName, int | str | None, str, str]
) -> None:
    def named(claimed: tuple[HandlerName, int | str | None, str, str]) -> tuple[object, ...]:
        name, value, source, id_ = claimed
        return (name, source, id_) if value in (None, "") else (name, type(value), value)

    assert (claim_key(one) == claim_key(other)) == (named(one) == named(other))
    assert len(claim_key(one)) <= 512


@given(PARTS, PARTS, st.lists(PARTS, min_size=2, max_size=6))
def test_what_one_call_publishes_has_ids_of_its_own_and_the_same_in_each_attempt(
    cause: list[str], other: list[str], published: list[list[str]]
) -> None:
    attempts = [DerivedIds(*cause, call=1), DerivedIds(*cause, call=2), DerivedIds(*other, call=1)]
    first, again, of_other = ([ids.next(*what) for what in published] for ids in attempts)

    assert first == again
    assert len(set(first)) == len(first)
    assert (set(first) == set(of_other)) == (cause == other)
    assert {UUID(one).version for one in first} == {8}


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Other(Enum):
    ONE = 1


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    name: str


WEST = timezone(timedelta(hours=-5))
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


EDGES = [
    (9999, 12, 31, timezone(-timedelta(hours=1))),
    (9999, 12, 31, timezone(-timedelta(hours=2))),
    (1, 1, 1, timezone(timedelta(hours=23, minutes=59, seconds=59, microseconds=999_999))),
]


@dataclass
class Card:
    number: SecretStr


class Hidden(BaseModel):
    number: int = Field(exclude=True)


DIFFERENT: list[Any] = [
    1, "1", 1.0, True, Decimal(1), b"1", UUID(int=1), str(UUID(int=1)), "true", "null", False, 0, "0",
    NOON, NOON.replace(tzinfo=None), NOON.isoformat(), date(2026, 11, 26), "2026-11-26", timedelta(days=1), 86_400.0,
    ["1"], [1], "[1]", ["1", "1"], [["1"], "1"], ["1", ["1"]], [str(UUID(int=1))], [UUID(int=1)], ["uuid", "1"],
    {"1": 1}, {1: 1}, [("1", 1)], {1}, ["list", [1]], [None], ["null"],
    Dog(name="Rex"), Cat(name="Rex"), SecretStr("one"), SecretStr("two"), "**********",
    *(datetime(year, month, day, 23, 59, 59, tzinfo=zone) for year, month, day, zone in EDGES),
    Decimal("1E+999999999999999999"), Decimal("2E+999999999999999999"), Decimal("sNaN1"), Decimal("sNaN2"),
    10**5_000, 10**5_000 + 1, -(10**5_000), timedelta.max, timedelta.max - timedelta(microseconds=1),
    Card(SecretStr("1")), Card(SecretStr("2")), Secret[int](1), Secret[int](2), Hidden(number=1), Hidden(number=2),
]  # fmt: skip


def test_values_that_differ_to_their_user_have_different_texts() -> None:
    shared = [pair for pair in combinations(DIFFERENT, 2) if typed_text(pair[0]) == typed_text(pair[1])]

    assert shared == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Decimal("1.0"), Decimal("1.00")),
        (Decimal(100), Decimal("1E+2")),
        (Decimal("-0.0"), Decimal(0)),
        (0.0, -0.0),
        (NOON, NOON.astimezone(WEST)),
        (Colour.RED, "red"),
        (Number.ONE, 1),
        (Other.ONE, 1),
        ([Other.ONE], [1]),
        ((1, 2), [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a", "b", "c"}, {"c", "b", "a"}),
        (Dog(name="Rex"), Dog(kind="dog", name="Rex")),
    ],
)
def test_values_that_are_equal_to_their_user_have_one_text(one: Any, other: Any) -> None:
    assert typed_text(one) == typed_text(other)


class Raising(BaseModel):
    name: str = "x"

    def __getattribute__(self, name: str) -> Any:
        if name == "name":
            raise RuntimeError("not to be had")
        return super().__getattribute__(name)


def test_a_value_that_cannot_be_written_is_no_value() -> None:
    assert typed_text(Raising()) is None


@pytest.mark.parametrize("value", [None, "", b"", [], (), {}, set()], ids=repr)
def test_nothing_has_no_text(value: Any) -> None:
    assert typed_text(value) is None


def test_a_secret_does_not_show_in_a_key() -> None:
    assert "hunter2" not in str(typed_text(SecretStr("hunter2")))


@pytest.mark.parametrize(("part", "expected"), [
    (".", "!2E"), ("..", "!2E!2E"), ("...", "!2E!2E!2E"), ("a.", "a."), (".a", ".a"), ("", ""), ("a b", "a!20b"),
    ("a/b", "a!2Fb"), ("!", "!21"), ("\u00e9", "!C3!A9"), ("\ud83d", "!ED!A0!BD"), ("a:b|c", "a!3Ab!7Cc"),
])  # fmt: skip
def test_every_other_byte_is_written_as_two_hex_digits(part: str, expected: str) -> None:
    assert escape(part) == expected
    assert compose("x", part, "") == f"x/{expected}/"


def test_a_key_at_its_limit_is_kept_and_a_longer_one_is_hashed() -> None:
    assert shorten("x" * 80, 80) == "x" * 80
    assert shorten("x" * 81, 80) == f"sha256:{sha256(b'x' * 81).hexdigest()}"
    assert compose_bounded("ab", "c", max_length=4) == "ab/c"
    assert compose_bounded("ab", "cd", max_length=4).startswith("sha256:")


def test_an_id_of_our_own_is_hashed_only_above_the_limit_of_sqs() -> None:
    start = "smartpipe/kind/"

    assert own_sqs_id("kind", "x" * (128 - len(start))) == start + "x" * (128 - len(start))
    assert own_sqs_id("kind", "x" * (129 - len(start))).startswith("smartpipe/sha256/")
    assert sqs_id("smartpipe/value/x") == "smartpipe/value/smartpipe!2Fvalue!2Fx"
    assert sqs_id("smartpipe") == "smartpipe"


SECRET_DIGEST = sha256(b'"1"').hexdigest()


@pytest.mark.parametrize(("value", "expected"), [
    ("text", ("str", "text")),
    (Colour.RED, ("str", "red")),
    (True, ("json", "true")),
    (5, ("json", "5")),
    (Number.ONE, ("json", "1")),
    (0, ("json", "0")),
    (10**4_000 - 1, ("json", "9" * 4_000)),
    (-(10**4_000), ("json", f'["int","{hex(-(10**4_000))}"]')),
    (-0.0, ("json", "0.0")),
    (1.5, ("json", "1.5")),
    (Decimal("1.10"), ("json", '["decimal","1.1"]')),
    (Decimal("0E+5"), ("json", '["decimal","0"]')),
    (UUID(int=1), ("json", f'["uuid","{UUID(int=1)}"]')),
    (NOON, ("json", '["datetime","2026-11-26T12:00:00+00:00"]')),
    (NOON.replace(tzinfo=None), ("json", '["datetime","2026-11-26T12:00:00"]')),
    (NOON.astimezone(WEST), ("json", '["datetime","2026-11-26T12:00:00+00:00"]')),
    (NOON.date(), ("json", '["date","2026-11-26"]')),
    (NOON.time(), ("json", '["time","12:00:00"]')),
    (timedelta(days=1, seconds=2, microseconds=3), ("json", '["timedelta","1 2 3"]')),
    (b"\x01", ("json", '["bytes","01"]')),
    (bytearray(b"\x01"), ("json", '["bytes","01"]')),
    ((1, "\u00e4"), ("json", '["list",[1,"\u00e4"]]')),
    ({2, 1}, ("json", '["set",[1,2]]')),
    (frozenset({"b", "a"}), ("json", '["set",["a","b"]]')),
    ({"b": 1, "a": None}, ("json", '["object",[["a",null],["b",1]]]')),
    (Dog(name="Rex"), ("json", '["object",[["kind","dog"],["name","Rex"]]]')),
    (SecretStr("1"), ("json", f'["secret","{SECRET_DIGEST}"]')),
    (Card(SecretStr("1")), ("json", f'["object",[["number",["secret","{SECRET_DIGEST}"]]]]')),
    (complex(1, 2), ("json", '["text","(1+2j)"]')),
    (Card, ("json", f'["text","{Card}"]')),
])  # fmt: skip
def test_the_text_of_a_value_stays_the_same_in_every_version(value: Any, expected: tuple[str, str]) -> None:
    """Claims that an older version has written must be found."""
    assert typed_text(value) == expected


def test_extra_fields_of_a_model_are_part_of_its_text() -> None:
    class Open(BaseModel, extra="allow"):
        name: str = "x"

    assert typed_text(Open(more=1)) != typed_text(Open()) == typed_text({"name": "x"})
