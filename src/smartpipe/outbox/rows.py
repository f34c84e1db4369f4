"""Events as rows of ``smartpipe_outbox``, and back as messages. Pure."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from smartpipe.envelope.pointer import payload_at
from smartpipe.errors import ConfigError, DecodeError, PublishFailure
from smartpipe.limits import (
    ATTRIBUTE_NAME,
    MAX_ATTRIBUTES,
    MAX_DELAY_SECONDS,
    MAX_MESSAGE_BYTES,
    MESSAGE_ID,
    MESSAGE_TEXT,
)
from smartpipe.message import Attribute, OutgoingMessage, size_bytes
from smartpipe.names import is_arn
from smartpipe.topics import FIFO_SUFFIX, Queue, Topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.message import Failure
    from smartpipe.publisher.prepare import PreparedEvent

LANES = 64
MAX_PAYLOAD_BYTES = 536_870_912
"""PostgreSQL sends at most twice as much in one row."""
MAX_ERROR_LENGTH = 2_000
MAX_CACHED_LENGTH = 1_000
_COLUMNS = {
    "event_id": "text",
    "lane": "integer",
    "ordered_group": "text",
    "destination": "text",
    "body": "text",
    "size_bytes": "integer",
    "attributes": "jsonb",
    "group_id": "text",
    "deduplication_id": "text",
    "delay_seconds": "integer",
    "payload": "text",
}
# SQS SendMessage, MessageAttributeValue: String, Number or Binary, and an optional label, 256 characters in all.
_DATA_TYPE = re.compile(r"(String|Number)(\.[!-~]{1,249})?")


def row_of(outgoing: PreparedEvent) -> dict[str, Any]:
    """Return the values of *outgoing* by column.

    What shares a FIFO destination and a group shares a lane; everything else goes by its id, and so spreads.
    """
    message, destination = outgoing.message, outgoing.destination
    kind = "topic" if isinstance(destination, Topic) else "queue"
    name = f"{kind}:{destination.name}"
    group = f"{name}|{message.group_id}" if destination.fifo else None
    return {
        "event_id": outgoing.event_id,
        "lane": crc32((group or outgoing.event_id).encode()) % LANES,
        "ordered_group": group,
        "destination": name,
        "body": message.body,
        "size_bytes": message.size_bytes,
        "attributes": {name: list(value) for name, value in message.attributes.items()},
        "group_id": message.group_id,
        "deduplication_id": message.deduplication_id,
        "delay_seconds": message.delay_seconds,
        "payload": message.payload.text if message.payload else None,
    }


def document_of(row: Mapping[str, Any]) -> str:
    """Return *row* as the one value that ``insert`` takes: JSON in Base64, so ASCII letters and nothing to quote."""
    return b64encode(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()).decode()


def insert(document: str) -> str:
    """Return the statement that adds the row of one document.

    The database takes the document apart, so nothing in it passes through the caller's codecs, adapters,
    ``client_encoding`` or ``standard_conforming_strings``: an 11-column INSERT would depend on all of them.

    Args:
        document: An SQL expression: a placeholder, or the document as a literal.
    """
    columns = ", ".join(_COLUMNS)
    types = ", ".join(f"{name} {type_}" for name, type_ in _COLUMNS.items())
    return (
        f"INSERT INTO smartpipe_outbox ({columns}) SELECT {columns} "  # noqa: S608 - constants, and Base64 or a placeholder
        f"FROM json_to_record(CAST(convert_from(decode({document}, 'base64'), 'UTF8') AS json)) AS event ({types})"
    )


class Waiting(NamedTuple):
    """A row that waits to be published."""

    id: int
    event_id: str
    ordered_group: str | None
    destination: str
    attempts: int
    message: OutgoingMessage

    @property
    def for_topic(self) -> bool:
        """Whether it is for a topic, or else for a queue."""
        return self.destination.startswith("topic:")

    @property
    def name(self) -> str:
        """The topic's or queue's name, or ARN, as declared."""
        return self.destination.partition(":")[2]

    def make_failure(self, failure: Failure) -> PublishFailure:
        """Say of this row what the service said of its entry; it stands for its event, which nobody needs any more."""
        return PublishFailure(self, self.event_id, failure.code, failure.detail, failure.retryable)  # type: ignore[arg-type]


class UnreadableRow(Exception):
    """A row that cannot become a message, however often it is read; its text says which column is wrong, and how."""


def waiting_of(row: Mapping[str, Any]) -> Waiting:
    """Read a row, and check every column: for some errors in one entry SNS and SQS refuse the whole request of ten.

    Raises:
        UnreadableRow: It can never be published.
    """
    fifo = _is_fifo(row["destination"])
    body = _body_of(row)
    attributes = _attributes_of(row["attributes"])
    for name, value in (("group_id", row["group_id"]), ("deduplication_id", row["deduplication_id"])):
        if value is None:
            if fifo:
                raise UnreadableRow(f"{name} is missing, which a FIFO topic or queue needs")
        elif not MESSAGE_ID.fullmatch(value):
            raise UnreadableRow(f"{name} is not 1 to 128 letters, digits and punctuation marks of ASCII")
    delay_seconds = row["delay_seconds"]
    if not 0 <= delay_seconds <= MAX_DELAY_SECONDS:
        raise UnreadableRow(f"delay_seconds={delay_seconds} is outside of 0 to {MAX_DELAY_SECONDS}")
    if delay_seconds and (fifo or row["destination"].startswith("topic:")):
        raise UnreadableRow(f"delay_seconds={delay_seconds}: only a standard queue delays single messages")
    message = OutgoingMessage(
        body,
        size_bytes(body, attributes),
        attributes,
        row["group_id"],
        row["deduplication_id"],
        delay_seconds,
        _payload_of(row),
    )
    group = row["ordered_group"] or (f"{row['destination']}|{row['group_id']}" if fifo else None)
    return Waiting(row["id"], row["event_id"], group, row["destination"], row["attempts"], message)


def storable(text: str) -> str:
    """Return *text* as the column ``error`` takes it: without NULs and lone surrogates, and not long."""
    return text[:MAX_ERROR_LENGTH].replace("\0", "").encode("utf-8", "replace").decode()


@lru_cache(maxsize=1024)
def _is_fifo(destination: str) -> bool:
    kind, _, name = destination.partition(":")
    fifo = name.endswith(FIFO_SUFFIX)
    try:
        if kind == "topic":
            _ = Topic(arn=name) if is_arn(name) else Topic(name, fifo=fifo)
        elif kind == "queue":
            Queue(name, fifo=fifo, existing=True, dead_letter="any")  # so a name may have all of its 80 characters
        else:
            raise UnreadableRow("destination is neither topic:NAME nor queue:NAME")
    except ConfigError as error:
        raise UnreadableRow(f"destination is neither topic:NAME nor queue:NAME: {error}") from None
    return fifo


def _body_of(row: Mapping[str, Any]) -> str:
    body: str | None = row["body"]
    if body is None:
        raise UnreadableRow(f"body has {row['body_bytes']:,} bytes, and SNS and SQS take {MAX_MESSAGE_BYTES:,} at most")
    # The first two look at most bodies in a tenth of the time; a printable character of ASCII is always taken.
    if not (body and body.isascii() and body.isprintable()) and not MESSAGE_TEXT.fullmatch(body):
        raise UnreadableRow("body is empty" if not body else "body has characters that SNS and SQS do not take")
    return body


def _attributes_of(text: str | None) -> Mapping[str, Attribute]:
    """Return the attributes; most events have the same few, the type alone, so these are read once."""
    if text is None:
        raise UnreadableRow(f"attributes have more than {MAX_MESSAGE_BYTES:,} bytes")
    return _read_once(text) if len(text) <= MAX_CACHED_LENGTH else _read(text)


def _read(text: str) -> Mapping[str, Attribute]:
    """Read attributes; those that a jsonb codec of the application's has encoded twice are decoded twice."""
    try:
        found = json.loads(text)
        if isinstance(found, str):
            found = json.loads(found)
    except (ValueError, RecursionError):
        raise UnreadableRow("attributes are not JSON, or nested too deeply") from None
    if not isinstance(found, dict):
        raise UnreadableRow("attributes are not a JSON object")
    if len(found) > MAX_ATTRIBUTES:
        raise UnreadableRow(f"attributes are {len(found)}, and a message has {MAX_ATTRIBUTES} at most")
    return MappingProxyType({name: _attribute_of(name, pair) for name, pair in found.items()})


_read_once = lru_cache(maxsize=1024)(_read)


def _attribute_of(name: str, pair: object) -> Attribute:
    match pair:
        case [str(data_type), str(value)] if (
            ATTRIBUTE_NAME.fullmatch(name) and _DATA_TYPE.fullmatch(data_type) and MESSAGE_TEXT.fullmatch(value)
        ):
            return Attribute(data_type, value)
    raise UnreadableRow(f'attribute {name[:100]!r} is not [data type, value], as in ["String", "order.placed"]')


def _payload_of(row: Mapping[str, Any]) -> Any:
    if row["payload_bytes"] > MAX_PAYLOAD_BYTES:
        raise UnreadableRow(f"payload has {row['payload_bytes']:,} bytes, and may have {MAX_PAYLOAD_BYTES:,} at most")
    if not row["payload"]:
        return None
    try:
        return payload_at(row["body"])._replace(text=row["payload"])
    except (DecodeError, RecursionError):
        raise UnreadableRow("there is a payload, and the body does not point to S3") from None
