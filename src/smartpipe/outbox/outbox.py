"""Writes events into the service's own transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.envelope import source_problems
from smartpipe.errors import ConfigError
from smartpipe.outbox.rows import COLUMNS, insert, row_of
from smartpipe.outgoing import Publication, prepare, queue_named
from smartpipe.payloads.packing import Packing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.events import Event
    from smartpipe.topology.model import Queue

_ASYNCPG = insert([f"${number}" for number in range(1, len(COLUMNS) + 1)])
_NAMED = insert([f"CAST(:{name} AS jsonb)" if name == "attributes" else f":{name}" for name in COLUMNS])


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
        self._packing = Packing.from_environment()

    async def publish(
        self,
        event: Event,
        *,
        connection: Any,
        queue: Queue | str | None = None,
        delay_seconds: float | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """Write *event* into the transaction that *connection* is in, and return its envelope id.

        It is published some milliseconds after the commit, at least once, always with this id; after a
        rollback never. In a handler the id is the same at its next attempt. Events of one key for a FIFO topic keep the order in which they were written, as far
        as their transactions committed in it.

        Args:
            connection: asyncpg's Connection, or SQLAlchemy's AsyncConnection or AsyncSession. Outside of a
                transaction it is committed by itself, as the connection does.

        Raises:
            EventTooLarge, PublishError: It can never be published so; the transaction is left as it was.
            ConfigError: Its class declares no type, or *connection* is something else.
        """
        row = self._row(event, queue, delay_seconds, attributes)
        if _is_sqlalchemy(connection):
            await connection.execute(_text(), row)
        elif hasattr(connection, "is_in_transaction"):
            await connection.execute(_ASYNCPG, *(row[name] for name in COLUMNS))
        else:
            raise ConfigError(_WRONG.format(found=type(connection).__name__))
        return str(row["event_id"])

    def publish_blocking(
        self,
        event: Event,
        *,
        connection: Any,
        queue: Queue | str | None = None,
        delay_seconds: float | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """Do the same in blocking code, with SQLAlchemy's Connection or Session; see ``publish``."""
        if not _is_sqlalchemy(connection):
            raise ConfigError(_WRONG.format(found=type(connection).__name__))
        row = self._row(event, queue, delay_seconds, attributes)
        connection.execute(_text(), row)
        return str(row["event_id"])

    def _row(
        self, event: Event, queue: Queue | str | None, delay_seconds: float | None, attributes: Mapping[str, str] | None
    ) -> dict[str, Any]:
        publication = Publication(event, attributes, queue_named(queue), delay_seconds)
        return row_of(prepare(publication, source=self.source, packing=self._packing))


_WRONG = (
    "outbox.publish(connection={found}): give it the asyncpg Connection, or the SQLAlchemy connection or session, "
    "that the transaction is open on"
)


def _is_sqlalchemy(connection: Any) -> bool:
    return any(cls.__module__.startswith("sqlalchemy.") for cls in type(connection).__mro__)


def _text() -> Any:
    from sqlalchemy import text  # the caller has it, or it could not have come here

    return text(_NAMED)
