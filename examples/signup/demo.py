"""Run the whole system on this machine with several faults, and count the events that arrive.

500 people sign up over HTTP. The mail server of one of them never answers, one message is not an event, and half-way a
worker is stopped with SIGTERM and started again. At the end, no event may be missing. Run it with ``make demo``.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import quantiles
from typing import Any, NamedTuple

import boto3
from aiohttp import ClientSession, TCPConnector
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from signup.processes import EXAMPLES, HttpService, Worker
from smartpipe import EmbeddedBroker

SIGNUPS = 500
CONCURRENCY = 20
TARGETS = {
    "email-verification": "signup.email_verification:service",
    "friend-discovery": "signup.friend_discovery:service",
}
console = Console()


class System(NamedTuple):
    environment: dict[str, str]
    signup_url: str
    workers: dict[str, Worker]


@contextmanager
def run_system() -> Iterator[System]:
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        environment = {**broker.environment, "SCRYPT_COST": "16"}  # the demo measures smartpipe, not scrypt
        console.print(f"broker         {broker.backend} {broker.version} on {broker.endpoint_url}")

        command = [sys.executable, "-m", "smartpipe", "topology", "apply", "--yes", "--json", *TARGETS.values()]
        changes = subprocess.run(command, cwd=EXAMPLES, env={**environment}, check=True, capture_output=True)
        created = json.loads(changes.stdout)["changes"]
        console.print(f"topology       {len(created)} resources created")

        workers = {}
        for name, target in TARGETS.items():
            workers[name] = Worker(target, environment)
            stack.callback(workers[name].kill)
        backends = {}
        for variable, module in (("USER_METADATA_URL", "signup.user_metadata"), ("PASSWORDS_URL", "signup.passwords")):
            backend = HttpService(module, environment)
            stack.callback(backend.stop)
            backends[variable] = backend
        urls = {variable: backend.url for variable, backend in backends.items()}
        api = HttpService("signup.api", {**environment, **urls})
        stack.callback(api.stop)
        for service in (*backends.values(), api):
            service.wait_until_ready()
        wait_until(lambda: all(worker.ready for worker in workers.values()), "the workers are ready")
        console.print("processes      3 HTTP services, 2 workers, ready")
        yield System(environment, api.url, workers)


def wait_until(condition: Any, description: str, deadline_seconds: float = 30) -> None:
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{description}: not within {deadline_seconds} s")
        time.sleep(0.05)


def create_client(service: str, environment: dict[str, str]) -> Any:
    return boto3.client(
        service,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


async def sign_up_all(system: System) -> list[str]:
    """Post the signups, and restart a worker half-way. Return the ids of the published events."""
    event_ids: list[str] = []
    people = iter(range(SIGNUPS))
    half_way = asyncio.Event()
    columns = TextColumn("signups       "), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("signups", total=SIGNUPS)

        async def sign_up(client: ClientSession) -> None:
            for number in people:
                domain = "unreachable.example" if number == SIGNUPS // 3 else "mail.example.com"
                form = {"name": f"Person {number}", "email": f"person-{number}@{domain}", "password": "correct horse"}
                async with client.post(system.signup_url + "/signup", json=form) as answer:
                    answer.raise_for_status()
                    event_ids.append((await answer.json())["event_id"])
                progress.advance(bar)
                if len(event_ids) == SIGNUPS // 2:
                    half_way.set()

        async def restart_half_way() -> None:
            await half_way.wait()
            worker = system.workers["email-verification"]
            await asyncio.to_thread(worker.stop)
            progress.console.print(f"SIGTERM        email-verification drained, exit code {worker.exit_codes[0]}")
            worker.start()

        async with ClientSession(connector=TCPConnector(limit=CONCURRENCY)) as client, asyncio.TaskGroup() as group:
            group.create_task(restart_half_way())
            for _ in range(CONCURRENCY):
                group.create_task(sign_up(client))
    return event_ids


def publish_malformed_message(environment: dict[str, str]) -> None:
    sns = create_client("sns", environment)
    [topic] = sns.list_topics()["Topics"]
    attribute = {"type": {"DataType": "String", "StringValue": "user.signed_up"}}
    sns.publish(TopicArn=topic["TopicArn"], Message="not an event", MessageAttributes=attribute)


def read_dead_letters(environment: dict[str, str], service: str) -> list[dict[str, Any]]:
    """Receive every message from the service's dead-letter queue, and return their reasons."""
    sqs = create_client("sqs", environment)
    url = sqs.get_queue_url(QueueName=f"{service}-dlq")["QueueUrl"]
    reasons = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]).get(
        "Messages"
    ):
        reasons += [json.loads(m["MessageAttributes"]["smartpipe_dead_letter"]["StringValue"]) for m in messages]
    return reasons


def print_report(system: System, event_ids: list[str]) -> list[str]:
    """Print the table, and return the expectations that were not met."""
    table = Table(
        Column("service", no_wrap=True),
        title="from publish to handled",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for column in ("delivered", "handled", "retried", "in DLQ", "missing", "p50", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    unmet: list[str] = []
    for name, worker in system.workers.items():
        dead = read_dead_letters(system.environment, name)
        known_dead = {reason["event_id"] for reason in dead if "event_id" in reason}
        handled = set(worker.latency_seconds)
        missing = set(event_ids) - handled - known_dead
        centiles = quantiles(worker.latency_seconds.values(), n=100)
        counts = worker.counts
        numbers = (counts["delivered"], len(handled), counts["retried"], len(dead), len(missing))
        table.add_row(name, *map(str, numbers), f"{centiles[49]:.2f} s", f"{centiles[98]:.2f} s")

        kinds = sorted(reason["kind"] for reason in dead)
        expected = ["not-json", "retries-exhausted"] if name == "email-verification" else ["not-json"]
        if missing:
            unmet.append(f"{name}: {len(missing)} events are missing")
        if kinds != expected:
            unmet.append(f"{name}: dead-letter messages are {kinds}, not {expected}")
        if len(handled) != SIGNUPS - len(expected) + 1:
            unmet.append(f"{name}: {len(handled)} events handled, not {SIGNUPS - len(expected) + 1}")
        if any(worker.exit_codes):
            unmet.append(f"{name}: exit codes {worker.exit_codes}, not all 0")
    console.print(table)
    return unmet


def main() -> int:
    started = time.monotonic()
    with run_system() as system:
        publish_malformed_message(system.environment)
        event_ids = asyncio.run(sign_up_all(system))
        email, friends = system.workers["email-verification"], system.workers["friend-discovery"]
        wait_until(lambda: len(friends.latency_seconds) >= SIGNUPS, "friend-discovery has handled all")
        wait_until(lambda: len(email.latency_seconds) >= SIGNUPS - 1, "email-verification has handled all but one")
        wait_until(lambda: email.counts["dead-lettered"] >= 2, "email-verification has dead-lettered two")  # noqa: PLR2004
        for worker in system.workers.values():
            worker.stop()
        unmet = print_report(system, event_ids)
    for expectation in unmet:
        console.print(f"[red]NOT MET[/red]  {expectation}")
    if not unmet:
        console.print(f"[green]every expectation held[/green], in {time.monotonic() - started:.0f} s")
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())
