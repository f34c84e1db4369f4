"""Events as rows of ``smartpipe_outbox``, and back as messages. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from smartpipe.errors import PublishFailure
from smartpipe.message import Attribute, OutgoingMessage
from smartpipe.payloads.pointer import payload_at
from smartpipe.topology.model import Topic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.message import Failure
    from smartpipe.outgoing import Outgoing

LANES = 64
COLUMNS = (
    "event_id", "lane", "ordered_group", "destination", "body", "size_bytes", "attributes", "group_id",
    "deduplication_id", "delay_seconds", "payload",
)  # fmt: skip


def row_of(outgoing: Outgoing) -> dict[str, Any]:
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
        "attributes": json.dumps({name: list(value) for name, value in message.attributes.items()}),
        "group_id": message.group_id,
        "deduplication_id": message.deduplication_id,
        "delay_seconds": message.delay_seconds,
        "payload": message.payload.text if message.payload else None,
    }


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

    def failed(self, failure: Failure) -> PublishFailure:
        """Say of this row what the service said of its entry; it stands for its event, which nobody needs any more."""
        return PublishFailure(self, self.event_id, failure.code, failure.detail, failure.retryable)  # type: ignore[arg-type]


def waiting_of(row: Mapping[str, Any]) -> Waiting:
    """Read a row."""
    attributes = {name: Attribute(*value) for name, value in json.loads(row["attributes"]).items()}
    message = OutgoingMessage(
        row["body"],
        row["size_bytes"],
        attributes,
        row["group_id"],
        row["deduplication_id"],
        row["delay_seconds"],
        payload_at(row["body"])._replace(text=row["payload"]) if row["payload"] else None,
    )
    return Waiting(row["id"], row["event_id"], row["ordered_group"], row["destination"], row["attempts"], message)


def insert(placeholders: Sequence[str]) -> str:
    """Return the statement that adds one row, in the caller's style of parameters."""
    return f"INSERT INTO smartpipe_outbox ({', '.join(COLUMNS)}) VALUES ({', '.join(placeholders)})"  # noqa: S608 - constants
