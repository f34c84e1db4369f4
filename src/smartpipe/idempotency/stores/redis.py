"""Claims in Redis or Valkey. Each method runs one script on the server."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import asynccontextmanager
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.store import Claimed, Completed, InProgress, claim_state
from smartpipe.idempotency.stores.records import limit_lease, stored_key
from smartpipe.process_guard import ProcessGuard
from smartpipe.urls import describe_url, redact, scheme_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from smartpipe.idempotency.store import Claim, ClaimOutcome, ClaimState

log = logging.getLogger("smartpipe.stores")

CALL_SECONDS = 5.0
MAX_CONNECTIONS = 16
MAX_KEY_BYTES = 4_096
SCAN_KEYS = 1_000
"""One step of a scan. It blocks the server for well under a millisecond."""
NAMESPACE = "smartpipe:"
"""Separates claims from other keys in the same database."""
VERSION_KEY = f"{NAMESPACE}version"
VERSION = b"2"
"""The version of the keys. Claims of version 1 lack the service and the queue, so this version cannot use them."""
OLD_CLAIMS = f"{NAMESPACE}*|*"
_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}

# While a script runs, the server runs nothing else and TIME does not change:
# https://redis.io/docs/latest/develop/programmability/eval-intro/
# Each key is a hash of state, token, attempt, and the end of the lease in milliseconds. PEXPIRE sets when the record
# expires.
_BEGIN = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
for i, key in ipairs(KEYS) do
  local token, lease, ttl = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local found = redis.pcall('HMGET', key, 'state', 'token', 'attempt', 'until')
  local other_type = found.err and string.find(found.err, 'WRONGTYPE', 1, true)
  if other_type then
    found = {}  -- the key is not a hash, so not a claim, and must not fail the whole batch
  elseif found.err then
    return found  -- not permitted, for example: a held claim must not look free
  end
  local state, mine = found[1], found[2] == token
"""
_END = """
end
return answer
"""
_CLAIM = f"""{_BEGIN}
  -- Redis truncates the numbers in a response, so round up: with half a millisecond left, the claim is still held.
  local left = math.ceil((tonumber(found[4]) or 0) - now)
  local attempt = math.floor(tonumber(found[3]) or 0)
  if left ~= left then left = 0 end  -- not a number
  if left > 43200000 then left = 43200000 end
  if not (attempt >= 0 and attempt < 2147483646) then attempt = 0 end
  if state == 'completed' then
    answer[i] = {{0, 0}}
  elseif state == 'held' and left > 0 and not mine then
    answer[i] = {{0, left}}
  else
    if state ~= 'held' or left <= 0 then
      attempt = attempt + 1
      if other_type then redis.call('DEL', key) end
      redis.call('HSET', key, 'state', 'held', 'token', token, 'attempt', attempt, 'until', now + lease)
      redis.call('PEXPIRE', key, lease + ttl)
    end
    answer[i] = {{math.max(attempt, 1), 0}}
  end
{_END}"""
_RENEW = f"""{_BEGIN}
  if mine and state == 'held' then
    redis.call('HSET', key, 'until', now + lease)
    redis.call('PEXPIRE', key, lease + ttl)
  end
  answer[i] = (mine and state ~= 'released') and 1 or 0
{_END}"""
_FINISH = """
  if mine and state == 'held' then
    redis.call('HSET', key, 'state', '%(state)s')
    redis.call('PEXPIRE', key, ttl)
    state = '%(state)s'
  end
  answer[i] = (mine and state == '%(state)s') and 1 or 0
"""
_COMPLETE = _BEGIN + _FINISH % {"state": "completed"} + _END
_RELEASE = _BEGIN + _FINISH % {"state": "released"} + _END


class _CheckRefusedError(StoreError):
    """The ACL of the user does not allow a call."""


class RedisStore:
    """Claims on one Redis server (6.2 or newer) or Valkey server. Leases expire by the server's clock.

    The claims are as safe as the server: without persistence a restart loses them, a failover can lose the last
    writes, and an eviction policy other than ``noeviction`` can drop claims. Redis Cluster is not supported.

    Raises:
        ValueError: redis-py cannot read the URL, or a file that an option names.
    """

    def __init__(self, url: str, *, prefix: str = "") -> None:
        scheme = scheme_of(url)
        if scheme != "unix" and not re.fullmatch(r"/?[0-9]*", urlsplit(url).path):
            raise ValueError(url)  # redis-py would use database 0
        pool = BlockingConnectionPool.from_url(
            f"{_SCHEMES.get(scheme, scheme)}{url[len(scheme) :]}",
            max_connections=MAX_CONNECTIONS,
            timeout=CALL_SECONDS,
            socket_timeout=CALL_SECONDS,
            socket_connect_timeout=CALL_SECONDS,
            # One immediate retry, because a pooled connection may have ended when its server did. Because of the
            # token every method can be repeated.
            retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),
        )
        pool.connection_kwargs["decode_responses"] = False  # the URL may have set it, and answers are compared as bytes
        try:
            # This does not connect, but it refuses options and values that redis-py does not know.
            connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
            if isinstance(connection, SSLConnection):
                connection.ssl_context.get()  # reads the files with certificates
        except (OSError, RedisError, TypeError) as error:
            raise ValueError(str(error)) from None
        self._redis = Redis.from_pool(pool)
        self._server = describe_url(url)
        self._guard = ProcessGuard(f"the store at {self._server}")
        self._prefix = prefix
        self._scripts = {
            method: self._redis.register_script(script)
            for method, script in (("claim", _CLAIM), ("renew", _RENEW), ("complete", _COMPLETE), ("release", _RELEASE))
        }

    async def open(self) -> None:
        """Connect, and log a warning if the server may drop claims.

        The first worker of this version scans all keys of the database, once, for claims of earlier versions. If the
        server refuses these checks to the user, a warning says so, and the store works without them.

        Raises:
            ConfigError: The server is a node of a Redis Cluster, or has claims of an earlier version.
            StoreError: The server is unreachable.
        """
        info = await self._read_info()
        if info.get("redis_mode", info.get("server_mode")) == "cluster":
            raise ConfigError(
                f"{self._server} is a node of a Redis Cluster, where the keys of a batch are on several nodes; use a "
                "server with cluster mode disabled"
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            log.warning(
                "%s has the maxmemory-policy %s: when it is short of memory it drops claims, and handlers will run "
                "again; set noeviction",
                self._server,
                policy,
            )
        try:
            await self._refuse_old_claims()
        except _CheckRefusedError as error:
            log.warning("%s was not checked for claims of earlier versions: %s", self._server, error)

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim the keys that are unknown or released, or whose lease has expired."""
        outcomes: list[ClaimOutcome] = []
        for attempt, milliseconds in await self._call("claim", claims):
            if attempt:
                outcomes.append(Claimed(attempt))
            else:
                outcomes.append(InProgress(milliseconds / 1000) if milliseconds else Completed())
        return outcomes

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Renew each lease for ``lease_seconds`` from now."""
        return [bool(held) for held in await self._call("renew", claims)]

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Mark each claim as completed."""
        return [bool(held) for held in await self._call("complete", claims)]

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Release each claim."""
        return [bool(held) for held in await self._call("release", claims)]

    async def read(self, keys: Sequence[str]) -> list[ClaimState]:
        """Return the state of each key."""
        if not keys:
            return []
        async with self._convert_errors("read"), self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            for key in keys:
                pipe.hmget(self._key(key), "state", "until")
            (seconds, microseconds), *found = await pipe.execute(raise_on_error=False)
            now = seconds * 1000 + microseconds // 1000
            return [_read_state(answer, now) for answer in found]

    async def forget(self, keys: Sequence[str]) -> None:
        """Delete the records of these keys."""
        if keys:
            async with self._convert_errors("UNLINK"):
                await self._redis.unlink(*(self._key(key) for key in keys))

    async def aclose(self) -> None:
        """Disconnect. A second call does nothing."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _call(self, method: str, claims: Sequence[Claim]) -> list[Any]:
        if not claims:
            return []
        arguments: list[str | int] = []
        for claim in claims:
            arguments += (claim.token, ceil(claim.lease_seconds * 1000), ceil(claim.ttl_seconds * 1000))
        async with self._convert_errors(method):
            answer: list[Any] = await self._scripts[method](keys=[self._key(c.key) for c in claims], args=arguments)
        return answer

    async def _read_info(self) -> dict[str, Any]:
        """Return the server's INFO; empty if the server refuses it, for example because of the user's ACL."""
        async with self._convert_errors("INFO"):
            try:
                info: dict[str, Any] = await self._redis.info()
            except ResponseError as error:
                log.warning(
                    "%s does not answer INFO, so it is unknown whether it may drop claims: %s",
                    self._server,
                    redact(str(error)),
                )
                return {}
        return info

    async def _refuse_old_claims(self) -> None:
        """Look for claims of an earlier version, unless that was done before.

        Raises:
            ConfigError: There are such claims.
            _CheckRefusedError: The user may not make the calls.
        """
        async with self._convert_errors("GET"):
            if await self._redis.get(VERSION_KEY) == VERSION:
                return
        cursor = -1
        while cursor:
            async with self._convert_errors("SCAN"), self._redis.pipeline(transaction=False) as pipe:
                cursor, keys = await self._redis.scan(max(0, cursor), match=OLD_CLAIMS, count=SCAN_KEYS, _type="hash")
                for key in keys:
                    pipe.hget(key, "state")
                states = await pipe.execute()
            if any(state in {b"completed", b"held"} for state in states):
                raise ConfigError(
                    f"{self._server} has claims of an earlier version. They lack the service and the queue, so this "
                    "version cannot use them: if one of their events is delivered again, its handler will run again. "
                    "Stop the workers, wait until their queues are empty, and delete the claims: redis-cli "
                    f"-u URL --scan --pattern '{OLD_CLAIMS}' | xargs -d '\\n' redis-cli -u URL unlink"
                )
        async with self._convert_errors("SET"):
            await self._redis.set(VERSION_KEY, VERSION)

    def _key(self, key: str) -> str:
        return NAMESPACE + stored_key(self._prefix, key, max_bytes=MAX_KEY_BYTES)

    @asynccontextmanager
    async def _convert_errors(self, call: str) -> AsyncIterator[None]:
        """Limit the time of a call, and convert its errors to StoreError."""
        self._guard.check()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                yield
        except TimeoutError:
            raise StoreError(f"{call} at {self._server}: no answer within {CALL_SECONDS:g} s") from None
        except NoPermissionError as error:
            raise _CheckRefusedError(f"{call} at {self._server}: {redact(str(error))}") from error
        except (RedisError, OSError) as error:
            raise StoreError(f"{call} at {self._server}: {redact(str(error)) or type(error).__name__}") from error


def _read_state(answer: Any, now: int) -> ClaimState:
    """Read a key's state and lease. A key of another type is not a claim."""
    if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
        return None
    if isinstance(answer, Exception):
        raise answer
    state, until = (value.decode(errors="replace") if isinstance(value, bytes) else value or "" for value in answer)
    try:
        left = (float(until) - now) / 1000
    except ValueError:
        left = 0.0
    return claim_state(state, limit_lease(left))
