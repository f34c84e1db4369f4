"""The compared clients, each with its script, the pinned requirements of its venv, and its setup."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

BARE = "aiobotocore, bare loop"
SMARTPIPE = "smartpipe"
DEFAULT = "smartpipe, default settings"
SYNC = "smartpipe, default settings, sync handler"
FANFERRO = "fanferro"
FORTY_TASKS = f"{BARE}, 40 tasks"

AIOBOTOCORE = ("aiobotocore==3.10.0", "uvloop==0.23.0")
PYTHON_312 = (3, 12)
FAR_MILLISECONDS = 15.0


class Venv(NamedTuple):
    """A virtual environment with its requirements from PyPI and, if *checkout*, with this checkout.

    Args:
        needs: The oldest version of Python that the requirements support.
    """

    name: str
    requirements: tuple[str, ...]
    checkout: bool = False
    needs: tuple[int, int] = (3, 11)


OURS = Venv("smartpipe", AIOBOTOCORE, checkout=True)
LOOP = Venv("aiobotocore", AIOBOTOCORE)
BOTO3 = Venv("boto3", ("boto3==1.43.117",))
SQS_WORKERS = Venv("sqs-workers", ("sqs-workers==0.7.3", "boto3==1.43.117", "typing-extensions==4.16.0"))
KOMBU = Venv("kombu", ("kombu[sqs]==5.7.0", "boto3==1.43.117"))
TASKIQ = Venv("taskiq", ("taskiq-aio-sqs==2.1.1", "taskiq==0.13.0", *AIOBOTOCORE))
TOMODACHI = Venv("tomodachi", ("tomodachi==0.29.0", "aiobotocore==2.26.0", "uvloop==0.23.0"))
RUST = Venv("fanferro", ("fanferro[pydantic]==0.5.0", "uvloop==0.23.0"), needs=PYTHON_312)
SMITHY = Venv("aws-sdk", ("aws-sdk-sqs==0.12.0", "aws-sdk-sns==0.12.0", "uvloop==0.23.0"), needs=PYTHON_312)
PICTURE = Venv("picture", ("matplotlib==3.11.2",))


class Contender(NamedTuple):
    """One line of a table.

    Args:
        weight: The number of messages of a run, in thousands. Slow clients get fewer, so that a run ends. Fast clients
            get more, so that a run lasts long enough to be measured.
        body: The client in whose format the queue is filled.
        variables: Environment variables for the client's script.
        note: The setup, for the table.
    """

    name: str
    venv: Venv
    script: str
    weight: int
    note: str
    body: str = "cloudevent"
    variables: Mapping[str, str] = {}

    @property
    def in_memory(self) -> bool:
        return self.variables.get("SMARTPIPE_TRANSPORT") == "memory"


class Table(NamedTuple):
    """The clients of a table.

    Args:
        mode: A key of ``WORK`` in the scripts of the clients.
        milliseconds: The round trip that is added between the clients and the broker.
    """

    title: str
    mode: str
    contenders: tuple[Contender, ...]
    milliseconds: float = 0.0


def _ours(name: str, weight: int, note: str, **variables: str) -> Contender:
    found = {key if key == "SYNC" else f"SMARTPIPE_{key}": value for key, value in variables.items()}
    return Contender(name, OURS, "by_smartpipe", weight, note, variables={"SMARTPIPE_TRANSPORT": "direct", **found})


CONSUMERS = (
    _ours(
        f"{SMARTPIPE}, in memory",
        10,
        "no network, concurrency 80; this is the framework's own cost",
        TRANSPORT="memory",
        CONCURRENCY="80",
    ),
    _ours(SMARTPIPE, 30, "concurrency 80", CONCURRENCY="80"),
    _ours(DEFAULT, 30, "concurrency 10"),
    _ours(f"{SMARTPIPE}, sync handler", 20, "concurrency 80", CONCURRENCY="80", SYNC="1"),
    _ours(SYNC, 20, "concurrency 10", SYNC="1"),
    _ours(
        f"{SMARTPIPE} over botocore",
        5,
        "concurrency 80, SMARTPIPE_TRANSPORT=botocore",
        TRANSPORT="botocore",
        CONCURRENCY="80",
    ),
    Contender(BARE, LOOP, "by_aiobotocore", 20, "8 tasks, ten messages per receive and per delete"),
    Contender(FANFERRO, RUST, "by_fanferro", 20, "concurrency 80", "fanferro", {"CONCURRENCY": "80"}),
    Contender(
        "aws-sdk-sqs", SMITHY, "by_aws_sdk", 5, "AWS's preview; 8 tasks, ten messages per receive and per delete"
    ),
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
FAR_WEIGHTS = {
    SMARTPIPE: 20, DEFAULT: 20, SYNC: 20, BARE: 5, FANFERRO: 2, "aws-sdk-sqs": 3, "sqs-workers": 1,
    "boto3, 4 threads": 2, "tomodachi": 1, "taskiq-aio-sqs": 1,
}  # fmt: skip
FAR_CONSUMERS = (
    *(one._replace(weight=FAR_WEIGHTS[one.name]) for one in CONSUMERS if one.name in FAR_WEIGHTS),
    Contender(FORTY_TASKS, LOOP, "by_aiobotocore", 10, "the same with 40 tasks", variables={"TASKS": "40"}),
)
PUBLISHERS = (
    _ours(f"{SMARTPIPE}, publish_many", 30, "ten events per PublishBatch"),
    _ours(
        f"{SMARTPIPE} over botocore, publish_many", 10, "the same, SMARTPIPE_TRANSPORT=botocore", TRANSPORT="botocore"
    ),
    Contender(BARE, LOOP, "by_aiobotocore", 20, "8 tasks, ten events per PublishBatch"),
    Contender(FANFERRO, RUST, "by_fanferro", 20, "publish_batch with 1,000 events, ten per PublishBatch"),
    Contender("aws-sdk-sns", SMITHY, "by_aws_sdk", 5, "AWS's preview; 8 tasks, ten events per PublishBatch"),
    Contender("boto3, 4 threads", BOTO3, "by_boto3", 3, "ten events per PublishBatch"),
)
SINGLE_PUBLISHERS = (
    _ours(f"{SMARTPIPE}, publish", 30, "those that wait for a request share the next one: ten events per PublishBatch"),
    _ours(f"{SMARTPIPE} over botocore, publish", 5, "the same, SMARTPIPE_TRANSPORT=botocore", TRANSPORT="botocore"),
    Contender(BARE, LOOP, "by_aiobotocore", 5, "one event per Publish"),
    Contender(FANFERRO, RUST, "by_fanferro", 5, "one event per Publish"),
    Contender("aws-sdk-sns", SMITHY, "by_aws_sdk", 1, "AWS's preview; one event per Publish"),
    Contender("tomodachi", TOMODACHI, "by_tomodachi", 2, "one event per Publish"),
)
IDLE = _ours("smartpipe, idle", 0, "20-second polls of an empty queue")

TABLES = {
    "consume": Table("Consuming: receive, handle, delete", "consume", CONSUMERS),
    "far": Table("Consuming over a round trip of 15 ms", "consume", FAR_CONSUMERS, FAR_MILLISECONDS),
    "publish": Table("Publishing many", "publish", PUBLISHERS),
    "publish-single": Table("Publishing one by one, with 100 concurrent calls", "publish-single", SINGLE_PUBLISHERS),
}
