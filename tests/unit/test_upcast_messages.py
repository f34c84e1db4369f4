"""Messages of an older major version: how they are decoded, handled, dead-lettered and redriven."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpipe import DecodeError, Event, Topic
from smartpipe.envelope import decode
from smartpipe.envelope.decode import Decoder
from smartpipe.errors import UnknownEventType

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.envelope import Envelope

shop = Topic("shop")


class Sold(Event, topic=shop, type="shop.sold", version="3.1", key="order"):
    """1.x had cents, and 2.x amount and currency."""

    order: str
    total: str
    lines: tuple[Any, ...] = ()


@Sold.upcast(from_version="1")
def _(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "amount": f"{data['cents'] / 100:.2f}", "currency": "EUR"}


@Sold.upcast(from_version="2")
def _(data: dict[str, Any]) -> dict[str, Any]:
    data["total"] = f"{data.pop('amount')} {data.pop('currency')}"
    return data


NEW = Sold(order="1", total="42.00 EUR")
decoder = Decoder([Sold])


def body(version: str | None = "1.0", **data: Any) -> str:
    """What an old producer might publish."""
    return envelope(version, data=data or {"order": "1", "cents": 4200})


def envelope(version: str | None = "1.0", **fields: Any) -> str:
    context = {"specversion": "1.0", "type": "shop.sold", "source": "/old/shop", "id": "77"}
    return json.dumps(context | ({} if version is None else {"dataversion": version}) | fields)


def decode_large(text: str) -> Envelope:
    return decoder.decode_large(text, 10_000)


both = pytest.mark.parametrize("decode", [decoder.decode, decode_large])


def refused(decode: Callable[[str], object], text: str) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(text)
    return caught.value


@both
def test_an_older_version_passes_all_upcasters_up_to_the_class(decode: Callable[[str], Envelope]) -> None:
    assert decode(body("1.0")).data == NEW
    assert decode(body("1.7")).data == NEW
    assert decode(body("2.0", order="1", amount="42.00", currency="EUR")).data == NEW
    assert decode(body("3.0", order="1", total="42.00 EUR")).data == NEW


@both
def test_the_envelope_keeps_the_version_and_context_that_were_sent(decode: Callable[[str], Envelope]) -> None:
    context = {
        "time": "2026-11-27T10:00:00.123456+02:00",
        "partitionkey": "1",
        "correlationid": "c",
        "causationid": "d",
    }
    trace = f"00-{'1' * 32}-{'2' * 16}-01"
    found = decode(envelope("1.4", data={"order": "1", "cents": 4200}, traceparent=trace, **context))

    assert (found.version, found.type, found.id, found.source) == ("1.4", "shop.sold", "77", "/old/shop")
    assert found.time == datetime(2026, 11, 27, 8, 0, 0, 123456, tzinfo=UTC)
    assert (found.key, found.traceparent, found.correlation_id, found.causation_id) == ("1", trace, "c", "d")


@both
def test_a_message_without_a_version_counts_as_the_first(decode: Callable[[str], Envelope]) -> None:
    found = decode(body(None))

    assert (found.data, found.version) == (NEW, "1.0")


@both
def test_data_in_base64_is_upcast(decode: Callable[[str], Envelope]) -> None:
    text = b64encode(b'{"order": "1", "cents": 4200}').decode()

    assert decode(envelope(data_base64=text)).data == NEW
    assert decode(envelope(data=None, data_base64=text)).data == NEW


@both
@pytest.mark.parametrize("fields", [{"data": [1]}, {"data": "x"}, {"data_base64": "?"}, {"data_base64": "AAAA"}])
def test_data_that_is_not_an_object_is_invalid(decode: Callable[[str], Envelope], fields: dict[str, Any]) -> None:
    error = refused(decode, envelope(**fields))

    assert error.kind == "invalid-data"
    assert str(error).startswith("the data cannot be upcast: data")
    assert str(error).endswith("should be a JSON object")


def test_deeply_nested_data_in_base64_is_invalid() -> None:
    text = b64encode(('{"a":' * 9_000 + "1" + "}" * 9_000).encode()).decode()

    assert refused(decode_large, envelope(data_base64=text)).kind == "invalid-data"


class Pinged(Event, topic=shop, type="shop.pinged", version="2.0"):
    count: int


@Pinged.upcast(from_version="1")
def _(data: dict[str, Any]) -> dict[str, Any]:
    return {"count": len(data)}


@pytest.mark.parametrize("fields", [{}, {"data": None}, {"data": {}}])
def test_an_event_without_data_is_upcast_from_an_empty_dict(fields: dict[str, Any]) -> None:
    assert Decoder([Pinged]).decode(envelope(type="shop.pinged", **fields)).data == Pinged(count=0)


def test_each_type_passes_its_own_upcasters_and_another_type_none() -> None:
    mixed = Decoder([Sold, Pinged])

    assert mixed.decode(body("1.0")).data == NEW
    assert mixed.decode(envelope(type="shop.pinged", data={"a": 1})).data == Pinged(count=1)
    with pytest.raises(
        UnknownEventType, match=r"'shop\.closed' version 1\.0; .* take shop\.pinged 1\.x, shop\.pinged 2"
    ):
        mixed.decode(envelope(type="shop.closed", data={}))


@both
def test_an_upcaster_that_raises_is_named_with_its_versions_and_error(decode: Callable[[str], Envelope]) -> None:
    error = refused(decode, body(order="1"))

    assert error.kind == "upcast-failed"
    assert str(error).startswith(f"shop.sold cannot be upcast: the upcaster from version 1 to 2 ({__name__}._, line ")
    assert str(error).endswith("failed: KeyError: 'cents'")
    assert isinstance(error.__cause__, KeyError)


def upcasting(function: Callable[..., Any]) -> Decoder:
    class Returned(Event, topic=shop, type="shop.returned", version="2.0"):
        value: Any = None

    Returned.upcast(from_version="1")(function)
    return Decoder([Returned])


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def raise_unprintable(_: Any) -> Any:
    raise Unprintable


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda _: None, "returned None: return the changed data"),
        (lambda data: [data], "returned a list, not a dict"),
        (lambda _: {"value": object()}, "its data has a value that JSON cannot represent: "),
        (lambda _: {"value": "\ud800"}, "its data has a value that JSON cannot represent: "),
        (lambda data: data | {"value": data}, None),
        (raise_unprintable, "failed: Unprintable"),
    ],
)
def test_a_result_that_is_not_json_has_failed(function: Callable[..., Any], reason: str | None) -> None:
    text = envelope(type="shop.returned", data={"a": 1})
    if reason is None:
        assert upcasting(function).decode(text).data.model_dump() == {"value": {"a": 1}}
        return
    error = refused(upcasting(function).decode, text)

    assert error.kind == "upcast-failed"
    assert reason in str(error)


def test_data_that_contains_itself_has_failed() -> None:
    def loop(data: dict[str, Any]) -> dict[str, Any]:
        data["value"] = data
        return data

    assert refused(upcasting(loop).decode, envelope(type="shop.returned", data={})).kind == "upcast-failed"


def test_an_upcaster_may_return_python_values() -> None:
    class Priced(Event, topic=shop, type="shop.priced", version="2.0", strict=True):
        price: Decimal
        on: date
        tags: tuple[str, ...]

    @Priced.upcast(from_version="1")
    def _(data: dict[str, Any]) -> dict[str, Any]:
        return {"price": Decimal("0.10"), "on": date(2026, 1, 2), "tags": ["a"]}

    found = Decoder([Priced]).decode(envelope(type="shop.priced", data={})).data

    assert found == Priced(price=Decimal("0.10"), on=date(2026, 1, 2), tags=("a",))


@both
def test_upcast_data_that_does_not_fit_is_invalid_and_says_that_it_was_upcast(
    decode: Callable[[str], Envelope],
) -> None:
    error = refused(decode, body("1.2", order=5, cents=4200))

    assert error.kind == "invalid-data"
    assert str(error) == (
        "the data, upcast from version 1.2, does not fit shop.sold 3.1: data.order: input should be a valid string"
    )
    assert [one["loc"] for one in error.errors] == [("data", "order")]


@both
def test_data_of_the_current_version_that_does_not_fit_is_not_upcast(decode: Callable[[str], Envelope]) -> None:
    error = refused(decode, body("3.0", order="1", cents=4200))

    assert (error.kind, "upcast" in str(error)) == ("invalid-data", False)


@both
def test_an_unknown_version_is_refused_with_the_versions_that_are_taken(decode: Callable[[str], Envelope]) -> None:
    with pytest.raises(UnknownEventType) as caught:
        decode(body("4.0"))

    assert str(caught.value) == (
        "no handler subscribes to 'shop.sold' version 4.0; the handlers of this queue take shop.sold 1.x, "
        "shop.sold 2.x, shop.sold 3.x"
    )


def test_upcast_data_has_the_limits_of_other_data() -> None:
    class Grown(Event, topic=shop, type="shop.grown", version="2.0"):
        parts: list[Any]

    @Grown.upcast(from_version="1")
    def _(data: dict[str, Any]) -> dict[str, Any]:
        return {"parts": [{} for _ in range(data["count"])]}

    grown = Decoder([Grown])
    text = envelope(type="shop.grown", data={"count": 1_000})

    assert len(grown.decode_large(text, 2_000).data.model_dump()["parts"]) == 1_000
    with pytest.raises(DecodeError) as caught:
        grown.decode_large(text, 500)
    assert caught.value.kind == "too-many-values"


def test_a_class_of_the_older_version_gets_its_events_and_they_are_not_upcast() -> None:
    class SoldV2(Event, topic=shop, type="shop.sold", version="2.0"):
        order: str
        amount: str

    side_by_side = Decoder([Sold, SoldV2])

    assert side_by_side.decode(body("2.0", order="1", amount="3", currency="EUR")).data == SoldV2(order="1", amount="3")
    assert side_by_side.decode(body("1.0")).data == NEW
    assert side_by_side.decode(body("3.0", order="1", total="42.00 EUR")).data == NEW


def test_a_message_of_the_current_version_never_reaches_the_upcasters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also none of the code that looks for them runs."""
    current = body("3.1", order="1", total="42.00 EUR")
    wrapped = json.dumps({"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:::x", "Message": current})

    def fail(*_: object) -> None:
        raise AssertionError

    for name in ("_explain", "_upcast"):
        monkeypatch.setattr(Decoder, name, fail)
    monkeypatch.setattr(decode, "upcast_body", fail)

    for text in (current, wrapped):
        assert decoder.decode(text).data == NEW
        assert decode_large(text).data == NEW


_values = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=4)
_steps = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 3)), min_size=1, max_size=6)


@given(steps=_steps, start=st.integers(0, 5), data=_values)
def test_a_chain_is_the_composition_of_its_upcasters(
    steps: list[tuple[str, int]], start: int, data: dict[str, Any]
) -> None:
    class Chained(Event, topic=shop, type="shop.chained", version=f"{len(steps)}.0"):
        data: dict[str, Any]

    def make(name: str, number: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda found: {"data": {**found.get("data", found), name: [found.get("data", found).get(name), number]}}

    functions = [make(*step) for step in steps]
    for major, function in enumerate(functions):
        Chained.upcast(from_version=str(major))(function)
    start %= len(steps)
    expected = data
    for function in functions[start:]:
        expected = function(expected)

    text = envelope(f"{start}.9", type="shop.chained", data=data)

    assert Decoder([Chained]).decode(text).data == Chained.model_validate(expected)
    assert Decoder([Chained]).decode_large(text, 10_000).data == Chained.model_validate(expected)
