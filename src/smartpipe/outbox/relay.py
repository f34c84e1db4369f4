"""Publishes what was committed to the outbox: in order within each group, at least once, never skipping."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from smartpipe.effects.stores import shown
from smartpipe.effects.stores.migrate import missing_migrations
from smartpipe.errors import ConfigError, StoreError
from smartpipe.outbox.rows import waiting_of
from smartpipe.outbox.statements import CLEAN_UP, FAILED, LAG, PUBLISHED, TAKE_LANES, WAITING_ROWS
from smartpipe.payloads.payloads import Payloads
from smartpipe.publishing.attempts import deliver
from smartpipe.publishing.bulk import MAX_IN_FLIGHT, STOPPED, Requests
from smartpipe.publishing.chunks import Chunker
from smartpipe.retry import OUTAGE_WAITS, backoff_seconds
from smartpipe.topology.model import DEFAULT_TOPIC_LIMIT_BYTES, QUEUE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.errors import PublishFailure
    from smartpipe.message import Failure
    from smartpipe.outbox.rows import Waiting
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.relay")

CHANNEL = "smartpipe_outbox"
CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 60.0
DELIVER_SECONDS = 10.0
MAX_BYTES = 33_554_432
"""Of one transaction's rows, payloads included; the first is taken whatever its size."""
CLEAN_UP_EVERY_SECONDS = 60.0
CLEAN_UP_ROWS = 10_000
MAX_WAIT_SECONDS = 300
SURROUNDINGS = frozenset(
    {
        "AccessDenied", "InvalidClientTokenId", "InvalidSignatureException", "NoCredentials", "NoRegion", "NotFound",
        "PayloadNotPut", "QueueDoesNotExist", "RequestTimeTooSkewed", "SSLError", "SignatureDoesNotMatch",
        "TransportClosed", "UnrecognizedClientException",
    }
)  # fmt: skip
"""What is refused for want of rights, credentials, a topic, a right clock or certificate: no row is to blame."""
_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


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


class Backlog(NamedTuple):
    """What waits in the outbox, what was parked, and how old the oldest that waits is."""

    waiting: int
    parked: int
    lag_seconds: float


class Relay:
    """One relay; many may share an outbox.

    A relay locks lanes, publishes what is in them, and marks it in the same transaction: killed anywhere, what it
    had not marked is published again with the same event id.

    Args:
        transport: Closed by whoever made it.
    """

    def __init__(self, url: str, transport: Transport, options: RelayOptions | None = None) -> None:
        self._url = url
        self._transport = transport
        self.options = options or RelayOptions()
        self._payloads = Payloads()
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self.published = 0
        self.failing = True

    def stop(self) -> None:
        """Let ``run`` end when what it publishes now is marked. A second call does nothing."""
        self._stopping.set()
        self._woken.set()

    async def run(self) -> None:
        """Publish until stopped; while the database or AWS cannot be reached, try on.

        Raises:
            ConfigError: The tables are not there: with the command that makes them.
        """
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._relay()
            except _FAULTS as error:
                failures = failures + 1 if self.failing else 1
                fault = StoreError(f"outbox at {shown(self._url)}: {error or type(error).__name__}")
                log.error("the outbox cannot be read for now, trying on: %s", fault)  # noqa: TRY400
                self.failing = True
                await self._sleep(backoff_seconds(OUTAGE_WAITS, failures, fault))

    async def aclose(self) -> None:
        """Release connections to S3. A second call does nothing."""
        await self._payloads.aclose()

    async def _relay(self) -> None:
        """Publish, on connections of one life, until stopped."""
        async with _connected(self._url) as connection, _connected(self._url) as ear:
            await self._checked(connection)
            await ear.add_listener(CHANNEL, lambda *_: self._woken.set())
            ear.add_termination_listener(lambda _: self._woken.set())
            log.info("relaying the outbox at %s", shown(self._url))
            self.failing = False
            cleaned_at = 0.0
            while not self._stopping.is_set():
                self._woken.clear()
                if ear.is_closed():
                    raise ConnectionError("the connection that listens was closed")
                taken, wait_seconds = await self.once(connection)
                now = asyncio.get_running_loop().time()
                if now - cleaned_at >= CLEAN_UP_EVERY_SECONDS:
                    cleaned_at = now
                    await connection.execute(CLEAN_UP, self.options.retention_seconds, CLEAN_UP_ROWS)
                if not taken or wait_seconds:
                    await self._sleep(wait_seconds or self.options.poll_seconds)

    async def drain(self) -> Backlog:
        """Publish all that waits and can be published now; return what is left.

        Raises:
            ConfigError: The tables are not there.
            StoreError: The database cannot be reached.
        """
        try:
            async with _connected(self._url) as connection:
                await self._checked(connection)
                while (await self.once(connection))[0]:
                    continue
        except _FAULTS as error:
            raise StoreError(f"outbox at {shown(self._url)}: {error or type(error).__name__}") from error
        return await self.backlog()

    async def _checked(self, connection: asyncpg.Connection) -> None:
        missing = await missing_migrations(connection, "outbox")
        if missing:
            raise ConfigError(f"{shown(self._url)} lacks {', '.join(missing)}: run smartpipe store migrate")

    async def once(self, connection: asyncpg.Connection) -> tuple[int, float]:
        """Publish what waits now, as far as one transaction goes.

        Returns:
            How many rows were taken, and for how many seconds AWS is better left alone.
        """
        async with connection.transaction():
            lanes = [row["lane"] for row in await connection.fetch(TAKE_LANES, self.options.lanes)]
            if not lanes:
                return 0, 0.0
            rows = [
                waiting_of(dict(row))
                for row in await connection.fetch(WAITING_ROWS, lanes, self.options.rows, MAX_BYTES)
            ]
            failures = {failure.event_id: failure for failure in await self._publish(rows)}
            done = [row.id for row in rows if row.event_id not in failures]
            await connection.execute(PUBLISHED, done)
            await self._mark(connection, rows, failures)
        self.published += len(done)
        outage = bool(rows) and not done and not any(map(_is_poison, failures.values()))
        return len(rows), self.options.poll_seconds if outage else 0.0

    async def _publish(self, rows: Sequence[Waiting]) -> list[PublishFailure]:
        """Publish in requests of ten, many at once, each group in order; return what was not taken."""
        failures: list[PublishFailure] = []
        by_destination: dict[str, list[Waiting]] = {}
        for row in rows:
            by_destination.setdefault(row.destination, []).append(row)
        async with Requests[Any](self._deliver, failures, MAX_IN_FLIGHT) as requests:
            for waiting in by_destination.values():
                limit = DEFAULT_TOPIC_LIMIT_BYTES if waiting[0].for_topic else QUEUE_LIMIT_BYTES
                chunker = Chunker[Any](limit, lambda row: row.message.size_bytes, lambda row: row.ordered_group)
                for row in waiting:
                    full = chunker.add(row)
                    if full is not None:
                        await requests.start(full)
                if chunker:
                    await requests.start(chunker.take())
        return failures

    async def _deliver(self, chunk: list[Waiting]) -> list[tuple[Waiting, PublishFailure]]:
        verb = self._transport.publish if chunk[0].for_topic else self._transport.send
        send = partial(verb, chunk[0].name)

        async def call(rows: list[Waiting]) -> list[Failure]:
            return await self._payloads.send([row.message for row in rows], send)

        failed = await deliver(call, chunk, deadline_seconds=DELIVER_SECONDS)
        return [(row, row.failed(failure)) for row, failure in failed]

    async def _mark(
        self, connection: asyncpg.Connection, rows: Sequence[Waiting], failures: dict[str, PublishFailure]
    ) -> None:
        marks = []
        for row in rows:
            failure = failures.get(row.event_id)
            if failure is None or failure.code == STOPPED.code:
                continue  # whoever waits for one of its group has not been tried itself
            attempts = row.attempts + _is_poison(failure)
            parked = attempts >= self.options.attempts
            seconds = float(min(2 ** min(attempts, 10), MAX_WAIT_SECONDS))
            marks.append((row.id, attempts, f"{failure.code}: {failure.detail}", seconds, parked))
            if parked:
                log.error("event %s is parked after %d attempts: %s", row.event_id, attempts, failure.detail)
            elif _is_poison(failure):
                log.warning("event %s is refused, tried again in %d s: %s", row.event_id, seconds, failure.detail)
        if marks:
            await connection.execute(FAILED, *map(list, zip(*marks, strict=True)))

    async def backlog(self) -> Backlog:
        """Ask the database what waits; a connection of its own, so not to be asked often.

        Raises:
            StoreError: It cannot be asked.
        """
        try:
            async with _connected(self._url) as connection:
                row = await connection.fetchrow(LAG)
        except _FAULTS as error:
            raise StoreError(f"outbox at {shown(self._url)}: {error or type(error).__name__}") from error
        return Backlog(*row) if row else Backlog(0, 0, 0.0)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()


def _is_poison(failure: PublishFailure) -> bool:
    """Whether the row itself is at fault, not AWS nor what this relay may do there."""
    return not failure.retryable and failure.code not in SURROUNDINGS


class _connected:  # noqa: N801 - a function's name, for it is used as one
    """A connection of asyncpg that is closed at the end, politely if that is quick."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> asyncpg.Connection:
        self._connection = await asyncpg.connect(self._url, timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        try:
            with suppress(*_FAULTS):
                await self._connection.close(timeout=2)
        finally:
            self._connection.terminate()  # what could not be closed politely; else this does nothing
