"""Converts events to rows of ``smartpipe_outbox``, and rows to messages. Pure."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from smartpipe.envelope.pointer import read_pointer
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
"""PostgreSQL limits a row in a result to about twice this size."""
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
# SQS SendMessage, MessageAttributeValue: String, Number or Binary, with an optional label, at most 256 characters.
_DATA_TYPE = re.compile(r"(String|Number)(\.[!-~]{1,249})?")


def row_of(outgoing: PreparedEvent) -> dict[str, Any]:
    """Return the values of *outgoing* by column.

    Messages of one group for a FIFO destination share a lane. All others are distributed over the lanes by their id.
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
    """Return *row* as the one value for ``insert_statement``: JSON in Base64, so it needs no quoting."""
    return b64encode(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()).decode()


def insert_statement(document: str) -> str:
    """Return the statement that inserts the row of one document.

    The database splits the document into columns, so no value passes through the caller's codecs, adapters,
    ``client_encoding`` or ``standard_conforming_strings``. An INSERT with 11 values would depend on all of them.

    Args:
        document: An SQL expression: a placeholder, or the document as a literal.
    """
    columns = ", ".join(_COLUMNS)
    types = ", ".join(f"{name} {type_}" for name, type_ in _COLUMNS.items())
    return (
        f"INSERT INTO smartpipe_outbox ({columns}) SELECT {columns} "  # noqa: S608 - constants, Base64, placeholder
        f"FROM json_to_record(CAST(convert_from(decode({document}, 'base64'), 'UTF8') AS json)) AS event ({types})"
    )


class WaitingRow(NamedTuple):
    """A row that waits to be published."""

    id: int
    event_id: str
    ordered_group: str | None
    destination: str
    attempts: int
    message: OutgoingMessage

    @property
    def for_topic(self) -> bool:
        """Whether its destination is a topic; otherwise it is a queue."""
        return self.destination.startswith("topic:")

    @property
    def name(self) -> str:
        """The name or ARN of the topic or queue, as declared."""
        return self.destination.partition(":")[2]

    def make_failure(self, failure: Failure) -> PublishFailure:
        """Return the failure of this row. It has the row in place of the event, which the relay does not need."""
        return PublishFailure(self, self.event_id, failure.code, failure.detail, failure.retryable)  # type: ignore[arg-type]


class UnreadableRow(Exception):
    """A row that can never become a message. The text says which column is wrong, and why."""


def read_row(row: Mapping[str, Any]) -> WaitingRow:
    """Read a row and check every column, because SNS and SQS refuse a whole batch for some errors in one entry.

    Raises:
        UnreadableRow: The row can never be published.
    """
    fifo = _is_fifo(row["destination"])
    body = _body_of(row)
    attributes = _attributes_of(row["attributes"])
    for name, value in (("group_id", row["group_id"]), ("deduplication_id", row["deduplication_id"])):
        if value is None:
            if fifo:
                raise UnreadableRow(f"{name} is missing, but a FIFO topic or queue requires it")
        elif not MESSAGE_ID.fullmatch(value):
            raise UnreadableRow(f"{name} is not 1 to 128 letters, digits and punctuation marks of ASCII")
    delay_seconds = row["delay_seconds"]
    if not 0 <= delay_seconds <= MAX_DELAY_SECONDS:
        raise UnreadableRow(f"delay_seconds={delay_seconds} is outside of 0 to {MAX_DELAY_SECONDS}")
    if delay_seconds and (fifo or row["destination"].startswith("topic:")):
        raise UnreadableRow(f"delay_seconds={delay_seconds}: only standard queues can delay single messages")
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
    return WaitingRow(row["id"], row["event_id"], group, row["destination"], row["attempts"], message)


def storable_text(text: str) -> str:
    """Return *text* for the column ``error``: shortened, without NULs and lone surrogates."""
    return text[:MAX_ERROR_LENGTH].replace("\0", "").encode("utf-8", "replace").decode()


@lru_cache(maxsize=1024)
def _is_fifo(destination: str) -> bool:
    kind, _, name = destination.partition(":")
    fifo = name.endswith(FIFO_SUFFIX)
    try:
        if kind == "topic":
            _ = Topic(arn=name) if is_arn(name) else Topic(name, fifo=fifo)
        elif kind == "queue":
            Queue(name, fifo=fifo, existing=True, dead_letter="any")  # so that a name may have all 80 characters
        else:
            raise UnreadableRow("destination is neither topic:NAME nor queue:NAME")
    except ConfigError as error:
        raise UnreadableRow(f"destination is neither topic:NAME nor queue:NAME: {error}") from None
    return fifo


def _body_of(row: Mapping[str, Any]) -> str:
    body: str | None = row["body"]
    if body is None:
        raise UnreadableRow(f"body has {row['body_bytes']:,} bytes; SNS and SQS accept at most {MAX_MESSAGE_BYTES:,}")
    # Printable ASCII is always valid, and this check of most bodies takes a tenth of the time.
    if not (body and body.isascii() and body.isprintable()) and not MESSAGE_TEXT.fullmatch(body):
        raise UnreadableRow("body is empty" if not body else "body has characters that SNS and SQS do not accept")
    return body


def _attributes_of(text: str | None) -> Mapping[str, Attribute]:
    """Return the attributes. Short ones are cached, because most events have only the type."""
    if text is None:
        raise UnreadableRow(f"attributes have more than {MAX_MESSAGE_BYTES:,} bytes")
    return _parse_cached(text) if len(text) <= MAX_CACHED_LENGTH else _parse(text)


def _parse(text: str) -> Mapping[str, Attribute]:
    """Parse attributes. A jsonb codec of the application may have encoded them twice; then decode them twice."""
    try:
        found = json.loads(text)
        if isinstance(found, str):
            found = json.loads(found)
    except (ValueError, RecursionError):
        raise UnreadableRow("attributes are not JSON, or are nested too deeply") from None
    if not isinstance(found, dict):
        raise UnreadableRow("attributes are not a JSON object")
    if len(found) > MAX_ATTRIBUTES:
        raise UnreadableRow(f"there are {len(found)} attributes; a message has at most {MAX_ATTRIBUTES}")
    return MappingProxyType({name: _attribute_of(name, pair) for name, pair in found.items()})


_parse_cached = lru_cache(maxsize=1024)(_parse)


def _attribute_of(name: str, pair: object) -> Attribute:
    match pair:
        case [str(data_type), str(value)] if (
            ATTRIBUTE_NAME.fullmatch(name) and _DATA_TYPE.fullmatch(data_type) and MESSAGE_TEXT.fullmatch(value)
        ):
            return Attribute(data_type, value)
    raise UnreadableRow(f'attribute {name[:100]!r} is not [data type, value], as in ["String", "order.placed"]')


def _payload_of(row: Mapping[str, Any]) -> Any:
    if row["payload_bytes"] > MAX_PAYLOAD_BYTES:
        raise UnreadableRow(f"payload has {row['payload_bytes']:,} bytes; the maximum is {MAX_PAYLOAD_BYTES:,}")
    if not row["payload"]:
        return None
    try:
        return read_pointer(row["body"])._replace(text=row["payload"])
    except (DecodeError, RecursionError):
        raise UnreadableRow("there is a payload, but the body does not point to S3") from None
