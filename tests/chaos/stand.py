"""The servers of a run, and the processes of a scenario."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

import asyncpg
import psutil
import redis

from smartpipe import EmbeddedBroker
from tests.support.processes import Process
from tests.support.servers import PostgresServer, RedisServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How far a run goes.

    Args:
        events: So many are published in each scenario.
        rounds: So many workers are killed at a point.
    """

    events: int = 100
    rounds: int = 3


class Stand:
    """The servers, which all scenarios of a run share; Redis is started when it is first wanted."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._redis: RedisServer | None = None

    def __enter__(self) -> Self:
        self.postgres = self._stack.enter_context(PostgresServer())
        self.broker = self._stack.enter_context(EmbeddedBroker("ministack"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def redis(self) -> RedisServer:
        if self._redis is None:
            self._redis = self._stack.enter_context(RedisServer())
        return self._redis

    def kill_postgres(self) -> None:
        """Kill all of its processes at once; it can be started again."""
        for process in self.postgres._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.postgres.stop()

    @property
    def postgres_version(self) -> str:
        async def ask() -> str:
            connection = await asyncpg.connect(self.postgres.url)
            try:
                return str(await connection.fetchval("SHOW server_version"))
            finally:
                await connection.close()

        return asyncio.run(ask())

    @property
    def redis_version(self) -> str:
        with redis.Redis.from_url(self.redis.url) as client:
            return str(client.info("server")["redis_version"])


class Actor:
    """A worker or a relay; its access key tells its calls from those of others."""

    def __init__(self, key: str, *arguments: str, **environment: str) -> None:
        self.key = key
        self.killed = False
        self.process = Process(*arguments, "--host", "127.0.0.1", "--port", "0", AWS_ACCESS_KEY_ID=key, **environment)

    @property
    def kind(self) -> str:
        return self.key.partition("-")[0]

    def kill(self) -> None:
        self.killed = True
        self.process.signal(signal.SIGKILL)
