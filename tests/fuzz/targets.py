"""What is fuzzed: functions of bytes that raise nothing but the errors their callers expect, and return little."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import Field

from smartpipe import Event
from smartpipe.cli.dlq import describe
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE, FailedDelivery, copy_with_reason, copy_without_reason
from smartpipe.consumer.decide import DeadLetter
from smartpipe.dlq.messages import read_message
from smartpipe.envelope.compression import decompress
from smartpipe.envelope.decode import Decoder
from smartpipe.envelope.extensions import find_extensions
from smartpipe.envelope.notification import EncodedBody
from smartpipe.envelope.other_data import join_binary_mode
from smartpipe.envelope.pointer import read_pointer, write_pointer
from smartpipe.errors import DecodeError, IgnoredMessage, PayloadError, Reject, UnknownEventType
from smartpipe.external import EventBridgeEvent, S3Notification
from smartpipe.idempotency.stores.records import limit_attempt, limit_lease
from smartpipe.limits import ATTRIBUTE_NAME, MAX_ATTRIBUTES
from smartpipe.message import Attribute, Message, size_bytes
from smartpipe.outbox.rows import UnreadableRow, read_row, storable_text
from smartpipe.raw_messages import RawReader, RawType
from smartpipe.transports.aws.direct import sns as topics
from smartpipe.transports.aws.direct import sqs as queues
from smartpipe.transports.aws.direct.response import Response, ResponseReader
from tests.support.bodies import Demanding, Measured, body_of, measures
from tests.support.forgeries import FORGED

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.envelope import Envelope

QUEUE_LIMIT_BYTES = 1_048_576
LIMIT_BYTES = 200_000
LIMIT_OBJECTS = 1_000
MAX_ERROR_CHARACTERS = 3_000
MAX_ERRORS = 20


class Moved(Event, topic=measures, type="moved", version="3.0"):
    """An event that was published in two older versions."""

    places: list[str]
    notes: dict[str, dict[str, str]] = Field({})


@Moved.upcast(from_version="1")
def _(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"places": [data["from"], data["to"]]}


@Moved.upcast(from_version="2")
def _(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"notes": {name: {"text": note} for name, note in data.get("notes", {}).items()}}


decoder = Decoder([Measured, Demanding, Moved])
REJECTED = DeadLetter("rejected", Reject("no"))
raw_reader = RawReader([RawType(model.__name__, model, None) for model in (S3Notification, EventBridgeEvent[Measured])])
WHERE = FailedDelivery("service", "queue", None, None)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def decode(data: bytes) -> None:
    """Bodies: both ways of decoding agree, and errors are few and short."""
    body = text_of(data)
    small = outcome_of(decoder.decode, body)
    large = outcome_of(lambda text: decoder.decode_large(text, LIMIT_OBJECTS), body)
    assert large in (small, "too-many-values")


def outcome_of(decode: Callable[[str], Envelope], body: str) -> Event | str:
    """Return the event, or the kind of error."""
    try:
        return decode(body).data
    except (DecodeError, UnknownEventType) as error:
        kept, kind = getattr(error, "errors", ()), error.kind
        text = str(error)
    except EncodedBody:
        return "packed"
    assert len(text) < MAX_ERROR_CHARACTERS
    assert len(kept) <= MAX_ERRORS
    return kind


def read_external(data: bytes) -> None:
    """Messages of other systems: binary mode, matchers and models refuse or read any body."""
    name, _, rest = text_of(data).partition(" ")
    value, _, body = rest.partition(" ")
    context = {"ce-id": "1", "ce-source": "s", "ce-type": "measured", f"ce_{name}": value or "?"}
    message = Message("m", "r", body, attributes={key: Attribute("String", one) for key, one in context.items()})
    refused = DecodeError("not-cloudevent", "refused")
    with suppress(DecodeError):
        outcome_of(decoder.decode, join_binary_mode(body, message.attributes, refused))
    find_extensions(message)
    for large in (False, True):
        with suppress(DecodeError, UnknownEventType, IgnoredMessage):
            raw_reader.read(message, body, refused, large=large)


def unpack(data: bytes) -> None:
    """Compressed bodies: no more comes out than is allowed."""
    encoding, _, body = text_of(data).partition(" ")
    with suppress(DecodeError, PayloadError):
        assert len(decompress(body, encoding, LIMIT_BYTES).encode()) <= max(LIMIT_BYTES, len(data) * 3)


def point(data: bytes) -> None:
    """Pointers of the claim check."""
    with suppress(DecodeError):
        payload = read_pointer(text_of(data))
        assert payload.bucket
        assert payload.key


def give_reason(data: bytes) -> None:
    """Reasons of dead letters: SQS takes what goes back, and what goes to the dead-letter queue again."""
    attributes = {f"a{n}": Attribute("String", "v") for n in range(len(data) % 10)}
    attributes[REASON_ATTRIBUTE] = Attribute("String", text_of(data) or "?")
    message = Message("m", "r", "body", attributes=attributes)
    for copy in (copy_without_reason(message), copy_with_reason(message, REJECTED, WHERE)):
        assert len(copy.attributes) <= MAX_ATTRIBUTES
        assert all(ATTRIBUTE_NAME.fullmatch(name) for name in copy.attributes)
        assert copy.size_bytes == size_bytes(copy.body, copy.attributes) <= QUEUE_LIMIT_BYTES
    json.dumps(read_message(message).reason)


def look(data: bytes) -> None:
    """Dead letters on a terminal: printable lines, whatever is in the body and in each attribute."""
    text = text_of(data)
    for attributes in (
        {},
        {"content-encoding": Attribute("String", "gzip"), "type": Attribute("Binary", data)},
        {"ExtendedPayloadSize": Attribute("Number", text[:40]), "type": Attribute("String", text)},
        {REASON_ATTRIBUTE: Attribute("String", text)},
    ):
        lines = describe(read_message(Message("m", "r", text, attributes=attributes)))
        assert all(line.isprintable() for line in lines)


def outbox_row(data: bytes) -> None:
    """Rows of the outbox, with any content."""
    text = text_of(data)
    number = int.from_bytes(data[:4], "big", signed=True)
    parts = [*text.split("|"), *(None,) * 8]
    row = {
        "id": 1,
        "event_id": text,
        "lane": number,
        "ordered_group": parts[0],
        "destination": parts[1] or text,
        "body": parts[2],
        "body_bytes": number,
        "attributes": parts[3],
        "group_id": parts[4],
        "deduplication_id": parts[5],
        "delay_seconds": number % 1_000,
        "payload": parts[6],
        "payload_bytes": number,
        "attempts": 0,
    }
    problem = ""
    try:
        assert len(read_row(row).message.attributes) <= MAX_ATTRIBUTES
    except UnreadableRow as error:
        problem = str(error)
    assert "\0" not in storable_text(problem)


def read_claim(data: bytes) -> None:
    """Numbers of claims."""
    with suppress(ValueError):
        number = float(text_of(data))
        assert 0 <= limit_lease(number) <= 43_200
        assert limit_attempt(number) >= 1


def respond(data: bytes) -> None:
    """Responses of HTTP: fed byte by byte or all together, the same response comes of them, or none."""
    head, _, body = data.partition(b"\r\n\r\n")
    together = response_of([data] if data else [])
    assert together == response_of([data[position : position + 1] for position in range(len(data))])
    assert together is None or len(together.body) <= len(data)
    for read in (queues.read_error, topics.read_error):
        assert set(read(Response(400, [(b"x-amzn-query-error", head)], body))["Error"]) == {"Code", "Message"}
    with suppress(ValueError, KeyError, TypeError, AttributeError):  # a poll that fails by them is tried again
        queues.read_messages(body, 0.0)
    with suppress(ValueError, KeyError):
        topics.read_response(body)


def response_of(pieces: list[bytes]) -> Response | None:
    """Return the first response; None if the pieces are not one."""
    reader = ResponseReader()
    with suppress(ValueError):
        for piece in pieces:
            found = reader.feed(piece)
            if found is not None:
                return found
        return reader.finish()
    return None


GZIPPED = "gzip H4sIAAAAAAAAA0tMTAYAwkEkNQMAAAA="
ROW = '|topic:users|{"a":1}|{"type":["String","x"]}|||'
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n{"Messages":[{"MessageId":"1","ReceiptHandle":"r","Body":"b"}]}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
FAILED = (
    b"HTTP/1.1 400 Bad\r\n\r\n<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code>"
    b"<Message>slow down</Message></Error></ErrorResponse>"
)

TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "decoder": (
        decode,
        [
            *(body_of(data).encode() for data in ('{"numbers":[1,2]}', '{"points":[{"x":1}],"by_name":{"a":1}}', "[]")),
            body_of('{"a":1}', "demanding").encode(),
            body_of('{"from":"a","to":"b","notes":{"a":"\\u00e9"}}', "moved").encode(),
            body_of('{"places":["a"],"notes":[[]]}', "moved").replace('"id"', '"dataversion":"2.1","id"').encode(),
            body_of("0", "moved").replace('"data":0', '"data_base64":"eyJmcm9tIjoiYSIsInRvIjoiYiJ9"').encode(),
            b'{"Type":"Notification","MessageId":"1","TopicArn":"t","Message":"{}"}',
        ],
    ),
    "external": (
        read_external,
        [
            b'type x {"detail-type":"a","detail":{},"id":"1","source":"s","account":"1","time":0,"region":"r"}',
            b'x y {"Records":[{"eventSource":"aws:s3","s3":{"object":{"key":"%"}}}]}',
            b'data {} {"Event":"s3:TestEvent"}',
        ],
    ),
    "compression": (unpack, [GZIPPED.encode(), b"zstd KLUv/SADGQAAYWJj", b"identity abc"]),
    "pointer": (point, [write_pointer("bucket", "key").encode()]),
    "reason": (give_reason, [text.encode()[:4_000] for text in FORGED.values()]),
    "letter": (look, [body_of('{"anything":[1]}').encode(), GZIPPED.encode(), FORGED["unknown fields"].encode()]),
    "row": (outbox_row, [ROW.encode(), b'|queue:q.fifo|b|"{}"|g|d|']),
    "claim": (read_claim, [b"1e309", b"nan", b"-1", b"43200"]),
    "response": (respond, [ANSWER, CHUNKED, FAILED]),
}
