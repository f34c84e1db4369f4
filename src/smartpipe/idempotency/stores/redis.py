"""Claims in Redis or Valkey: one script call a verb."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import asynccontextmanager
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.store import Claimed, Completed, InProgress, known
from smartpipe.idempotency.stores.keys import stored_key
from smartpipe.idempotency.stores.reading import limit_lease
from smartpipe.urls import describe_url, redact, scheme_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from smartpipe.idempotency.store import Claim, ClaimOutcome, Known

log = logging.getLogger("smartpipe.stores")

CALL_SECONDS = 5.0
MAX_CONNECTIONS = 16
MAX_KEY_BYTES = 4_096
SCAN_KEYS = 1_000
"""A step of a scan, which blocks the server for well under a millisecond."""
NAMESPACE = "smartpipe:"
"""Sets claims apart from whatever else is in the same database."""
VERSION_KEY = f"{NAMESPACE}version"
VERSION = b"2"
"""Of the keys. Claims of version 1 name no service and no queue, so this version cannot use them."""
OLD_CLAIMS = f"{NAMESPACE}*|*"
_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}

# A script runs alone on the server, and its TIME stands still: https://redis.io/docs/latest/develop/programmability/eval-intro/
# A hash a key: state, token, attempt, and until when its lease lasts, in milliseconds. PEXPIRE is its memory.
_BEGIN = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
for i, key in ipairs(KEYS) do
  local token, lease, ttl = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local found = redis.pcall('HMGET', key, 'state', 'token', 'attempt', 'until')
  local foreign = found.err  -- a key of another type: it is not a claim, and must not fail the whole batch
  if foreign then found = {} end
  local state, mine = found[1], found[2] == token
"""
_END = """
end
return answer
"""
_CLAIM = f"""{_BEGIN}
  -- Redis truncates the numbers of an answer, so round up: with half a millisecond left, the claim is still held.
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
      if foreign then redis.call('DEL', key) end
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


class RedisStore:
    """Claims on one Redis (from 6.2) or Valkey server, judged by its clock.

    What it holds is as safe as the server makes it: without persistence a restart forgets, a failover may lose the
    last writes, and an eviction policy other than ``noeviction`` may drop claims. Redis Cluster is not supported.

    Raises:
        ValueError: A URL that redis-py cannot read.
    """

    def __init__(self, url: str, *, prefix: str = "") -> None:
        scheme = scheme_of(url)
        if scheme != "unix" and not re.fullmatch(r"/?[0-9]*", urlsplit(url).path):
            raise ValueError(url)  # redis-py would take database 0
        pool = BlockingConnectionPool.from_url(
            f"{_SCHEMES.get(scheme, scheme)}{url[len(scheme) :]}",
            max_connections=MAX_CONNECTIONS,
            timeout=CALL_SECONDS,
            socket_timeout=CALL_SECONDS,
            socket_connect_timeout=CALL_SECONDS,
            # Once more, at once: a connection of the pool may have ended with the server that it led to. A token
            # makes every verb one that may be repeated.
            retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),
        )
        try:
            # It connects to nothing, and refuses options that redis-py does not know.
            pool.make_connection()  # type: ignore[no-untyped-call]
        except TypeError as error:
            raise ValueError(str(error)) from None
        self._redis = Redis.from_pool(pool)
        self._server = describe_url(url)
        self._prefix = prefix
        self._scripts = {
            verb: self._redis.register_script(script)
            for verb, script in (("claim", _CLAIM), ("renew", _RENEW), ("complete", _COMPLETE), ("release", _RELEASE))
        }

    async def open(self) -> None:
        """Connect, and warn of a server that may forget.

        The first worker of this version looks once for claims of earlier ones, through all keys of the database.

        Raises:
            ConfigError: It is a node of a Redis Cluster, or has claims of an earlier version.
            StoreError: It cannot be asked.
        """
        async with self._faults("INFO"):
            info: dict[str, Any] = await self._redis.info()
        if info.get("redis_mode", info.get("server_mode")) == "cluster":
            raise ConfigError(
                f"{self._server} is a node of a Redis Cluster, and a batch's keys are on many; use one with cluster "
                "mode disabled"
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            log.warning(
                "%s has the maxmemory-policy %s: short of memory it drops claims, and effects then happen again; "
                "set noeviction",
                self._server,
                policy,
            )
        await self._refuse_old_claims()

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim what is unknown, released, or whose lease has run out."""
        outcomes: list[ClaimOutcome] = []
        for attempt, milliseconds in await self._call("claim", claims):
            if attempt:
                outcomes.append(Claimed(attempt))
            else:
                outcomes.append(InProgress(milliseconds / 1000) if milliseconds else Completed())
        return outcomes

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Let each lease last ``lease_seconds`` from now."""
        return [bool(said) for said in await self._call("renew", claims)]

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Say that each effect has happened."""
        return [bool(said) for said in await self._call("complete", claims)]

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Give back what did not succeed."""
        return [bool(said) for said in await self._call("release", claims)]

    async def look(self, keys: Sequence[str]) -> list[Known]:
        """Say what is known of each key."""
        if not keys:
            return []
        async with self._faults("look"), self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            for key in keys:
                pipe.hmget(self._key(key), "state", "until")
            (seconds, microseconds), *found = await pipe.execute(raise_on_error=False)
            now = seconds * 1000 + microseconds // 1000
            return [_known(answer, now) for answer in found]

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove all memory of these keys."""
        if keys:
            async with self._faults("UNLINK"):
                await self._redis.unlink(*(self._key(key) for key in keys))

    async def aclose(self) -> None:
        """Disconnect. A second call does nothing."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _call(self, verb: str, claims: Sequence[Claim]) -> list[Any]:
        if not claims:
            return []
        arguments: list[str | int] = []
        for claim in claims:
            arguments += (claim.token, ceil(claim.lease_seconds * 1000), ceil(claim.ttl_seconds * 1000))
        async with self._faults(verb):
            answer: list[Any] = await self._scripts[verb](keys=[self._key(c.key) for c in claims], args=arguments)
        return answer

    async def _refuse_old_claims(self) -> None:
        async with self._faults("GET"):
            if await self._redis.get(VERSION_KEY) == VERSION:
                return
        cursor = -1
        while cursor:
            async with self._faults("SCAN"), self._redis.pipeline(transaction=False) as pipe:
                cursor, keys = await self._redis.scan(max(0, cursor), match=OLD_CLAIMS, count=SCAN_KEYS, _type="hash")
                for key in keys:
                    pipe.hget(key, "state")
                states = await pipe.execute()
            if any(state in {b"completed", b"held"} for state in states):
                raise ConfigError(
                    f"{self._server} remembers claims of an earlier version. They name no service and no queue, so "
                    "this version cannot use them: if one of their events is delivered again, its effect happens "
                    "again. Stop the workers, wait until their queues are empty, and delete the claims: redis-cli "
                    f"-u URL --scan --pattern '{OLD_CLAIMS}' | xargs -d '\\n' redis-cli -u URL unlink"
                )
        async with self._faults("SET"):
            await self._redis.set(VERSION_KEY, VERSION)

    def _key(self, key: str) -> str:
        return NAMESPACE + stored_key(self._prefix, key, max_bytes=MAX_KEY_BYTES)

    @asynccontextmanager
    async def _faults(self, verb: str) -> AsyncIterator[None]:
        """Bound a call, and turn whatever goes wrong into one sentence."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                yield
        except TimeoutError:
            raise StoreError(f"{verb} at {self._server}: no answer within {CALL_SECONDS:g} s") from None
        except (RedisError, OSError) as error:
            raise StoreError(f"{verb} at {self._server}: {redact(str(error)) or type(error).__name__}") from error


def _known(answer: Any, now: int) -> Known:
    """Read a key's state and lease; a key of another type is not a claim."""
    if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
        return None
    if isinstance(answer, Exception):
        raise answer
    state, until = (value.decode(errors="replace") if isinstance(value, bytes) else value or "" for value in answer)
    try:
        left = (float(until) - now) / 1000
    except ValueError:
        left = 0.0
    return known(state, limit_lease(left))
