"""Publishes what was committed to the outbox: in order within each group, at least once, never skipping."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from smartpipe.batching.batcher import Chunker
from smartpipe.batching.resend import send_with_retries
from smartpipe.errors import ConfigError, SmartpipeError, StoreError, TransportError
from smartpipe.idempotency.stores.database import FAULTS, DatabaseUrl
from smartpipe.idempotency.stores.migrate import missing_migrations
from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES, MAX_MESSAGE_BYTES
from smartpipe.outbox.backlog import BacklogReader, read_backlog
from smartpipe.outbox.rows import UnreadableRow, storable, waiting_of
from smartpipe.outbox.statements import CLEAN_UP, FAILED, PARK_LOST, PUBLISHED, TAKE_LANES, WAITING_ROWS
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
    from smartpipe.outbox.rows import Waiting
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.relay")

_Mark = tuple[int, int, str, float, bool]
"""Of a row that was not published: its id, attempts, error, seconds until the next try, and whether it is parked."""

CHANNEL = "smartpipe_outbox"
CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 60.0
DELIVER_SECONDS = 10.0
MAX_BYTES = 33_554_432
"""Of one transaction's rows, payloads included; the first is taken whatever its size."""
CLEAN_UP_EVERY_SECONDS = 60.0
CLEAN_UP_ROWS = 10_000
MAX_WAIT_SECONDS = 300
MAX_ATTEMPTS = 2_147_483_647
"""The column is an integer."""
SURROUNDINGS = frozenset(
    {
        "AccessDenied", "ConfigError", "InvalidClientTokenId", "InvalidSignatureException", "NoCredentials",
        "NoRegion", "NotFound", "PayloadNotPut", "QueueDoesNotExist", "RequestTimeTooSkewed", "SSLError",
        "SignatureDoesNotMatch", "TransportClosed", "UnrecognizedClientException",
    }
)  # fmt: skip
"""What is refused for want of rights, credentials, a topic, a right clock or certificate: no row is to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """How a relay works.

    Args:
        rows: Taken in one transaction: 1 to 10,000.
        lanes: Of the 64, locked at once: fewer leave more to other relays.
        attempts: A row that SNS or SQS refuses for good is parked, with its error, after so many tries, which take
            some quarter of an hour by default. Outages, throttling, missing rights or topics are never counted.
        poll_seconds: How often it looks without being woken.
        retention_seconds: For how long a published row is kept. Default a day.
    """

    rows: int = 1_000
    lanes: int = 32
    attempts: int = 10
    poll_seconds: float = 5.0
    retention_seconds: float = 86_400.0

    def __post_init__(self) -> None:
        """Check everything, and report it together."""
        problems = [
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
        if problems:
            raise ConfigError(problems)


class Relay:
    """One relay; many may share an outbox.

    A relay locks lanes, publishes what is in them, and marks it in the same transaction: killed anywhere, what it
    had not marked is published again with the same event id.

    A row that cannot be read is parked at once, with the reason in ``error``, and the rows behind it go on.

    Through a connection pooler ``LISTEN`` does not work, so the relay then looks every ``poll_seconds`` only.

    Args:
        transport: Closed by whoever made it.

    Raises:
        ConfigError: *url* is not PostgreSQL's, or cannot be read.
    """

    def __init__(self, url: str, transport: Transport, options: RelayOptions | None = None) -> None:
        self._database = DatabaseUrl.read(url, "SMARTPIPE_OUTBOX_URL")
        self._transport = transport
        self.options = options or RelayOptions()
        self._payloads = PayloadOffload()
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self.backlog_reader = BacklogReader(self._database)
        self.published = 0
        self.failing = True

    def stop(self) -> None:
        """Let ``run`` end when what it publishes now is marked. A second call does nothing."""
        self._stopping.set()
        self._woken.set()

    async def run(self) -> None:
        """Publish until stopped; while the database or AWS cannot be reached, try on.

        Raises:
            ConfigError: The tables are not there: with the command that makes them. Or the URL leads to a connection
                pooler in statement mode.
        """
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._relay()
            except FAULTS as error:
                failures = failures + 1 if self.failing else 1
                fault = self._database.fault("outbox", error)
                log.error("Cannot read the outbox, retrying: %s", fault)  # noqa: TRY400
                self.failing = True
                await self._sleep(backoff_seconds(OUTAGE_WAITS, failures, fault))

    async def aclose(self) -> None:
        """Release connections to the database and to S3. A second call does nothing."""
        await self.backlog_reader.aclose()
        await self._payloads.aclose()

    async def _relay(self) -> None:
        """Publish, on connections of one life, until stopped."""
        async with self._working() as (connection, listening):
            if listening is not None:
                await listening.add_listener(CHANNEL, lambda *_: self._woken.set())
                listening.add_termination_listener(lambda _: self._woken.set())
            await self._publish_until_stopped(connection, listening)

    @asynccontextmanager
    async def _working(self) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection | None]]:
        """Give the connection to work on and, unless there is a pooler, another one to listen on."""
        async with self._connected() as first:
            pooled = await self._database.is_pooled(first)
            missing = await missing_migrations(first, "outbox")
            if missing:
                raise ConfigError(f"{self._database.server} lacks {', '.join(missing)}: run smartpipe store migrate")
            if pooled:
                yield first, None
            else:
                async with self._connected(**self._database.cache_options(pooled=False)) as second:
                    yield second, first

    async def _publish_until_stopped(
        self, connection: asyncpg.Connection, listening: asyncpg.Connection | None
    ) -> None:
        log.info("relaying the outbox at %s", self._database.server)
        if listening is None:
            log.warning(
                "%s is a connection pooler, through which LISTEN does not work: the relay looks for new events every "
                "%g s; connect it past the pooler to have them published at once",
                self._database.server,
                self.options.poll_seconds,
            )
        self.failing = False
        cleaned_at = float("-inf")
        while not self._stopping.is_set():
            self._woken.clear()
            if listening is not None and listening.is_closed():
                raise ConnectionError("the connection that listens was closed")
            now = asyncio.get_running_loop().time()
            if now - cleaned_at >= CLEAN_UP_EVERY_SECONDS:
                cleaned_at = now
                await self._park_lost(connection)
                await connection.execute(CLEAN_UP, self.options.retention_seconds, CLEAN_UP_ROWS)
            taken, wait_seconds = await self.once(connection)
            if not taken or wait_seconds:
                await self._sleep(wait_seconds or self.options.poll_seconds)

    async def drain(self) -> Backlog:
        """Publish all that waits and can be published now; return what is left.

        Raises:
            ConfigError: The tables are not there, or the URL leads to a connection pooler in statement mode.
            StoreError: The database cannot be reached.
        """
        try:
            async with self._working() as (connection, _):
                await self._park_lost(connection)
                while (await self.once(connection))[0]:
                    continue
                return await read_backlog(connection)
        except FAULTS as error:
            raise self._database.fault("outbox", error) from error

    def _connected(self, **options: Any) -> AbstractAsyncContextManager[asyncpg.Connection]:
        return self._database.connected(timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS, **options)

    async def _park_lost(self, connection: asyncpg.Connection) -> None:
        """Park the rows in lanes that no relay takes."""
        for row in await connection.fetch(PARK_LOST):
            log.error("event %s cannot be read, and is parked: its lane does not exist", row["event_id"])

    async def once(self, connection: asyncpg.Connection) -> tuple[int, float]:
        """Publish what waits now, as far as one transaction goes.

        Returns:
            How many rows were taken, and for how many seconds AWS is better left alone.
        """
        # Not the default of the role: a stricter level would read the rows as they were before the lanes were locked.
        async with connection.transaction(isolation="read_committed"):
            lanes = [row["lane"] for row in await connection.fetch(TAKE_LANES, self.options.lanes)]
            if not lanes:
                return 0, 0.0
            taken = await connection.fetch(WAITING_ROWS, lanes, self.options.rows, MAX_BYTES)
            rows, marks = _read(taken)
            failures = {failure.event.id: failure for failure in await self._publish(rows)}  # type: ignore[attr-defined]
            done = [row.id for row in rows if row.id not in failures]
            await connection.execute(PUBLISHED, done)
            await self._mark(connection, marks + self._marks(rows, failures))
        self.published += len(done)
        outage = bool(rows) and not done and not any(map(_is_poison, failures.values()))
        return len(taken), self.options.poll_seconds if outage else 0.0

    async def _publish(self, rows: Sequence[Waiting]) -> list[PublishFailure]:
        """Publish in requests of ten, many at once, each group in order; return what was not taken."""
        failures: list[PublishFailure] = []
        by_destination: dict[str, list[Waiting]] = {}
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

    async def _deliver(self, chunk: list[Waiting]) -> list[tuple[Waiting, PublishFailure]]:
        failed = await self._send(chunk)
        # For one entry that they cannot read at all, SNS and SQS refuse the whole request: each row answers for itself.
        if len(chunk) > 1 and len(failed) == len(chunk) and all(_is_poison(failure) for _, failure in failed):
            failed = [pair for row in chunk for pair in await self._send([row])]
        return failed

    async def _send(self, chunk: list[Waiting]) -> list[tuple[Waiting, PublishFailure]]:
        verb = self._transport.publish if chunk[0].for_topic else self._transport.send
        send = partial(verb, chunk[0].name)

        async def call(rows: list[Waiting]) -> list[Failure]:
            try:
                return await self._payloads.send([row.message for row in rows], send)
            except TransportError:
                raise
            except (ArithmeticError, AttributeError, LookupError, SmartpipeError, TypeError, ValueError) as error:
                # A transport may fail in its own way on the contents of a row, and that must not end the relay.
                raise TransportError(type(error).__name__, str(error), retryable=False) from error

        failed = await send_with_retries(call, chunk, deadline_seconds=DELIVER_SECONDS)
        return [(row, row.make_failure(failure)) for row, failure in failed]

    def _marks(self, rows: Sequence[Waiting], failures: Mapping[int, PublishFailure]) -> list[_Mark]:
        marks: list[_Mark] = []
        for row in rows:
            failure = failures.get(row.id)
            if failure is None or failure.code == STOPPED.code:
                continue  # whoever waits for one of its group has not been tried itself
            attempts = min(row.attempts + _is_poison(failure), MAX_ATTEMPTS)
            parked = attempts >= self.options.attempts
            seconds = float(min(2 ** max(0, min(attempts, 10)), MAX_WAIT_SECONDS))
            error = storable(f"{failure.code}: {failure.detail}")
            marks.append((row.id, attempts, error, seconds, parked))
            if parked:
                log.error("event %s was refused %d times, and is parked: %s", row.event_id, attempts, error)
            elif _is_poison(failure):
                log.warning("event %s was refused, will retry in %d s: %s", row.event_id, seconds, error)
        return marks

    async def _mark(self, connection: asyncpg.Connection, marks: Sequence[_Mark]) -> None:
        if marks:
            await connection.execute(FAILED, *map(list, zip(*marks, strict=True)))

    async def backlog(self) -> Backlog:
        """Return the backlog, at most 5 s old, or older while the database cannot be asked.

        Raises:
            StoreError: It never could, or has not answered yet.
        """
        seen = await self.backlog_reader.last()
        if seen is None:
            raise StoreError(f"backlog at {self._database.server}: no answer")
        return seen.backlog

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()


def _is_poison(failure: PublishFailure) -> bool:
    """Whether the row itself is at fault, not AWS nor what this relay may do there."""
    return not failure.retryable and failure.code not in SURROUNDINGS


def _read(found: Sequence[asyncpg.Record]) -> tuple[list[Waiting], list[_Mark]]:
    """Return the rows that can be read, and how to park the others: read again they would say the same."""
    rows: list[Waiting] = []
    marks: list[_Mark] = []
    for row in found:
        try:
            rows.append(waiting_of(dict(row)))
        except UnreadableRow as error:
            log.error("event %s cannot be read, and is parked: %s", row["event_id"], error)  # noqa: TRY400
            marks.append((row["id"], row["attempts"], storable(f"UnreadableRow: {error}"), 0.0, True))
    return rows, marks
