"""Writes events into the service's own transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.envelope.encode import source_problems
from smartpipe.envelope.encoding import BodyEncoding
from smartpipe.errors import ConfigError
from smartpipe.outbox.connections import write, write_blocking
from smartpipe.outbox.rows import document_of, row_of
from smartpipe.publisher.prepare import Publication, prepare, queue_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.events import Event
    from smartpipe.outbox.connections import AsyncConnection, BlockingConnection
    from smartpipe.topics import Queue


class Outbox:
    """Publishes events by way of the database: ``smartpipe relay`` sends what was committed, and nothing else.

    It holds no connection and needs no closing. The table is made by ``smartpipe store migrate``. Large events are
    packed as a Publisher does it; the relay puts into S3 what has to be there.

    Args:
        source: CloudEvents ``source`` of what it publishes, as of a Publisher.

    Raises:
        ConfigError: A source that is empty or longer than 256 characters, or faulty settings in the environment.
    """

    def __init__(self, source: str) -> None:
        if problems := source_problems("Outbox", source):
            raise ConfigError(problems)
        self.source = source
        self._packing = BodyEncoding.from_environment()

    async def publish(
        self,
        event: Event,
        *,
        connection: AsyncConnection,
        queue: Queue | str | None = None,
        delay_seconds: float | None = None,
        attributes: Mapping[str, str] | None = None,
        autocommit: bool = False,
    ) -> str:
        """Write *event* into the transaction that *connection* is in, and return its envelope id.

        It is published some milliseconds after the commit, at least once, always with this id; after a
        rollback never. In a handler the id is the same at its next attempt. Events of one key for a FIFO
        topic keep the order in which they were written, as far as their transactions committed in it.

        Args:
            connection: asyncpg's Connection, SQLAlchemy's AsyncConnection or AsyncSession, or psycopg's
                AsyncConnection. Its codecs, row factories and session settings do not matter, but its
                ``search_path`` must lead to the table.
            autocommit: Allow a connection that commits each statement by itself, so that the event is published
                even if the rest fails: asyncpg's outside of a transaction, or one in autocommit mode.

        Raises:
            EventTooLarge, PublishError: It can never be published so; the transaction is left as it was.
            ConfigError: Its class declares no type; or *connection* is something else, is closed, or commits by
                itself without *autocommit*. Nothing was written.
        """
        row = self._row(event, queue, delay_seconds, attributes)
        await write(connection, document_of(row), autocommit=autocommit)
        return str(row["event_id"])

    def publish_blocking(
        self,
        event: Event,
        *,
        connection: BlockingConnection,
        queue: Queue | str | None = None,
        delay_seconds: float | None = None,
        attributes: Mapping[str, str] | None = None,
        autocommit: bool = False,
    ) -> str:
        """Do the same in blocking code, with SQLAlchemy's Connection or Session, or psycopg's; see ``publish``."""
        row = self._row(event, queue, delay_seconds, attributes)
        write_blocking(connection, document_of(row), autocommit=autocommit)
        return str(row["event_id"])

    def _row(
        self, event: Event, queue: Queue | str | None, delay_seconds: float | None, attributes: Mapping[str, str] | None
    ) -> dict[str, Any]:
        publication = Publication(event, attributes, queue_of(queue), delay_seconds)
        return row_of(prepare(publication, source=self.source, packing=self._packing))
