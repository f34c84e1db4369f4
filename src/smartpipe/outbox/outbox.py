"""Writes events into the outbox, in the service's own transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from smartpipe.envelope.body_encoding import BodyEncoding
from smartpipe.envelope.encode import source_errors
from smartpipe.errors import ConfigError
from smartpipe.outbox.connections import write, write_blocking
from smartpipe.outbox.rows import document_of, row_of
from smartpipe.publisher.prepare import Publication, prepare, read_options

if TYPE_CHECKING:
    from smartpipe.connections import AsyncConnection, BlockingConnection
    from smartpipe.events import Event
    from smartpipe.options import PublishOptions


class Outbox:
    """Publishes events through the database. ``smartpipe relay`` sends only committed events.

    It has no connection and needs no closing. ``smartpipe store migrate`` creates its table. Large events are encoded
    as by a Publisher; the relay writes payloads to S3.

    Args:
        source: CloudEvents ``source`` of the events, as in a Publisher.

    Raises:
        ConfigError: The source is empty, longer than 256 characters or not a URI reference (RFC 3986), or a setting in
            the environment is wrong.
    """

    def __init__(self, source: str) -> None:
        if errors := source_errors("Outbox", source):
            raise ConfigError(errors)
        self.source = source
        self._encoding = BodyEncoding.from_environment()

    async def publish(
        self,
        event: Event,
        *,
        connection: AsyncConnection,
        autocommit: bool = False,
        **options: Unpack[PublishOptions],
    ) -> str:
        """Write *event* in the current transaction of *connection*, and return its envelope id.

        The event is published some milliseconds after the commit, at least once and always with this id. After a
        rollback it is never published. In a handler, the next attempt gets the same id. Events of one key for a FIFO
        topic are published in the order in which they were written, if their transactions commit in this order.

        Args:
            connection: asyncpg's Connection, SQLAlchemy's AsyncConnection or AsyncSession, or psycopg's
                AsyncConnection. Its codecs, row factories and session settings do not matter, but its
                ``search_path`` must lead to the table.
            autocommit: Allow a connection that commits each statement separately, so that the event is published
                even if the rest fails: asyncpg's outside a transaction, or one in autocommit mode.

        Raises:
            EventTooLarge, PublishError: The event can never be published. The transaction is unchanged.
            ConfigError: Its class does not declare a type; or *connection* is an object of another kind, is closed, or
                would commit each statement without *autocommit*. Nothing was written.
        """
        row = self._row(event, **options)
        await write(connection, document_of(row), autocommit=autocommit)
        return str(row["event_id"])

    def publish_blocking(
        self,
        event: Event,
        *,
        connection: BlockingConnection,
        autocommit: bool = False,
        **options: Unpack[PublishOptions],
    ) -> str:
        """Write *event* in blocking code: like ``publish``, with a Connection or Session of SQLAlchemy or psycopg."""
        row = self._row(event, **options)
        write_blocking(connection, document_of(row), autocommit=autocommit)
        return str(row["event_id"])

    def _row(self, event: Event, **options: Unpack[PublishOptions]) -> dict[str, Any]:
        publication = Publication(event, *read_options(**options))
        return row_of(prepare(publication, source=self.source, encoding=self._encoding))
