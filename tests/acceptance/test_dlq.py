"""``smartpipe dlq`` as an engineer on call uses it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import boto3
import pytest

from smartpipe.cli.redrive import CLEAR
from smartpipe.envelope import Envelope, encode, wrap
from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.store import Claim
from tests.acceptance import services
from tests.acceptance.conftest import TARGET
from tests.acceptance.services import EffectWanted, JobPosted
from tests.support.processes import ROOT, Process, smartpipe
from tests.support.proxy import Fault, FaultProxy
from tests.support.terminal import Terminal
from tests.support.topologies import provisioner
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smartpipe import EmbeddedBroker, Event, Service
    from smartpipe.idempotency.store import Store
    from tests.acceptance.conftest import Command, Jobs
    from tests.support.queues import Queues

pytestmark = pytest.mark.usefixtures("fast_broker")

EFFECTS = "tests.acceptance.services:effects"


async def provision(service: Service) -> None:
    async with provisioner() as found:
        await found.apply(await found.plan([service]))


@pytest.fixture(autouse=True)
def _as_wide_as_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runner's own processes say 80 columns."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def queues(fast_broker: EmbeddedBroker, queues: Queues) -> Queues:
    """Those of the jobs service, provisioned."""
    asyncio.run(provision(services.service))
    return queues


@pytest.fixture
def dlq(inside: Command) -> Command:
    return partial(inside, "dlq")


def prefixed(name: str) -> str:
    return os.environ["SMARTPIPE_PREFIX"] + name


def wrapped(*events: Event) -> list[Envelope]:
    return [wrap(event, source="test") for event in events]


def dead_jobs(queues: Queues, count: int) -> list[str]:
    """Put jobs into the dead-letter queue, as SQS does when their worker dies of them; return their events' ids."""
    envelopes = wrapped(*(JobPosted(name=f"job-{n}") for n in range(count)))
    queues.send("jobs-dlq", *map(encode, envelopes))
    return [envelope.id for envelope in envelopes]


def ids_in(queues: Queues, name: str) -> list[str]:
    return sorted(json.loads(message["Body"])["id"] for message in queues.take(name))


def test_dead_letter_messages_are_listed_shown_and_sent_back_as_they_were(
    jobs: Jobs, queues: Queues, dlq: Command
) -> None:
    worker = jobs.start_worker()
    jobs.post("poison-1", "poison-2")
    until_blocking(lambda: queues.depth("jobs-dlq") == (2, 0))
    worker.signal(signal.SIGTERM)
    worker.wait()

    listed = dlq("list", TARGET)
    shown = smartpipe("dlq", "peek", TARGET, "--reason", "poison-1")
    as_json = json.loads(dlq("peek", TARGET, "--json").stdout)
    after_peeks = queues.depth("jobs-dlq")
    moved = smartpipe("dlq", "redrive", TARGET, "--yes")

    [where, line] = listed.stdout.splitlines()
    assert where.startswith("account 000000000000, us-east-1, prefix ")
    assert line == f"  {prefixed('jobs-dlq')}  2 waiting, 0 in flight  (of {prefixed('jobs')})"
    [_, queue, event, why, when, data] = shown.stdout.splitlines()
    assert queue == f"{prefixed('jobs-dlq')} (of {prefixed('jobs')}): 1 message"
    assert event.endswith("  job.posted 1.0 from test")
    assert why.startswith("      retries-exhausted after 3 receives in tests.acceptance.services.work: ValueError: ")
    assert when.startswith("      dead-lettered 20")
    assert json.loads(data) == {"name": "poison-1", "seconds": 0.0}
    assert {one["dead_letter"]["handler"] for one in as_json["messages"]} == {"tests.acceptance.services.work"}
    assert after_peeks == (2, 0)
    assert moved.returncode == 0
    assert moved.stdout.splitlines()[1:] == [
        f"{prefixed('jobs-dlq')} → {prefixed('jobs')}: 2 messages to move",
        "    2 job.posted, retries-exhausted",
        f"{prefixed('jobs-dlq')}: moved 2",
    ]
    back = queues.take("jobs")
    assert sorted(message["Body"] for message in back) == sorted(one["body"] for one in as_json["messages"])
    assert {tuple(message["MessageAttributes"]) for message in back} == {("type",)}
    assert queues.depth("jobs-dlq") == (0, 0)


def test_a_dry_run_lists_the_messages_and_leaves_them(queues: Queues, dlq: Command) -> None:
    dead_jobs(queues, 3)
    queues.send("jobs-dlq", "not even JSON")

    result = dlq("redrive", TARGET, "--type", "job.posted", "--dry-run")
    [found] = json.loads(dlq("purge", TARGET, "--queue", "jobs", "--dry-run", "--json").stdout)["queues"]

    assert result.stdout.splitlines()[1:] == [
        f"{prefixed('jobs-dlq')} → {prefixed('jobs')}: 3 messages to move",
        "    3 job.posted, no reason",
        "  1 message stays",
        "    1 no event, no reason",
    ]
    assert {one["type"]: one["count"] for one in found["wanted"]} == {"job.posted": 3, None: 1}
    assert queues.depth("jobs-dlq") == (4, 0)


def test_one_event_is_moved_by_its_id_and_a_missing_one_is_reported(queues: Queues, dlq: Command) -> None:
    wanted, *_ = dead_jobs(queues, 3)

    missing = dlq("redrive", TARGET, "--id", "01-nobody", "--yes")
    found = dlq("redrive", TARGET, "--id", wanted, "--yes")

    assert missing.returncode == 1
    assert "none of 3 messages matches" in missing.stdout
    assert found.returncode == 0
    assert ids_in(queues, "jobs") == [wanted]
    assert queues.depth("jobs-dlq") == (2, 0)


def test_a_purge_asks_and_a_no_deletes_nothing_and_a_yes_all_that_match(queues: Queues) -> None:
    dead_jobs(queues, 2)
    queues.send("jobs-dlq", "not even JSON")
    arguments = ("dlq", "purge", TARGET, "--queue", "jobs-dlq", "--type", "job.posted")
    answers = {}
    for answer in ("n", "y"):
        terminal = Terminal(ROOT, *arguments)
        try:
            terminal.wait_for("Delete 2 messages?")
            terminal.type(f"{answer}\n")
            code = terminal.wait()
            answers[answer] = (code, terminal.lines[-1].removeprefix(CLEAR), queues.depth("jobs-dlq"))
        finally:
            terminal.end()

    assert answers == {
        "n": (1, "nothing was changed", (3, 0)),
        "y": (0, f"{prefixed('jobs-dlq')}: deleted 2", (1, 0)),
    }


def test_fault_50_killed_between_send_and_delete_it_loses_nothing_and_keeps_the_event_id(
    queues: Queues, fast_broker: EmbeddedBroker
) -> None:
    [event_id] = dead_jobs(queues, 1)
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        hanging = proxy.add(Fault("DeleteMessageBatch", delay_seconds=60))
        process = Process("dlq", "redrive", TARGET, "--yes", AWS_ENDPOINT_URL=proxy.endpoint_url)
        process.wait_until(lambda: hanging.hits)
        process.signal(signal.SIGKILL)
        process.wait()
        [receipt] = [call.entries[0]["ReceiptHandle"] for call in proxy.calls if call.operation == "DeleteMessageBatch"]
        asked = {call.operation for call in proxy.calls}

    assert (queues.depth("jobs"), queues.depth("jobs-dlq")) == ((1, 0), (0, 1))
    assert "StartMessageMoveTask" not in asked
    # The dead process's lease ends, which takes it a minute.
    boto3.client("sqs").change_message_visibility(
        QueueUrl=queues.url("jobs-dlq"), ReceiptHandle=receipt, VisibilityTimeout=0
    )
    assert smartpipe("dlq", "redrive", TARGET, "--yes").returncode == 0
    assert ids_in(queues, "jobs") == [event_id, event_id]
    assert queues.depth("jobs-dlq") == (0, 0)


def test_a_signal_ends_it_after_the_current_batch_and_the_others_return_to_the_queue(
    queues: Queues, fast_broker: EmbeddedBroker
) -> None:
    dead_jobs(queues, 5)
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        process = Process("dlq", "redrive", TARGET, "--yes", "--rate", "0.5", AWS_ENDPOINT_URL=proxy.endpoint_url)
        process.wait_until(lambda: "DeleteMessageBatch" in proxy.operations())
        process.signal(signal.SIGTERM)
        code = process.wait()

    moved, _ = queues.depth("jobs")
    assert code == 1
    assert process.lines[-1] == (
        f"{prefixed('jobs-dlq')}: moved {moved}, not reached {5 - moved}; "
        "interrupted: the other messages are still in the queue"
    )
    assert 1 <= moved < 5
    assert queues.depth("jobs-dlq") == (5 - moved, 0)


def test_messages_that_cannot_be_sent_are_listed_with_the_reason_and_it_gives_up_after_three_batches(
    queues: Queues, dlq: Command, fast_broker: EmbeddedBroker
) -> None:
    event_ids = dead_jobs(queues, 31)
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        proxy.add(Fault("SendMessageBatch", answer=(403, "AccessDenied", "no")))
        result = dlq("redrive", TARGET, "--yes", AWS_ENDPOINT_URL=proxy.endpoint_url)

    assert result.returncode == 1
    assert result.stdout.endswith(f"{prefixed('jobs-dlq')}: moved 0, failed 30, not reached 1\n")
    *lines, last = result.stderr.splitlines()
    assert len({line.split()[0] for line in lines} & set(event_ids)) == len(lines) == 10
    assert all(" stays: AccessDenied: sqs:SendMessage on queue " in line for line in lines)
    assert last == "  and 20 more"
    assert queues.depth("jobs-dlq") == (31, 0)


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "sentence"),
    [
        (("list", TARGET), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 1, "is AWS_ENDPOINT_URL correct"),
        (("purge", TARGET), {}, 2, "Missing option '--queue'"),
        (("redrive", TARGET), {"SMARTPIPE_PREFIX": "nowhere-"}, 1, "run `smartpipe topology apply`"),
        (("redrive", TARGET), {}, 2, "add --dry-run to see the messages, then add --yes"),
    ],
    ids=["no broker", "no queue", "no topology", "no terminal"],
)
def test_a_mistake_is_told_in_one_line_and_changes_nothing(
    queues: Queues, dlq: Command, arguments: tuple[str, ...], environment: dict[str, str], code: int, sentence: str
) -> None:
    dead_jobs(queues, 1)

    result = dlq(*arguments, **environment)

    assert result.returncode == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert queues.depth("jobs-dlq") == (1, 0)


def test_on_empty_queues_every_command_succeeds_and_says_so(queues: Queues, dlq: Command) -> None:
    listed, peeked = dlq("list", TARGET), dlq("peek", TARGET)
    moved, purged = dlq("redrive", TARGET), dlq("purge", TARGET, "--queue", "jobs")

    assert [one.returncode for one in (listed, peeked, moved, purged)] == [0, 0, 0, 0]
    assert "0 waiting, 0 in flight" in listed.stdout
    assert peeked.stdout.endswith(": no messages\n")
    assert moved.stdout.endswith(": no messages\n")
    assert purged.stdout.endswith(": no messages\n")


def test_a_body_cannot_command_the_terminal_it_is_shown_on(queues: Queues, dlq: Command) -> None:
    queues.send("jobs-dlq", "\x9b31m red \x85 and \u202e back")

    result = dlq("peek", TARGET)

    assert result.stdout.splitlines()[-1].strip() == "\ufffd31m red   and \ufffd back"


@asynccontextmanager
async def opened_store(url: str) -> AsyncIterator[Store]:
    store = open_store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def remember(url: str, envelope: Envelope) -> None:
    claim = Claim(key_of(envelope), uuid4().hex, 600, 600)
    async with opened_store(url) as store:
        await store.claim([claim])
        await store.complete([claim])


async def is_remembered(url: str, envelope: Envelope) -> bool:
    async with opened_store(url) as store:
        return await store.read([key_of(envelope)]) != [None]


def key_of(envelope: Envelope) -> str:
    [handler] = services.effects.handlers
    assert handler.options.idempotency is not None
    return handler.options.idempotency.key_of(handler.full_name(os.environ["SMARTPIPE_PREFIX"]), envelope)


def test_fault_45_a_redrive_counts_handled_messages_and_with_force_moves_them_too(
    queues: Queues, dlq: Command, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", redis_url)
    asyncio.run(provision(services.effects))
    done, new = wrapped(EffectWanted(name="done"), EffectWanted(name="new"))
    queues.send("effects-dlq", encode(done), encode(new))
    asyncio.run(remember(redis_url, done))

    careful = dlq("redrive", EFFECTS, "--yes")
    moved_first = ids_in(queues, "effects")
    forced = dlq("redrive", EFFECTS, "--yes", "--force")

    assert careful.stdout.splitlines()[1:] == [
        f"{prefixed('effects-dlq')} → {prefixed('effects')}: 2 messages to move",
        "    2 effect.wanted, no reason",
        "  1 of them was handled before and will be skipped: use --force to have it handled again",
        f"{prefixed('effects-dlq')}: moved 1, skipped 1",
    ]
    assert moved_first == [new.id]
    assert forced.stdout.endswith(": moved 1\n")
    assert ids_in(queues, "effects") == [done.id]
    assert not asyncio.run(is_remembered(redis_url, done))


@pytest.mark.parametrize(
    ("url", "code", "sentence"),
    [("redis://127.0.0.1:9", 1, "127.0.0.1:9"), ("", 2, "set SMARTPIPE_IDEMPOTENCY_URL")],
    ids=["it is down", "it is not named"],
)
def test_fault_45_without_the_store_nothing_is_moved_and_the_error_names_it(
    queues: Queues, dlq: Command, url: str, code: int, sentence: str
) -> None:
    asyncio.run(provision(services.effects))
    queues.send("effects-dlq", *map(encode, wrapped(EffectWanted(name="one"))))

    result = dlq("redrive", EFFECTS, "--yes", SMARTPIPE_IDEMPOTENCY_URL=url)
    purged = dlq("purge", EFFECTS, "--queue", "effects", "--dry-run", SMARTPIPE_IDEMPOTENCY_URL=url)

    assert result.returncode == code
    assert sentence in result.stderr
    assert (queues.depth("effects"), queues.depth("effects-dlq")) == ((0, 0), (1, 0))
    assert purged.returncode == 0  # it asks the store nothing
