from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, field_validator

from smartpipe import ConfigError, DecodeError, Event, Topic, UnknownEventType
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.decode import Decoder, MessageReader
from smartpipe.message import Attribute, Message
from smartpipe.payload_offload import PayloadOffload
from tests.support.events import ADA, OrderPlaced, UserLeft, UserSignedUp, users

if TYPE_CHECKING:
    from collections.abc import Callable

decoder = Decoder([UserSignedUp, UserLeft, OrderPlaced])


def plain(**changes: Any) -> str:
    """What a service in another language might publish."""
    event = {
        "specversion": "1.0",
        "id": "77",
        "source": "/go/service",
        "type": "user.left",
        "data": {"name": "Bob"},
    } | changes
    return json.dumps({name: value for name, value in event.items() if value is not ...})


def base64_of(text: str) -> str:
    return b64encode(text.encode()).decode()


def sns_wrapped(body: str, **changes: str) -> str:
    return json.dumps(
        {"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:::users", "Message": body} | changes
    )


def test_raw_and_sns_wrapped_bodies_decode_alike() -> None:
    body = encode(wrap(ADA, source="s"))

    assert decoder.decode(sns_wrapped(body)) == decoder.decode(body)


def test_a_plain_cloudevent_of_another_language_decodes() -> None:
    envelope = decoder.decode(plain())

    assert envelope.data == UserLeft(name="Bob")
    assert (envelope.id, envelope.source, envelope.version, envelope.time) == ("77", "/go/service", "1.0", None)


@pytest.mark.parametrize("media_type", [..., None, "application/json", "TEXT/JSON; charset=utf-8", "text/json"])
def test_data_in_base64_is_read_where_the_content_type_is_json(media_type: object) -> None:
    body = plain(data=..., data_base64=base64_of('{"name": "Bob"}'), datacontenttype=media_type)

    assert decoder.decode(body).data == UserLeft(name="Bob")
    assert decoder.decode_large(body, 100).data == UserLeft(name="Bob")
    assert decoder.decode(sns_wrapped(body)).data == UserLeft(name="Bob")
    assert decoder.decode(plain(data=None, data_base64=base64_of('{"name": "Bob"}'))).data == UserLeft(name="Bob")


def test_data_in_base64_has_the_limits_of_other_data() -> None:
    body = plain(data=..., data_base64=base64_of(json.dumps({"name": "Bob", "more": [{}] * 1_000})))

    assert decoder.decode_large(body, 2_000).data == UserLeft(name="Bob")
    with pytest.raises(DecodeError) as caught:
        decoder.decode_large(body, 500)
    assert caught.value.kind == "too-many-values"


def test_a_reason_names_the_data_in_base64_that_is_wrong() -> None:
    with pytest.raises(DecodeError, match=r"data_base64: input should be JSON in UTF-8, encoded in base64"):
        decoder.decode(plain(data=..., data_base64="?"))
    with pytest.raises(DecodeError, match=r"data_base64\.name: input should be a valid string"):
        decoder.decode(plain(data=..., data_base64=base64_of('{"name": 5}')))
    with pytest.raises(DecodeError, match=r"datacontenttype: input should be a media type of JSON"):
        decoder.decode(plain(data=..., data_base64="AAAA", datacontenttype="image/png"))


class Ping(Event, topic=users, type="decoder.ping", version="1.0"):
    count: int = 1


@pytest.mark.parametrize("changes", [{"data": ...}, {"data": None}, {"data": {}}, {"data": ..., "data_base64": None}])
def test_an_event_whose_fields_all_have_defaults_needs_no_data(changes: dict[str, object]) -> None:
    body = plain(type="decoder.ping", **changes)

    assert Decoder([Ping]).decode(body).data == Ping()
    assert Decoder([Ping, UserLeft]).decode_large(body, 100).data == Ping()


def test_data_in_base64_is_not_dropped_from_an_event_that_needs_no_data() -> None:
    body = plain(type="decoder.ping", data=..., data_base64=base64_of('{"count": 5}'))

    assert Decoder([Ping]).decode(body).data == Ping(count=5)


@pytest.mark.parametrize(
    "name", ["dataversion", "datacontenttype", "time", "partitionkey", "traceparent", "correlationid", "causationid"]
)
def test_a_context_attribute_that_is_null_is_not_set(name: str) -> None:
    assert decoder.decode(plain(**{name: None})) == decoder.decode(plain())


@pytest.mark.parametrize("media_type", ["text/json", "APPLICATION/JSON", "application/VND.api+JSON", "image/svg+json"])
def test_a_content_type_is_json_by_its_subtype_in_any_case(media_type: str) -> None:
    assert decoder.decode(plain(datacontenttype=media_type)).data == UserLeft(name="Bob")


@pytest.mark.parametrize("read", [decoder.decode, lambda body: decoder.decode_large(body, 100)])
def test_a_batch_of_cloudevents_is_refused_by_its_name(read: Callable[[str], object]) -> None:
    with pytest.raises(DecodeError, match=r"not a JSON object but an array, as in the batch mode of CloudEvents"):
        read(f" [{plain()}, {plain()}]")


@pytest.mark.parametrize("name", ["ce_id", "ce-type", "cloudEvents:source", "cloudEvents_id", "CE-ID"])
async def test_binary_mode_without_a_complete_context_is_refused_with_the_missing_names(name: str) -> None:
    reader = MessageReader([UserLeft], PayloadOffload())
    binary = {name: Attribute("String", "x"), "content-type": Attribute("String", "application/json")}
    context = name.lower().replace("cloudevents", "ce").replace(":", "_").replace("-", "_").removeprefix("ce_")
    missing = ", ".join(one for one in ("id", "source", "type") if one != context)

    for body in ('{"name": "Bob"}', "no JSON"):
        with pytest.raises(DecodeError, match=rf"a CloudEvent in binary mode, but they have no {missing}$") as caught:
            await reader.read(Message("1", "r", body, attributes=binary))
        assert caught.value.kind == "not-cloudevent"
    assert (await reader.read(Message("1", "r", plain(), attributes=binary))).data == UserLeft(name="Bob")


def test_the_minor_version_and_new_fields_of_a_newer_producer_are_accepted() -> None:
    envelope = decoder.decode(plain(dataversion="1.99", data={"name": "Bob", "added_later": [1]}, newextension=5))

    assert envelope.data == UserLeft(name="Bob")
    assert envelope.version == "1.99"


def test_two_major_versions_of_a_type_go_to_their_own_classes() -> None:
    class UserLeft2(Event, topic=users, type="user.left", version="2.0"):
        reason: str

    both = Decoder([UserLeft, UserLeft2])

    assert isinstance(both.decode(plain()).data, UserLeft)
    assert isinstance(both.decode(plain(dataversion="2.1", data={"reason": "x"})).data, UserLeft2)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("I am no event", "not-json"),
        ("", "not-json"),
        ('{"specversion":', "not-json"),
        ("[" * 100_000, "not-json"),
        ("[]", "not-cloudevent"),
        ("null", "not-cloudevent"),
        (plain(specversion="0.3"), "not-cloudevent"),
        (plain(id=...), "not-cloudevent"),
        (plain(id=""), "not-cloudevent"),
        (plain(id=7), "not-cloudevent"),
        (plain(dataversion="one"), "not-cloudevent"),
        (plain(datacontenttype="text/xml"), "not-cloudevent"),
        (plain(time="yesterday"), "not-cloudevent"),
        (plain(data={"name": 5}), "invalid-data"),
        (plain(data=...), "invalid-data"),
        (plain(data="text"), "invalid-data"),
        (plain(data=..., data_base64="AAAA"), "invalid-data"),
        (plain(data=..., data_base64="not base64"), "invalid-data"),
        (plain(data=..., data_base64=7), "invalid-data"),
        (plain(data=..., data_base64=base64_of("{")), "invalid-data"),
        (plain(data=..., data_base64=base64_of('{"name": 5}')), "invalid-data"),
        (plain(data={"name": 5}, data_base64=base64_of('{"name": "Bob"}')), "invalid-data"),
        (plain(data=None), "invalid-data"),
        (plain(datacontenttype="image/png", data=..., data_base64="AAAA"), "not-cloudevent"),
        (sns_wrapped("not JSON inside"), "not-json"),
        (sns_wrapped('{"name": "x"}'), "not-cloudevent"),
    ],
)
def test_a_bad_body_says_what_kind_of_bad_it_is(body: str, kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decoder.decode(body)

    assert caught.value.kind == kind


def test_fault_27_a_domain_object_with_a_type_of_its_own_is_not_unwrapped() -> None:
    impostor = json.dumps({"Type": "Notification", "Message": encode(wrap(ADA, source="s"))})

    with pytest.raises(DecodeError, match="not a CloudEvent"):
        decoder.decode(impostor)


def test_fault_27_a_cloudevent_that_looks_like_an_sns_envelope_too_is_a_cloudevent() -> None:
    body = json.loads(plain()) | json.loads(sns_wrapped("inner"))

    assert decoder.decode(json.dumps(body)).data == UserLeft(name="Bob")


def test_data_that_does_not_fit_is_explained_without_repeating_it() -> None:
    with pytest.raises(DecodeError, match=r"does not fit user.left 1.0: data.name") as caught:
        decoder.decode(plain(data={"name": {"secret": "s3cr3t"}}))

    [fault] = caught.value.errors
    assert fault["loc"] == ("data", "name")
    assert "s3cr3t" not in str(caught.value) + str(caught.value.errors)


@pytest.mark.parametrize(
    "changes", [{"type": "user.deleted"}, {"dataversion": "2.0"}, {"dataversion": "0.9"}, {"type": "order.placed"}]
)
def test_an_unknown_type_or_major_version_names_what_is_known(changes: dict[str, str]) -> None:
    with pytest.raises(UnknownEventType, match=r"member.signed_up 1.x, order.placed 2.x, user.left 1.x"):
        decoder.decode(plain(**changes))


@pytest.mark.parametrize("traceparent", ["", "00-zz-zz-01", 5, None, "00-" + "0" * 32 + "-" + "1" * 16 + "-01"])
def test_a_malformed_traceparent_is_ignored(traceparent: object) -> None:
    assert decoder.decode(plain(traceparent=traceparent)).traceparent is None


def test_a_json_media_type_with_parameters_or_suffix_is_json() -> None:
    for media_type in ("application/json; charset=utf-8", "application/vnd.acme+json", None):
        assert decoder.decode(plain(datacontenttype=media_type)).id == "77"


def test_a_single_event_class_decodes_without_a_union() -> None:
    alone = Decoder([UserLeft])

    assert alone.decode(plain()).data == UserLeft(name="Bob")
    with pytest.raises(UnknownEventType, match="'member.signed_up'"):
        alone.decode(plain(type="member.signed_up"))


def test_an_undeclared_event_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not declare a type"):
        Decoder([Event])


def test_two_major_versions_of_a_type_beside_other_types_decode() -> None:
    class Moved(Event, topic=users, type="moved", version="1.0"):
        to: str

    class Moved2(Event, topic=users, type="moved", version="2.0"):
        street: str

    three = Decoder([Moved, Moved2, UserLeft])

    assert three.decode(plain(type="moved", data={"to": "x"})).data == Moved(to="x")
    assert three.decode(plain(type="moved", dataversion="2.7", data={"street": "x"})).data == Moved2(street="x")
    assert three.decode(sns_wrapped(plain())).data == UserLeft(name="Bob")
    with pytest.raises(UnknownEventType, match="moved 1.x, moved 2.x, user.left 1.x"):
        three.decode(plain(type="moved", dataversion="3.0", data={}))


def test_an_absurd_version_is_no_cloudevent_of_ours() -> None:
    with pytest.raises(DecodeError, match="dataversion"):
        decoder.decode(plain(dataversion="9" * 5_000 + ".0"))


class Enrolled(Event, topic=users, type="decoder.enrolled", version="1.0"):
    place: Place


class Place(BaseModel):
    city: str


def test_an_event_class_may_name_one_that_is_written_after_it() -> None:
    body = encode(wrap(Enrolled(place=Place(city="Turin")), source="x"))

    assert Decoder([Enrolled]).decode(body).data == Enrolled(place=Place(city="Turin"))


def test_an_event_class_that_names_what_is_nowhere_is_refused() -> None:
    class Astray(Event, topic=users, type="decoder.astray", version="1.0"):
        place: Place

    class AstrayLater(Event, topic=users, type="decoder.astray", version="2.0"):
        place: Nowhere  # type: ignore[name-defined] # noqa: F821

    for events in ([AstrayLater], [Astray, AstrayLater]):
        with pytest.raises(ConfigError, match="a field of type 'Nowhere', which its module does not define"):
            Decoder(events)


class Gauge(Event, topic=users, type="decoder.gauge", version="1.0"):
    value: float
    label: str = ""


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_number_that_json_does_not_have_is_refused_where_numbers_are_wanted(number: str) -> None:
    body = plain(type="decoder.gauge", data={"value": 1.5}).replace("1.5", number)

    with pytest.raises(DecodeError, match=r"data.value: input should be a finite number") as caught:
        Decoder([Gauge]).decode(body)

    assert caught.value.kind == "invalid-data"


def test_characters_that_sqs_refuses_arrive_as_escapes_and_a_lone_surrogate_is_not_json() -> None:
    odd = "a\u0000b\ufffe\uffffc"
    arrived = Decoder([Gauge]).decode(plain(type="decoder.gauge", data={"value": 1, "label": odd}))

    assert arrived.data == Gauge(value=1, label=odd)
    with pytest.raises(DecodeError, match="the body is not JSON: .*hex escape") as caught:
        Decoder([Gauge]).decode(plain(type="decoder.gauge", data={"value": 1, "label": "\ud800"}))
    assert caught.value.kind == "not-json"


class Told:
    """A plugin of Pydantic's, as Logfire's is."""

    def __init__(self) -> None:
        self.entered: list[str] = []

    def new_schema_validator(self, *_: object) -> tuple[None, Told, None]:
        return None, self, None

    def on_enter(self, body: str, **_: object) -> None:
        self.entered.append(body)


def test_a_plugin_of_pydantics_is_told_of_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    told, body = Told(), plain()
    monkeypatch.setattr("pydantic.plugin._loader._plugins", {"told": told})

    Decoder([UserLeft]).decode(body)

    assert told.entered == [body]


def test_a_validator_that_fails_makes_a_decode_error_beside_a_plugin_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydantic.plugin._loader._plugins", {"told": Told()})

    class Broken(Event, topic=users, type="decoder.broken", version="1.0"):
        name: str

        @field_validator("name")
        @classmethod
        def check(cls, name: str) -> str:
            raise LookupError(name)

    with pytest.raises(DecodeError, match="a validator of the event class failed: LookupError: .*Ada") as caught:
        Decoder([Broken]).decode(plain(type="decoder.broken", data={"name": "Ada"}))
    assert caught.value.kind == "invalid-data"


@pytest.mark.parametrize("length", [1, 255])
def test_the_type_of_an_event_has_1_to_255_characters(length: int) -> None:
    class Named(Event, topic=Topic("named"), type="n" * length, version="1.0"):
        pass

    assert Decoder([Named]).decode(encode(wrap(Named(), source="test"))).data == Named()


def test_a_type_of_one_character_is_one_and_an_empty_one_is_not() -> None:
    with pytest.raises(UnknownEventType):
        decoder.decode(plain(type="x"))
    with pytest.raises(DecodeError, match="not a CloudEvent"):
        decoder.decode(plain(type=""))
