"""Claims in DynamoDB, with one conditional write for each claim."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from botocore.exceptions import ClientError

from smartpipe.errors import ConfigError, SmartpipeError, StoreError
from smartpipe.idempotency.store import Claimed, Completed, InProgress, claim_state
from smartpipe.idempotency.stores.records import limit_attempt, limit_lease, stored_key
from smartpipe.process_guard import ProcessGuard
from smartpipe.settings import AwsSettings
from smartpipe.topology.table_and_bucket import KEY_ATTRIBUTE, TABLE_NAME, find_table_error
from smartpipe.transports.aws.errors import MISSING, classify, code_of
from smartpipe.transports.aws.session import AwsSession

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from smartpipe.idempotency.store import Claim, ClaimOutcome, ClaimState

log = logging.getLogger("smartpipe.stores")

X = TypeVar("X")
T = TypeVar("T")

Item = dict[str, dict[str, str]]
"""An item in DynamoDB's form: each value is under the letter of its type."""

CALL_SECONDS = 5.0
BATCH_SECONDS = 15.0
CONCURRENCY = 32
MAX_KEY_BYTES = 2_048
"""https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html"""

_FREE = (
    "attribute_not_exists(#claim) OR (attribute_type(#expires_at, :number) AND attribute_type(#lease_until, "
    ":number) AND attribute_type(#attempt, :number) AND #expires_at > :now AND "
    "(#state = :released OR (#state = :held AND #lease_until <= :now)))"
)
_HOLD = (
    "SET #token = :token, #state = :held, #lease_until = :lease_until, #expires_at = :expires_at, #attempt = {attempt}"
)
_STATES = frozenset({"held", "completed", "released"})
_MINE = "#token = :token AND #state = :held AND attribute_type(#expires_at, :number) AND #expires_at > :now"


class DynamoStore:
    """Claims in one table. ``smartpipe topology apply`` creates it. Region and credentials come from the AWS variables.

    A condition of DynamoDB cannot read a clock. So leases are compared with the clocks of the processes, which must
    agree to well within a lease, as clocks with NTP do. TTL deletes items days late, so every condition compares
    ``expires_at`` too. It is in whole seconds, rounded up.

    Each claim is a separate call, with at most 32 concurrent calls for each store. Batches of DynamoDB have no
    conditions, except transactions, which fail as a whole.

    Raises:
        ConfigError: As AwsSession, or a setting has an error.
        ValueError: The URL is not ``dynamodb://TABLE``.
    """

    def __init__(self, url: str, *, prefix: str = "") -> None:
        self.table = url.partition("://")[2]
        if not TABLE_NAME.fullmatch(self.table):
            raise ValueError(url)
        self._prefix = prefix
        self._session = AwsSession(AwsSettings.load(), call_timeout_seconds=CALL_SECONDS)
        self._opened: Any = None
        self._guard = ProcessGuard(f"the store of table {self.table!r}")
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def open(self) -> None:
        """Open the client, and check that the table exists.

        Raises:
            ConfigError: The table does not exist or has another key, or the credentials can never be fetched.
            StoreError: The call of DynamoDB failed, or the credentials cannot be fetched for now.
        """
        self._guard.check()
        try:
            if self._opened is None:
                self._opened = await self._session.client("dynamodb")
            table = (await self._client.describe_table(TableName=self.table))["Table"]
        except ConfigError:
            raise
        except Exception as error:
            code = code_of(error.response) if isinstance(error, ClientError) else ""
            if code in MISSING:
                where = f"DynamoDB table {self.table!r} does not exist in {self._session.region}"
                raise ConfigError(f"{where}: run `smartpipe topology apply`") from None
            if code != "AccessDenied":
                raise self._store_error(error, "DescribeTable") from error
            log.warning(
                "DynamoDB table %r is not checked, because these credentials lack dynamodb:DescribeTable", self.table
            )
            return
        problem = find_table_error(self.table, table["KeySchema"], table["AttributeDefinitions"])
        if problem is not None:
            raise ConfigError(problem)

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim each key that is unknown or released, or whose lease has expired.

        If this raises, some keys may have been claimed. They become free when they are released, or when the lease
        expires.
        """
        return await self._for_each(_by_key(claims), self._claim)

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Extend each lease to ``lease_seconds`` from now."""
        change = "SET #lease_until = :lease_until, #expires_at = :expires_at"
        return await self._for_each(_by_key(claims), lambda claim: self._change(claim, change, already="completed"))

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Record each claim as completed."""
        change = "SET #state = :completed, #expires_at = :memory"
        return await self._for_each(_by_key(claims), lambda claim: self._change(claim, change, already="completed"))

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Release the claims of calls that did not succeed."""
        change = "SET #state = :released, #expires_at = :memory"
        return await self._for_each(_by_key(claims), lambda claim: self._change(claim, change, already="released"))

    async def read(self, keys: Sequence[str]) -> list[ClaimState]:
        """Return the known state of each key."""
        return await self._for_each([(key, key) for key in keys], self._look)

    async def forget(self, keys: Sequence[str]) -> None:
        """Delete the claims of these keys."""
        await self._for_each([(key, key) for key in keys], self._delete)

    async def aclose(self) -> None:
        """Disconnect. A second call does nothing."""
        self._opened = None
        await self._session.aclose()

    async def _claim(self, claim: Claim) -> ClaimOutcome:
        while True:
            now = time.time()
            attempt = "if_not_exists(#attempt, :zero) + :one"
            done, item = await self._update(claim, _HOLD.format(attempt=attempt), _FREE, now)
            record = _record_of(item)
            if not done and item and (record is None or record.expires_at <= now):
                # An expired item, or one that is not a claim, is replaced unless it has changed meanwhile.
                condition, known = _unchanged(item)
                done, item = await self._update(claim, _HOLD.format(attempt=":one"), condition, now, known)
                record = _record_of(item)
            if done:
                return Claimed(record.attempt if record else 1)
            if record:  # otherwise it was deleted or changed between the two calls
                return _outcome_of(record, claim, now)

    async def _change(self, claim: Claim, change: str, *, already: str) -> bool:
        now = time.time()
        done, item = await self._update(claim, change, _MINE, now)
        record = _record_of(item)
        return done or (
            record is not None and record.token == claim.token and record.state == already and record.expires_at > now
        )

    async def _update(
        self, claim: Claim, change: str, condition: str, now: float, known: Mapping[str, Any] | None = None
    ) -> tuple[bool, Item]:
        """Return whether the condition was true, and the item: after the change, or as it is without it."""
        used = f"{change} {condition}"
        values = {**_values(claim, now), **(known or {})}
        try:
            updated = await self._client.update_item(
                TableName=self.table,
                Key=self._key(claim.key),
                UpdateExpression=change,
                ConditionExpression=condition,
                ExpressionAttributeNames={name: name[1:] for name in re.findall(r"#\w+", used)},
                ExpressionAttributeValues={name: values[name] for name in re.findall(r":\w+", used)},
                ReturnValues="ALL_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ClientError as error:
            if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                response: Any = error.response
                return False, response.get("Item", {})
            raise self._store_error(error, "UpdateItem") from error
        except Exception as error:
            raise self._store_error(error, "UpdateItem") from error
        return True, updated["Attributes"]

    async def _look(self, key: str) -> ClaimState:
        try:
            response = await self._client.get_item(TableName=self.table, Key=self._key(key), ConsistentRead=True)
        except Exception as error:
            raise self._store_error(error, "GetItem") from error
        record, now = _record_of(response.get("Item")), time.time()
        if record is None or record.expires_at <= now:
            return None
        return claim_state(record.state, limit_lease(record.lease_until - now))

    async def _delete(self, key: str) -> None:
        try:
            await self._client.delete_item(TableName=self.table, Key=self._key(key))
        except Exception as error:
            raise self._store_error(error, "DeleteItem") from error

    async def _for_each(self, items: Sequence[tuple[str, X]], call: Callable[[X], Awaitable[T]]) -> list[T]:
        """Call for each item, many concurrently, but those of one key one after the other."""
        self._guard.check()
        positions_by_key: dict[str, list[int]] = {}
        for position, (key, _) in enumerate(items):
            positions_by_key.setdefault(key, []).append(position)
        results: dict[int, T] = {}

        async def in_order(positions: list[int]) -> None:
            for position in positions:
                async with self._slots:
                    results[position] = await call(items[position][1])

        try:
            async with asyncio.timeout(BATCH_SECONDS):
                ended = await asyncio.gather(*map(in_order, positions_by_key.values()), return_exceptions=True)
        except TimeoutError:
            raise StoreError(f"table {self.table!r}: no answer within {BATCH_SECONDS:g} s") from None
        for error in ended:
            if error is not None:
                raise error
        return [results[position] for position in range(len(items))]

    @property
    def _client(self) -> Any:
        if self._opened is None:
            raise StoreError(f"the store of table {self.table!r} is not open")
        return self._opened

    def _key(self, key: str) -> Item:
        return {KEY_ATTRIBUTE: {"S": stored_key(self._prefix, key, max_bytes=MAX_KEY_BYTES)}}

    def _store_error(self, error: Exception, operation: str) -> StoreError:
        if isinstance(error, StoreError):
            return error
        try:
            return StoreError(str(classify(error, action=f"dynamodb:{operation}", target=f"table {self.table!r}")))
        except SmartpipeError as failure:  # of the credentials or of the session, not of the call
            return StoreError(str(failure))


def _by_key(claims: Sequence[Claim]) -> list[tuple[str, Claim]]:
    return [(claim.key, claim) for claim in claims]


def _values(claim: Claim, now: float) -> dict[str, dict[str, str]]:
    return {
        ":token": {"S": claim.token},
        ":held": {"S": "held"},
        ":completed": {"S": "completed"},
        ":released": {"S": "released"},
        ":zero": {"N": "0"},
        ":one": {"N": "1"},
        ":number": {"S": "N"},
        ":now": {"N": f"{now:.3f}"},
        ":lease_until": {"N": f"{now + claim.lease_seconds:.3f}"},
        ":expires_at": {"N": str(ceil(now + claim.lease_seconds + claim.ttl_seconds))},
        ":memory": {"N": str(ceil(now + claim.ttl_seconds))},
    }


class _Record(NamedTuple):
    """An item that is a claim."""

    token: str
    state: str
    attempt: int
    lease_until: float
    expires_at: float


def _record_of(item: Item | None) -> _Record | None:
    """Return an item as a claim; None if an attribute of claims is missing or has another type."""
    try:
        found = item or {}
        numbers = [float(found[name]["N"]) for name in ("attempt", "lease_until", "expires_at")]
        state = found["state"]["S"]
        record = _Record(found["token"]["S"], state, limit_attempt(numbers[0]), numbers[1], numbers[2])
    except (KeyError, ValueError):
        return None
    return record if state in _STATES else None


def _unchanged(item: Item) -> tuple[str, dict[str, Any]]:
    """Return the condition that *item* has not changed, and the values in it."""
    parts, values = [], {}
    for name in ("token", "expires_at", "state", "lease_until", "attempt"):
        if name in item:
            parts.append(f"#{name} = :old_{name}")
            values[f":old_{name}"] = item[name]
        else:
            parts.append(f"attribute_not_exists(#{name})")
    return " AND ".join(parts), values


def _outcome_of(record: _Record, claim: Claim, now: float) -> ClaimOutcome:
    if record.state == "completed":
        return Completed()
    if record.token == claim.token:  # the same claim again, because the response was lost
        return Claimed(record.attempt)
    return InProgress(limit_lease(record.lease_until - now))
