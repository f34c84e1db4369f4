"""Publishes committed events of the outbox: at least once, in order within each group, and without skipping any."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncpg import InsufficientPrivilegeError

from smartpipe.batching.batcher import Chunker
from smartpipe.batching.resend import send_with_retries
from smartpipe.errors import ConfigError, SmartpipeError, StoreError, TransportError
from smartpipe.idempotency.stores.database import DATABASE_ERRORS, DatabaseUrl
from smartpipe.idempotency.stores.migrate import missing_migrations
from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES, MAX_MESSAGE_BYTES
from smartpipe.outbox.backlog import BacklogReader, read_backlog
from smartpipe.outbox.rows import UnreadableRow, read_row, storable_text
from smartpipe.outbox.statements import (
    CLEAN_UP,
    LOCK_LANES,
    MARK_FAILED,
    MARK_PUBLISHED,
    PARK_UNREACHABLE,
    WAITING_ROWS,
)
from smartpipe.payload_offload import PayloadOffload
from smartpipe.publisher.publish_many import MAX_IN_FLIGHT, STOPPED, Requests
from smartpipe.retry import OUTAGE_WAITS, backoff_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from smartpipe.errors import PublishFailure
    from smartpipe.message import Failure
    from smartpipe.outbox.backlog import Backlog
    from smartpipe.outbox.rows import WaitingRow
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.relay")

_FailedRow = tuple[int, int, str, float, bool]
"""A row that was not published: its id, attempts, error, seconds until the next attempt, and whether it is parked."""

CHANNEL = "smartpipe_outbox"
CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 60.0
DELIVER_SECONDS = 10.0
MAX_BYTES = 33_554_432
"""The limit for the rows of one transaction, with payloads. The first row may exceed it."""
CLEAN_UP_EVERY_SECONDS = 60.0
CLEAN_UP_ROWS = 10_000
MAX_WAIT_SECONDS = 300
MAX_ATTEMPTS = 2_147_483_647
"""The maximum of an integer column."""
ENVIRONMENT_ERRORS = frozenset(
    {
        "AccessDenied", "ConfigError", "InvalidClientTokenId", "InvalidSignatureException", "NoCredentials",
        "NoRegion", "NotFound", "PayloadNotPut", "QueueDoesNotExist", "RequestTimeTooSkewed", "SSLError",
        "SignatureDoesNotMatch", "TransportClosed", "UnrecognizedClientException",
    }
)  # fmt: skip
"""Error codes that no row causes: missing permissions, credentials or topics, a wrong clock or certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """The options of a relay.

    Args:
        rows: The maximum number of rows in one transaction: 1 to 10,000.
        lanes: The maximum number of the 64 lanes that it locks at a time. A lower number leaves more to other relays.
        attempts: The number of attempts, 1 to 1,000, after which a row that SNS or SQS refuses permanently is parked
            with its error. By default they take about a quarter of an hour. Outages, throttling, and missing
            permissions or topics are not counted.
        poll_seconds: The interval at which it looks for rows without a notification: 0.1 to 3,600.
        retention_seconds: How long a published row is kept, at most a year. The default is a day.
    """

    rows: int = 1_000
    lanes: int = 32
    attempts: int = 10
    poll_seconds: float = 5.0
    retention_seconds: float = 86_400.0

    def __post_init__(self) -> None:
        """Check the ranges, and report all errors together."""
        errors = [
            f"RelayOptions: {name}={value} is outside of {low:,} to {high:,}"
            for name, value, low, high in (
                ("rows", self.rows, 1, 10_000),
                ("lanes", self.lanes, 1, 64),
                ("attempts", self.attempts, 1, 1_000),
                ("poll_seconds", self.poll_seconds, 0.1, 3_600),
                ("retention_seconds", self.retention_seconds, 0, 31_536_000),
            )
            if not low <= value <= high
        ]
        if errors:
            raise ConfigError(errors)


class Relay:
    """Publishes events from the outbox. Several relays can share an outbox.

    In one transaction, a relay locks lanes, publishes their rows, and marks the rows as published. If it is killed,
    the rows that it has not marked are published again, with the same event ids.

    A row that cannot be read is parked immediately, with the reason in ``error``, and the rows after it are published.

    ``LISTEN`` does not work through a connection pooler. The relay then finds new events only every ``poll_seconds``.

    Args:
        transport: The caller closes it.

    Raises:
        ConfigError: *url* is not a URL of PostgreSQL, or cannot be read.
    """

    def __init__(self, url: str, transport: Transport, options: RelayOptions | None = None) -> None:
        self._database = DatabaseUrl.parse(url, "SMARTPIPE_OUTBOX_URL")
        self._cleans_up = True
        self._transport = transport
        self.options = options or RelayOptions()
        self._payloads = PayloadOffload()
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self.backlog_reader = BacklogReader(self._database)
        self.published = 0
        self.failing = True
        self._blocked: frozenset[str] = frozenset()

    def stop(self) -> None:
        """Make ``run`` end after its current transaction. A second call does nothing."""
        self._stopping.set()
        self._woken.set()

    async def run(self) -> None:
        """Publish until stopped. While the database or AWS is unreachable, keep retrying.

        Raises:
            ConfigError: The tables do not exist; the error has the command that creates them. Or the URL leads to a
                connection pooler in statement mode.
        """
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._relay()
            except DATABASE_ERRORS as error:
                failures = failures + 1 if self.failing else 1
                store_error = self._database.store_error("outbox", error)
                log.error("Cannot read the outbox, retrying: %s", store_error)  # noqa: TRY400
                self.failing = True
                await self._sleep(backoff_seconds(OUTAGE_WAITS, failures, store_error))

    async def aclose(self) -> None:
        """Release connections to the database and to S3. A second call does nothing."""
        await self.backlog_reader.aclose()
        await self._payloads.aclose()

    async def _relay(self) -> None:
        """Publish until stopped, or until a connection fails."""
        async with self._open_connections() as (connection, listening):
            if listening is not None:
                await listening.add_listener(CHANNEL, lambda *_: self._woken.set())
                listening.add_termination_listener(lambda _: self._woken.set())
            await self._publish_until_stopped(connection, listening)

    @asynccontextmanager
    async def _open_connections(self) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection | None]]:
        """Provide a connection for publishing and, unless there is a pooler, another one for ``LISTEN``."""
        async with self._connect() as first:
            pooled = await self._database.is_pooled(first)
            missing = await missing_migrations(first, "outbox")
            if missing:
                raise ConfigError(f"{self._database.server} lacks {', '.join(missing)}: run smartpipe store migrate")
            if pooled:
                yield first, None
            else:
                async with self._connect(**self._database.cache_options(pooled=False)) as second:
                    yield second, first

    async def _publish_until_stopped(
        self, connection: asyncpg.Connection, listening: asyncpg.Connection | None
    ) -> None:
        log.info("relaying the outbox at %s", self._database.server)
        if listening is None:
            log.warning(
                "%s is a connection pooler, through which LISTEN does not work: the relay will look for new events "
                "every %g s; to publish them immediately, connect it directly to the server",
                self._database.server,
                self.options.poll_seconds,
            )
        self.failing = False
        cleaned_at = float("-inf")
        while not self._stopping.is_set():
            self._woken.clear()
            if listening is not None and listening.is_closed():
                raise ConnectionError("the connection for LISTEN was closed")
            now = asyncio.get_running_loop().time()
            if now - cleaned_at >= CLEAN_UP_EVERY_SECONDS:
                cleaned_at = now
                await self._park_unreachable(connection)
                await self._clean_up(connection)
            count, wait_seconds = await self.publish_batch(connection)
            if not count or wait_seconds:
                await self._sleep(wait_seconds or self.options.poll_seconds)

    async def drain(self) -> Backlog:
        """Publish all waiting rows that can be published now, and return the remaining backlog.

        It ends as soon as an outage stops all of them.

        Raises:
            ConfigError: The tables do not exist, or the URL leads to a connection pooler in statement mode.
            StoreError: The database is unreachable.
        """
        try:
            async with self._open_connections() as (connection, _):
                await self._park_unreachable(connection)
                count, wait_seconds = 1, 0.0
                while count and not wait_seconds:
                    count, wait_seconds = await self.publish_batch(connection)
                return await read_backlog(connection)
        except DATABASE_ERRORS as error:
            raise self._database.store_error("outbox", error) from error

    def _connect(self, **options: Any) -> AbstractAsyncContextManager[asyncpg.Connection]:
        return self._database.connect(timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS, **options)

    async def _clean_up(self, connection: asyncpg.Connection) -> None:
        """Delete rows that were published long ago. A relay whose role may not delete them still publishes."""
        try:
            await connection.execute(CLEAN_UP, self.options.retention_seconds, CLEAN_UP_ROWS)
        except InsufficientPrivilegeError as error:
            if self._cleans_up:
                log.warning("Cannot delete published events, so the outbox will grow: %s", error)
            self._cleans_up = False

    async def _park_unreachable(self, connection: asyncpg.Connection) -> None:
        """Park the rows in lanes that no relay locks."""
        for row in await connection.fetch(PARK_UNREACHABLE):
            log.error("Cannot publish event %s, parking it: its lane does not exist", row["event_id"])

    async def publish_batch(self, connection: asyncpg.Connection) -> tuple[int, float]:
        """Publish waiting rows, in one transaction.

        If all rows of a full batch for one destination fail although they are not to blame, the next batch leaves out
        that destination. Otherwise the oldest rows, such as those for a missing topic, would fill every batch.

        Returns:
            The number of rows that were read, and the seconds to wait before the next call to AWS.
        """
        # Not the role's default level: a stricter one would read the rows as they were before the lanes were locked.
        async with connection.transaction(isolation="read_committed"):
            lanes = [row["lane"] for row in await connection.fetch(LOCK_LANES, self.options.lanes)]
            if not lanes:
                return 0, 0.0
            records, alone = await self._fetch(connection, lanes)
            rows, unreadable = _read_rows(records)
            failures = {failure.event.id: failure for failure in await self._publish(rows)}  # type: ignore[attr-defined]
            published = [row.id for row in rows if row.id not in failures]
            await connection.execute(MARK_PUBLISHED, published)
            await self._mark_failed(connection, unreadable + self._failed_rows(rows, failures))
        self.published += len(published)
        outage = bool(rows) and not published and not any(map(_is_poison, failures.values()))
        full = len(records) >= self.options.rows or sum(record["bytes"] for record in records) >= MAX_BYTES
        self._blocked = _find_blocked(rows, failures) if full else frozenset()
        return len(records), self.options.poll_seconds if outage and (alone or not full) else 0.0

    async def _fetch(self, connection: asyncpg.Connection, lanes: list[int]) -> tuple[list[asyncpg.Record], bool]:
        """Return waiting rows, and whether no destinations but the blocked ones have any."""
        limits = self.options.rows, MAX_BYTES
        if self._blocked:
            records = await connection.fetch(WAITING_ROWS, lanes, *limits, list(self._blocked))
            if records:
                return records, False
        return await connection.fetch(WAITING_ROWS, lanes, *limits, []), bool(self._blocked)

    async def _publish(self, rows: Sequence[WaitingRow]) -> list[PublishFailure]:
        """Publish in concurrent requests of ten rows, each group in order, and return the failures."""
        failures: list[PublishFailure] = []
        by_destination: dict[str, list[WaitingRow]] = {}
        for row in rows:
            by_destination.setdefault(row.destination, []).append(row)
        async with Requests[Any](self._deliver, failures, MAX_IN_FLIGHT) as requests:
            for waiting in by_destination.values():
                limit = DEFAULT_TOPIC_LIMIT_BYTES if waiting[0].for_topic else MAX_MESSAGE_BYTES
                chunker = Chunker[Any](limit, lambda row: row.message.size_bytes, lambda row: row.ordered_group)
                for row in waiting:
                    full = chunker.add(row)
                    if full is not None:
                        await requests.start(full)
                if chunker:
                    await requests.start(chunker.take())
        return failures

    async def _deliver(self, chunk: list[WaitingRow]) -> list[tuple[WaitingRow, PublishFailure]]:
        failed = await self._send(chunk)
        # SNS and SQS refuse a whole request for one entry that they cannot read. So send each row separately.
        if len(chunk) > 1 and len(failed) == len(chunk) and all(_is_poison(failure) for _, failure in failed):
            failed = [pair for row in chunk for pair in await self._send([row])]
        return failed

    async def _send(self, chunk: list[WaitingRow]) -> list[tuple[WaitingRow, PublishFailure]]:
        method = self._transport.publish if chunk[0].for_topic else self._transport.send
        send = partial(method, chunk[0].name)

        async def call(rows: list[WaitingRow]) -> list[Failure]:
            try:
                return await self._payloads.send([row.message for row in rows], send)
            except TransportError:
                raise
            except (ArithmeticError, AttributeError, LookupError, SmartpipeError, TypeError, ValueError) as error:
                # A transport may raise other errors for the contents of a row, which must not end the relay.
                raise TransportError(type(error).__name__, str(error), retryable=False) from error

        failed = await send_with_retries(call, chunk, deadline_seconds=DELIVER_SECONDS)
        return [(row, row.make_failure(failure)) for row, failure in failed]

    def _failed_rows(self, rows: Sequence[WaitingRow], failures: Mapping[int, PublishFailure]) -> list[_FailedRow]:
        failed: list[_FailedRow] = []
        for row in rows:
            failure = failures.get(row.id)
            if failure is None or failure.code == STOPPED.code:
                continue  # a row that waits for another one of its group was not sent
            attempts = min(row.attempts + _is_poison(failure), MAX_ATTEMPTS)
            parked = attempts >= self.options.attempts
            seconds = float(min(2 ** max(0, min(attempts, 10)), MAX_WAIT_SECONDS))
            error = storable_text(f"{failure.code}: {failure.detail}")
            failed.append((row.id, attempts, error, seconds, parked))
            if parked:
                log.error("Event %s was refused %d times, parking it: %s", row.event_id, attempts, error)
            elif _is_poison(failure):
                log.warning("Event %s was refused, will retry in %d s: %s", row.event_id, seconds, error)
        return failed

    async def _mark_failed(self, connection: asyncpg.Connection, failed: Sequence[_FailedRow]) -> None:
        if failed:
            await connection.execute(MARK_FAILED, *map(list, zip(*failed, strict=True)))

    async def backlog(self) -> Backlog:
        """Return the backlog, at most 5 s old, or older while the database is unreachable.

        Raises:
            StoreError: The database has not answered yet.
        """
        reading = await self.backlog_reader.read()
        if reading is None:
            raise StoreError(f"backlog at {self._database.server}: no answer")
        return reading.backlog

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()


def _is_poison(failure: PublishFailure) -> bool:
    """Return whether the row itself caused the failure, not AWS or the permissions of this relay."""
    return not failure.retryable and failure.code not in ENVIRONMENT_ERRORS


def _find_blocked(rows: Sequence[WaitingRow], failures: Mapping[int, PublishFailure]) -> frozenset[str]:
    """Return the destinations for which no row was published or is to blame."""
    moving = {row.destination for row in rows if row.id not in failures or _is_poison(failures[row.id])}
    return frozenset(row.destination for row in rows) - moving


def _read_rows(records: Sequence[asyncpg.Record]) -> tuple[list[WaitingRow], list[_FailedRow]]:
    """Return the rows that can be read, and the others, to be parked because a retry cannot help."""
    rows: list[WaitingRow] = []
    unreadable: list[_FailedRow] = []
    for record in records:
        try:
            rows.append(read_row(dict(record)))
        except UnreadableRow as error:
            log.error("Cannot read event %s, parking it: %s", record["event_id"], error)  # noqa: TRY400
            text = storable_text(f"UnreadableRow: {error}")
            unreadable.append((record["id"], record["attempts"], text, 0.0, True))
    return rows, unreadable
