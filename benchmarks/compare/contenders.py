"""The compared clients, each with its script, the pinned requirements of its venv, and its setup."""

from __future__ import annotations

from typing import NamedTuple

BARE = "aiobotocore, bare loop"
SMARTPIPE = "smartpipe"

AIOBOTOCORE = ("aiobotocore==3.10.0", "uvloop==0.23.0")


class Venv(NamedTuple):
    """A virtual environment with its requirements from PyPI and, if *checkout*, with this checkout."""

    name: str
    requirements: tuple[str, ...]
    checkout: bool = False


OURS = Venv("smartpipe", AIOBOTOCORE, checkout=True)
LOOP = Venv("aiobotocore", AIOBOTOCORE)
BOTO3 = Venv("boto3", ("boto3==1.43.117",))
SQS_WORKERS = Venv("sqs-workers", ("sqs-workers==0.7.3", "boto3==1.43.117", "typing-extensions==4.16.0"))
KOMBU = Venv("kombu", ("kombu[sqs]==5.7.0", "boto3==1.43.117"))
TASKIQ = Venv("taskiq", ("taskiq-aio-sqs==2.1.1", "taskiq==0.13.0", *AIOBOTOCORE))
TOMODACHI = Venv("tomodachi", ("tomodachi==0.29.0", "aiobotocore==2.26.0", "uvloop==0.23.0"))
PICTURE = Venv("picture", ("matplotlib==3.11.2",))


class Contender(NamedTuple):
    """One line of a table.

    Args:
        weight: The number of messages of a run, in thousands. Slow clients get fewer, so that a run ends. Fast clients
            get more, so that a run lasts long enough to be measured.
        body: The client in whose format the queue is filled.
        transport: ``SMARTPIPE_TRANSPORT``, for smartpipe only.
        concurrency: ``SMARTPIPE_CONCURRENCY``, for smartpipe only. The bare loop has 80 messages in flight.
        note: The setup, for the table.
    """

    name: str
    venv: Venv
    script: str
    weight: int
    note: str
    body: str = "cloudevent"
    transport: str = ""
    concurrency: int = 10


CONSUMERS = (
    Contender(
        "smartpipe, in memory",
        OURS,
        "by_smartpipe",
        10,
        "no network, concurrency 80; this is the framework's own cost",
        transport="memory",
        concurrency=80,
    ),
    Contender(SMARTPIPE, OURS, "by_smartpipe", 30, "concurrency 80", transport="direct", concurrency=80),
    Contender("smartpipe, concurrency 10", OURS, "by_smartpipe", 30, "the default", transport="direct"),
    Contender(
        "smartpipe over botocore",
        OURS,
        "by_smartpipe",
        5,
        "concurrency 80, SMARTPIPE_TRANSPORT=botocore",
        transport="botocore",
        concurrency=80,
    ),
    Contender(BARE, LOOP, "by_aiobotocore", 20, "8 tasks, ten messages per receive and per delete"),
    Contender(
        "sqs-workers",
        SQS_WORKERS,
        "by_sqs_workers",
        3,
        "blocking, ten messages per receive and per delete",
        "sqs-workers",
    ),
    Contender("boto3, 4 threads", BOTO3, "by_boto3", 3, "ten messages per receive and per delete"),
    Contender("tomodachi", TOMODACHI, "by_tomodachi", 2, "ten messages per receive, one per delete", "tomodachi"),
    Contender("kombu", KOMBU, "by_kombu", 2, "blocking, ten messages per receive, one per delete", "kombu"),
    Contender("taskiq-aio-sqs", TASKIQ, "by_taskiq", 2, "ten messages per receive, one per delete", "taskiq"),
)
PUBLISHERS = (
    Contender("smartpipe, publish_many", OURS, "by_smartpipe", 30, "ten events per PublishBatch", transport="direct"),
    Contender(
        "smartpipe over botocore, publish_many",
        OURS,
        "by_smartpipe",
        10,
        "the same, SMARTPIPE_TRANSPORT=botocore",
        transport="botocore",
    ),
    Contender(BARE, LOOP, "by_aiobotocore", 20, "8 tasks, ten events per PublishBatch"),
    Contender("boto3, 4 threads", BOTO3, "by_boto3", 3, "ten events per PublishBatch"),
)
SINGLE_PUBLISHERS = (
    Contender(
        "smartpipe, publish",
        OURS,
        "by_smartpipe",
        30,
        "batched for 5 ms, ten events per PublishBatch",
        transport="direct",
    ),
    Contender(
        "smartpipe over botocore, publish",
        OURS,
        "by_smartpipe",
        5,
        "the same, SMARTPIPE_TRANSPORT=botocore",
        transport="botocore",
    ),
    Contender(BARE, LOOP, "by_aiobotocore", 5, "one event per Publish"),
    Contender("tomodachi", TOMODACHI, "by_tomodachi", 2, "one event per Publish"),
)
IDLE = Contender("smartpipe, idle", OURS, "by_smartpipe", 0, "20-second polls of an empty queue", transport="direct")

TABLES = {"consume": CONSUMERS, "publish": PUBLISHERS, "publish-single": SINGLE_PUBLISHERS}
