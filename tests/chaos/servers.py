"""The servers of a run, and the worker and relay processes of a scenario."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import asyncpg
import psutil
import redis

from smartpipe import EmbeddedBroker
from tests.support.processes import Process
from tests.support.proxy import FaultProxy
from tests.support.servers import PostgresServer, RedisServer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSize:
    """The size of each scenario.

    Args:
        events: The number of published events.
        rounds: The number of workers that are killed at one point.
    """

    events: int = 100
    rounds: int = 3


class Servers:
    """The servers that the scenarios of one process share. Redis and DynamoDB are started at their first use."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.postgres = stack.enter_context(PostgresServer())
            self.broker = stack.enter_context(EmbeddedBroker("ministack"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @cached_property
    def redis(self) -> RedisServer:
        return self._stack.enter_context(RedisServer())

    @cached_property
    def dynamodb_url(self) -> str:
        """The URL of moto, which gets one call at a time: its conditional writes are not atomic between threads."""
        moto = self._stack.enter_context(EmbeddedBroker("moto"))
        return self._stack.enter_context(FaultProxy(moto.endpoint_url, max_concurrent=1)).endpoint_url

    def store_environment(self, store: str, postgres_url: str, prefix: str) -> dict[str, str]:
        """Return the environment variables that select the store of a scenario's claims."""
        if store == "dynamodb":
            url = f"dynamodb://{prefix}claims"
            return {"SMARTPIPE_IDEMPOTENCY_URL": url, "AWS_ENDPOINT_URL_DYNAMODB": self.dynamodb_url}
        return {"SMARTPIPE_IDEMPOTENCY_URL": self.redis.url if store == "redis" else postgres_url}

    def kill_postgres(self) -> None:
        """Kill all processes of PostgreSQL. It can be started again."""
        for process in self.postgres._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.postgres.stop()

    @property
    def postgres_version(self) -> str:
        async def fetch() -> str:
            connection = await asyncpg.connect(self.postgres.url)
            try:
                return str(await connection.fetchval("SHOW server_version"))
            finally:
                await connection.close()

        return asyncio.run(fetch())

    @property
    def redis_version(self) -> str:
        with redis.Redis.from_url(self.redis.url) as client:
            return str(client.info("server")["redis_version"])


class ServiceProcess(Process):
    """A worker or a relay. Its access key identifies its calls."""

    def __init__(self, key: str, *arguments: str, **environment: str) -> None:
        self.key = key
        self.target = arguments[1:]
        self.stopped = False
        super().__init__(*arguments, "--host", "127.0.0.1", "--port", "0", AWS_ACCESS_KEY_ID=key, **environment)

    @property
    def kind(self) -> str:
        return self.key.partition("-")[0]

    def kill(self) -> None:
        self._stop(signal.SIGKILL)

    def drain(self) -> None:
        """Let the process end as an orchestrator does."""
        self._stop(signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> None:
        self.stopped = True
        self.signal(number)
