"""The how-to pages: the snippets beside their examples, in the setting that the page describes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any, Literal

import boto3
import fastapi
import httpx
import pytest
import yaml

from smartpipe import Delivery, Event, PublishError, Service, Topic
from smartpipe.testing import MemoryBroker, provision
from smartpipe.transports.memory.transport import MemoryTransport
from smartpipe.transports.open import use_transport
from tests.acceptance.test_howto import blocks
from tests.support.examples import EXAMPLES, import_example
from tests.support.otlp import OtlpReceiver
from tests.support.processes import ROOT
from tests.support.topics import find_topic_arn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

    from smartpipe import EmbeddedBroker
    from tests.support.queues import Queues

PAGES = ROOT / "docs" / "howto"


class Unknown(Event, topic=Topic("unknown"), type="tests.unknown", version="1.0"):
    """An event whose topic does not exist."""


# --- logging.md ---

WORKER = """
import asyncio
import logging

from smartpipe import Event, Service, Topic
from smartpipe.cli.logs import configure
from smartpipe.testing import MemoryBroker

configure("info", "json")

{snippet}

class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str

service = Service("billing")

@service.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None:
    {statement}
    logging.getLogger("smartpipe.worker").warning("smartpipe's own", extra={{"fields": {{"queue": "billing"}}}})
    logging.getLogger("sqlalchemy").warning("a library's own")

async def main() -> None:
    async with MemoryBroker(service) as broker:
        await broker.publish(OrderPlaced(order_id="1"))
        await broker.drain()

asyncio.run(main())
"""
"""A program that configures logging as a worker does, and then imports a module with the snippet."""


def log(snippet: str, statement: str) -> list[str]:
    program = WORKER.format(snippet=snippet, statement=statement)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def logging_snippets() -> dict[str, str]:
    _, dict_config, structlog, rendering, loguru = blocks(PAGES / "logging.md", "python")
    return {"dictConfig": dict_config, "structlog": structlog, "structlog rendering": rendering, "loguru": loguru}


def test_the_dict_config_of_the_page_replaces_the_workers_handler() -> None:
    statement = 'logging.getLogger("shop.billing").info("Charging", extra={"order_id": event.order_id})'

    assert log(logging_snippets()["dictConfig"], statement) == [
        "INFO shop.billing Charging [__main__.charge]",
        "WARNING smartpipe.worker smartpipe's own [-]",
        "WARNING sqlalchemy a library's own [__main__.charge]",
    ]


def test_structlog_writes_the_workers_lines_with_its_keys_as_fields() -> None:
    pytest.importorskip("structlog")
    statement = 'structlog.get_logger("shop.billing").info("Charging %s", "now", order_id=event.order_id)'

    own, smartpipes, _ = map(json.loads, log(logging_snippets()["structlog"], statement))

    assert (own["level"], own["logger"], own["message"]) == ("info", "shop.billing", "Charging now")
    assert (own["order_id"], own["event_type"], own["handler"]) == ("1", "order.placed", "__main__.charge")
    assert "extra" not in own
    assert (smartpipes["message"], smartpipes["queue"]) == ("smartpipe's own", "billing")


def test_a_line_that_structlog_renders_itself_has_the_fields_of_the_delivery() -> None:
    pytest.importorskip("structlog")
    statement = 'structlog.get_logger().info("Charging", order_id=event.order_id)'

    lines = map(json.loads, log(logging_snippets()["structlog rendering"], statement))

    [own] = [line for line in lines if "event" in line]
    assert (own["level"], own["event"], own["order_id"]) == ("info", "Charging", "1")
    assert (own["handler"], own["event_type"], own["attempt"]) == ("__main__.charge", "order.placed", 1)
    assert {"event_id", "message_id", "trace_id", "span_id", "trace_flags"} <= set(own)


def test_a_traceback_of_structlog_is_in_the_line() -> None:
    pytest.importorskip("structlog")
    statement = """
    try:
        1 / 0
    except ZeroDivisionError:
        structlog.get_logger("shop.billing").exception("Failed")
    """

    own = json.loads(log(logging_snippets()["structlog"], statement)[0])

    assert (own["level"], own["message"]) == ("error", "Failed")
    assert own["exception"].endswith("ZeroDivisionError: division by zero")


def test_loguru_writes_the_workers_lines_with_bound_values_as_fields() -> None:
    pytest.importorskip("loguru")
    statement = 'logger.bind(order_id=event.order_id).info("Charging the card")'

    own = json.loads(log(logging_snippets()["loguru"], statement)[0])

    assert (own["level"], own["logger"], own["message"]) == ("info", "__main__", "Charging the card")
    assert (own["order_id"], own["event_type"]) == ("1", "order.placed")
    assert "extra" not in own


# --- fastapi.md ---

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def api() -> Iterator[ModuleType]:
    """The app of the page's first example, with the endpoint of its snippet."""
    with import_example("fastapi_app") as module:
        [snippet] = [block for block in blocks(PAGES / "fastapi.md", "python") if "read_traceparent" in block]
        exec(compile(snippet, "snippet", "exec", dont_inherit=True), {"__name__": "snippet"})
        yield module


async def test_the_event_of_a_repeated_request_has_one_id_and_the_trace_of_the_request(api: ModuleType) -> None:
    traces: list[str | None] = []
    service = Service("audit")

    @service.subscribe(api.OrderPlaced)
    async def note(event: Any, delivery: Delivery) -> None:
        traces.append(delivery.trace_id)

    transport = httpx.ASGITransport(api.app)
    headers = {"Idempotency-Key": "key-1", "traceparent": TRACEPARENT}
    async with (
        MemoryBroker(service) as broker,
        api.app.router.lifespan_context(api.app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        answers = [await client.put("/orders/1?cents=4200", headers=headers) for _ in range(2)]
        await client.put("/orders/1?cents=4200", headers={**headers, "traceparent": "nonsense"})
        await broker.drain()

    assert [answer.json() for answer in answers] == [{"event_id": "key-1"}] * 2
    assert traces[:2] == [TRACEPARENT.split("-")[1]] * 2
    assert traces[2] not in {None, traces[0]}


@pytest.mark.parametrize(("scope", "status"), [("function", 500), ("request", 200)])
async def test_fastapi_commits_before_its_response_only_with_the_scope_of_the_page(
    scope: Literal["function", "request"], status: int
) -> None:
    async def begin() -> AsyncIterator[None]:
        yield
        raise RuntimeError("the commit fails")

    app = fastapi.FastAPI()

    @app.post("/orders", dependencies=[fastapi.Depends(begin, scope=scope)])
    async def place_order() -> None: ...

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        response = await client.post("/orders")

    assert response.status_code == status
    assert f'scope="{scope}"' in (PAGES / "fastapi.md").read_text() or status == 200


# --- observability.md ---


async def test_an_app_that_only_publishes_serves_the_metrics_of_its_publisher() -> None:
    snippet, _ = blocks(PAGES.parent / "observability.md", "python")
    names: dict[str, Any] = {"__name__": "snippet"}
    with use_transport(MemoryTransport()):
        exec(compile(snippet, "snippet", "exec", dont_inherit=True), names)
    transport = httpx.ASGITransport(names["app"])
    async with names["publisher"] as publisher, httpx.AsyncClient(transport=transport, base_url="http://web") as client:
        with pytest.raises(PublishError):
            await publisher.publish(Unknown())
        text = await client.get("/metrics")
        opened = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'smartpipe_published_total{service="web",destination="unknown",result="NotFound"} 1\n' in text.text
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert opened.text.endswith("# EOF\n")


def test_a_program_that_only_publishes_exports_the_metrics_of_its_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    _, snippet = blocks(PAGES.parent / "observability.md", "python")
    with OtlpReceiver() as receiver, use_transport(MemoryTransport()):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        exec(compile(snippet, "snippet", "exec", dont_inherit=True), {"__name__": "snippet"})
    assert [one.resource["service.name"] for one in receiver.received] == ["web"]


# --- scheduled-jobs.md ---

SCHEDULED_TIME = "2026-11-26T02:00:00Z"


@pytest.fixture
def jobs(fast_broker: EmbeddedBroker) -> Iterator[ModuleType]:
    with import_example("scheduled_jobs") as module:
        yield module


async def test_the_schedules_target_publishes_an_event_that_reaches_the_queue(
    jobs: ModuleType, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provision(jobs.service)
    [text] = blocks(PAGES / "scheduled-jobs.md", "json")
    target = json.loads(text)
    call = json.loads(target["Input"].replace("<aws.scheduler.scheduled-time>", SCHEDULED_TIME))

    boto3.client("sns").publish(**{**call, "TopicArn": find_topic_arn("jobs")})

    [message] = queues.take("reports")
    assert message["Body"] == jobs.from_scheduler(SCHEDULED_TIME)


def test_eventbridge_scheduler_takes_the_target_as_it_is_on_the_page(moto: EmbeddedBroker) -> None:
    [text] = blocks(PAGES / "scheduled-jobs.md", "json")
    [command, *_] = [shell for shell in blocks(PAGES / "scheduled-jobs.md", "sh") if "create-schedule" in shell]
    expression = re.findall(r"--schedule-expression '(.*?)'", command)[0]
    session: Any = boto3.Session("local", "local", region_name="eu-west-1")
    scheduler = session.client("scheduler", endpoint_url=moto.environment["AWS_ENDPOINT_URL"])

    scheduler.create_schedule(
        Name="prod-nightly-report",
        ScheduleExpression=expression,
        ScheduleExpressionTimezone="Europe/Zurich",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target=json.loads(text),
    )

    assert scheduler.get_schedule(Name="prod-nightly-report")["Target"] == json.loads(text)


@pytest.fixture
def provisioned(jobs: ModuleType) -> None:
    asyncio.run(provision(jobs.service))


@pytest.mark.usefixtures("provisioned")
def test_the_program_of_the_cron_job_publishes_the_event(queues: Queues, tmp_path: Path) -> None:
    _, program = blocks(PAGES / "scheduled-jobs.md", "python")
    [cron_job] = [yaml.safe_load(text) for text in blocks(PAGES / "scheduled-jobs.md", "yaml")]
    [container] = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    _, name = container["command"]
    (tmp_path / name).write_text(program)

    subprocess.run([sys.executable, name], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(EXAMPLES)}, check=True)

    [message] = queues.take("reports")
    assert json.loads(message["Body"])["data"]["scheduled_at"].endswith("T02:00:00Z")


# --- ci.md ---

EVENTS = """
from smartpipe import Event, Topic


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str
"""
API = """
from shop.events import OrderPlaced
from smartpipe import Service

api = Service("shop", publishes=[OrderPlaced])
"""
BILLING = """
from shop.events import OrderPlaced
from smartpipe import Service

service = Service("billing")


@service.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...
"""


class Repository:
    """A repository with the files that the page assumes, in which the commands of its pipelines run."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # noqa: PTH120
        self.environment = {**os.environ, **environment, "PATH": path, "CI_DEFAULT_BRANCH": "main"}
        _, fixture = blocks(PAGES / "ci.md", "python")
        [toml] = blocks(PAGES / "ci.md", "toml")
        assert tomllib.loads(toml)["tool"]["smartpipe"]["services"] == ["shop.api:api", "shop.billing:service"]
        self.write("pyproject.toml", toml)
        self.write("shop/events.py", EVENTS)
        self.write("shop/api.py", API)
        self.write("shop/billing.py", BILLING)
        self.write("tests/test_topology.py", fixture)
        self.run("git init --quiet && git config user.email ci@example.com && git config user.name CI")
        self.run("smartpipe schema export && git add . && git commit --quiet -m First")
        self.run("git update-ref refs/remotes/origin/main HEAD")  # as after a checkout of the whole history

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def run(self, script: str) -> None:
        """Run *script* as a runner does: it ends at the first command that fails."""
        command = ["bash", "-e", "-o", "pipefail", "-c", script]
        subprocess.run(command, cwd=self.directory, env=self.environment, check=True, capture_output=True, text=True)


@pytest.fixture
def repository(fast_broker: EmbeddedBroker, tmp_path: Path) -> Repository:
    return Repository(tmp_path, os.environ)


def pipelines() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the scripts of each job, for GitHub and for GitLab, without those that install packages."""
    github, gitlab = (yaml.safe_load(text) for text in blocks(PAGES / "ci.md", "yaml"))

    def scripts(commands: list[str]) -> list[str]:
        return [command for command in commands if not command.startswith("pip install")]

    return (
        {
            name: scripts([step["run"] for step in job["steps"] if "run" in step])
            for name, job in github["jobs"].items()
        },
        {name: scripts(job["script"]) for name, job in gitlab.items() if name != "default"},
    )


@pytest.mark.timeout(240)
def test_the_commands_of_the_pipelines_succeed_in_order(repository: Repository) -> None:
    github, gitlab = pipelines()

    assert list(github) == ["test", "topology"]
    for scripts in github.values():
        for script in scripts:
            repository.run(script)
    for scripts in gitlab.values():
        repository.run("\n".join(script for script in scripts if script != "pytest"))  # once is enough


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "declaration",
    [EVENTS + "    cents: int\n", EVENTS.replace('version="1.0"', 'version="1.1"') + "    cents: int = 0\n"],
    ids=["a changed schema", "a new version that is not committed"],
)
def test_the_gate_of_the_schemas_fails_if_they_differ(repository: Repository, declaration: str) -> None:
    [gate] = [shell for shell in blocks(PAGES / "ci.md", "sh") if "git diff" in shell]
    repository.run(gate)

    repository.write("shop/events.py", declaration)

    with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):
        repository.run(gate)


@pytest.mark.timeout(120)
def test_the_gate_of_the_plan_accepts_changes_and_fails_without_a_plan(repository: Repository) -> None:
    [gate] = [shell for shell in blocks(PAGES / "ci.md", "sh") if "topology plan" in shell]
    repository.run(gate)

    repository.write("shop/billing.py", BILLING.replace("OrderPlaced)", "OrderPlaced, queue=5)"))

    with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):
        repository.run(gate)


# --- external-messages.md ---


async def test_s3_may_send_to_the_queue_with_the_policy_of_the_page_and_apply_keeps_it(
    fast_broker: EmbeddedBroker, queues: Queues
) -> None:
    with import_example("external_messages") as module:
        service = module.service
    await provision(service)
    sqs: Any = boto3.client("sqs")
    url = queues.url("inbox")
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    [page] = blocks(PAGES / "external-messages.md", "json")
    policy = page.replace("arn:aws:sqs:eu-west-1:123456789012:inbox", arn)
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})

    await provision(service)

    kept = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"]["Policy"]
    assert [one["Sid"] for one in json.loads(kept)["Statement"]] == ["AllowPhotosBucket", "SmartpipeAllowSns"]
    assert json.loads(kept)["Statement"][0] == json.loads(policy)["Statement"][0]


def test_the_model_of_the_page_knows_the_id_of_its_messages() -> None:
    names: dict[str, Any] = {}
    exec(blocks(PAGES / "external-messages.md", "python")[1], names)

    invoice = names["Invoice"].model_validate_json('{"invoiceNumber": "i-1"}')

    assert invoice.get_context().id == "i-1"
