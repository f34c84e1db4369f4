"""``smartpipe topology``, as people and pipelines use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smartpipe.blocking import Publisher
from smartpipe.names import Naming
from smartpipe.topology.export.iam import build_policies
from tests.acceptance import services
from tests.acceptance.conftest import TARGET
from tests.support.processes import ROOT, Process, smartpipe
from tests.support.proxy import Fault, FaultProxy, allowed_by
from tests.support.terminal import Terminal
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smartpipe import EmbeddedBroker
    from tests.acceptance.conftest import Command, Jobs
    from tests.support.queues import Queues

pytestmark = pytest.mark.usefixtures("fast_broker")


def prefixed(name: str) -> str:
    return os.environ["SMARTPIPE_PREFIX"] + name


def test_a_plan_exits_with_1_for_changes_and_0_without_and_describes_them(inside: Command, queues: Queues) -> None:
    new = smartpipe("topology", "plan", TARGET)
    inside("topology", "apply", "--yes", TARGET)
    same = inside("topology", "plan", TARGET)
    boto3.client("sqs").set_queue_attributes(QueueUrl=queues.url("jobs"), Attributes={"VisibilityTimeout": "7"})
    changed = inside("topology", "plan", TARGET)

    assert (new.returncode, same.returncode, changed.returncode) == (1, 0, 1)
    where, *lines = new.stdout.splitlines()
    assert where.startswith("account 000000000000, us-east-1, prefix ")
    assert lines == [
        f"  + queue        {prefixed('jobs-dlq')}",
        f"  + queue        {prefixed('jobs')}",
        f"  + topic        {prefixed('jobs')}",
        f"  + subscription {prefixed('jobs')} → {prefixed('jobs')}",
        "4 to create, 0 to update, 0 to delete",
    ]
    assert same.stdout.splitlines()[1:] == ["nothing to change; 4 unchanged"]
    assert changed.stdout.splitlines()[1:3] == [
        f"  ~ queue        {prefixed('jobs')}",
        "      VisibilityTimeout: 7 → 30",
    ]


def test_a_plan_as_json_has_every_resource_account_and_prefix(inside: Command) -> None:
    inside("topology", "apply", "--yes", TARGET)

    result = inside("topology", "plan", "--json", TARGET)

    found = json.loads(result.stdout)
    assert {change["action"] for change in found["changes"]} == {"unchanged"}
    assert len(found["changes"]) == 4
    assert (found["account_id"], found["prefix"], found["notes"]) == ("000000000000", prefixed(""), [])


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "is AWS_ENDPOINT_URL correct, and does the network allow connections to it?",
        ),
        ({"SMARTPIPE_APPLICATION": "a#b"}, "SMARTPIPE_APPLICATION=a#b"),
    ],
)
def test_an_impossible_plan_exits_with_2_without_a_traceback(
    inside: Command, environment: dict[str, str], sentence: str
) -> None:
    result = inside("topology", "plan", TARGET, **environment)

    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_apply_asks_and_changes_nothing_after_a_no(inside: Command) -> None:
    terminal = Terminal(ROOT, "topology", "apply", TARGET)
    try:
        terminal.wait_for("Make these changes? [y/N]: ")
        terminal.type("n\n")
        refused = terminal.wait()
    finally:
        terminal.end()

    assert refused == 1
    assert "nothing was changed" in terminal.lines
    assert inside("topology", "plan", TARGET).returncode == 1


def test_apply_asks_and_shows_progress_after_a_yes() -> None:
    terminal = Terminal(ROOT, "topology", "apply", TARGET)
    try:
        terminal.wait_for("Make these changes? [y/N]: ")
        terminal.type("y\n")
        code = terminal.wait()
    finally:
        terminal.end()

    assert code == 0
    assert sum(f"+ topic        {prefixed('jobs')}" in line for line in terminal.lines) == 1
    assert terminal.lines[-2:] == [
        f"  [4/4] create subscription {prefixed('jobs')} → {prefixed('jobs')}",
        "4 changes made",
    ]


def test_with_yes_each_change_is_printed_once_when_it_is_made(inside: Command, queues: Queues) -> None:
    created = inside("topology", "apply", "--yes", TARGET)
    boto3.client("sqs").set_queue_attributes(QueueUrl=queues.url("jobs"), Attributes={"VisibilityTimeout": "7"})
    updated = inside("topology", "apply", "--yes", TARGET)
    deleted = inside("topology", "destroy", "--yes", TARGET)

    assert created.stdout.splitlines()[1:] == [
        "4 to create, 0 to update, 0 to delete",
        f"  [1/4] create queue {prefixed('jobs-dlq')}",
        f"  [2/4] create queue {prefixed('jobs')}",
        f"  [3/4] create topic {prefixed('jobs')}",
        f"  [4/4] create subscription {prefixed('jobs')} → {prefixed('jobs')}",
        "4 changes made",
    ]
    assert updated.stdout.splitlines()[1:] == [
        "0 to create, 1 to update, 0 to delete; 3 unchanged",
        f"  [1/1] update queue {prefixed('jobs')}",
        "      VisibilityTimeout: 7 → 30",
        "1 change made",
    ]
    assert sum(prefixed("jobs-dlq") in line for line in deleted.stdout.splitlines()) == 1


@pytest.mark.parametrize("command", [["apply"], ["apply", "--json"], ["destroy"]])
def test_without_a_terminal_the_command_needs_yes(inside: Command, command: list[str]) -> None:
    if command == ["destroy"]:
        inside("topology", "apply", "--yes", TARGET)

    result = smartpipe("topology", *command, TARGET)

    assert result.returncode == 2
    assert "review the plan, then add --yes" in result.stderr


@pytest.mark.parametrize("mutations", [1, 2, 3, 4])
def test_a_killed_apply_is_finished_by_the_next(inside: Command, fast_broker: EmbeddedBroker, mutations: int) -> None:
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        hanging = proxy.add(Fault(skip=mutations - 1, delay_seconds=60, when=lambda call: call.operation in MUTATIONS))
        process = Process("topology", "apply", "--yes", TARGET, AWS_ENDPOINT_URL=proxy.endpoint_url)
        process.wait_until(lambda: hanging.hits)
        process.signal(signal.SIGKILL)
        process.wait()

    half = inside("topology", "plan", TARGET)
    again = inside("topology", "apply", "--yes", TARGET)

    assert half.returncode == 1
    assert again.returncode == 0
    assert inside("topology", "plan", TARGET).returncode == 0


MUTATIONS = ("CreateQueue", "CreateTopic", "Subscribe")


def test_destroy_refuses_while_a_queue_holds_messages_and_shows_the_deletions(inside: Command, queues: Queues) -> None:
    inside("topology", "apply", "--yes", TARGET)
    queues.send("jobs", "precious")

    refused = inside("topology", "destroy", "--yes", TARGET)
    forced = inside("topology", "destroy", "--yes", "--even-if-not-empty", TARGET)

    assert refused.returncode == 1
    assert refused.stdout.count("  - ") == 4
    assert refused.stderr.splitlines() == [
        f"smartpipe: queue {prefixed('jobs')} holds about 1 message",
        "smartpipe: nothing is deleted: handle or move the messages, or add --even-if-not-empty to lose them",
    ]
    assert forced.returncode == 0
    assert inside("topology", "plan", TARGET).stdout.endswith("4 to create, 0 to update, 0 to delete\n")


def test_destroy_keeps_the_resources_of_another_application(inside: Command) -> None:
    inside("topology", "apply", "--yes", TARGET, SMARTPIPE_APPLICATION="billing")

    result = inside("topology", "destroy", "--yes", TARGET)
    as_json = json.loads(inside("topology", "destroy", "--yes", "--json", TARGET).stdout)

    assert result.returncode == 0
    assert result.stdout.count("(kept: its tags name application billing)") == 3
    assert {one["reason"] for one in as_json["kept"]} == {"its tags name application billing"}
    assert as_json["changes"] == []
    assert inside("topology", "plan", TARGET, SMARTPIPE_APPLICATION="billing").returncode in {0, 1}


def test_destroying_orphans_needs_an_application_name_and_the_tagging_api(
    inside: Command,
    fast_broker: EmbeddedBroker,
) -> None:
    nameless = inside("topology", "destroy", "--orphaned", "--yes", TARGET)
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        proxy.add(Fault("GetResources", answer=(403, "AccessDeniedException", "no")))
        blind = inside(
            "topology", "destroy", "--orphaned", "--yes", TARGET,
            AWS_ENDPOINT_URL=proxy.endpoint_url, SMARTPIPE_APPLICATION="shop",
        )  # fmt: skip

    assert (nameless.returncode, blind.returncode) == (2, 1)
    assert "set SMARTPIPE_APPLICATION" in nameless.stderr
    assert "note: AWS did not list the resources that no TARGET declares" in blind.stdout
    assert "nothing is deleted" in blind.stderr


def test_an_interrupted_apply_reports_the_number_of_changes(fast_broker: EmbeddedBroker) -> None:
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        hanging = proxy.add(Fault("Subscribe", delay_seconds=60))
        process = Process("topology", "apply", "--yes", TARGET, AWS_ENDPOINT_URL=proxy.endpoint_url)
        process.wait_until(lambda: hanging.hits)
        process.signal(signal.SIGINT)
        code = process.wait()

    assert code == 1
    assert (
        process.lines[-1]
        == "smartpipe: interrupted after 3 of 4 changes: run the same command again to make the others"
    )


def test_a_failed_apply_prints_its_changes_as_json(inside: Command, fast_broker: EmbeddedBroker) -> None:
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        proxy.add(Fault("Subscribe", answer=(403, "AuthorizationError", "no")))
        result = inside("topology", "apply", "--yes", "--json", TARGET, AWS_ENDPOINT_URL=proxy.endpoint_url)

    assert result.returncode == 1
    assert [change["kind"] for change in json.loads(result.stdout)["changes"]] == ["queue", "queue", "topic"]


def test_a_closed_pipe_prints_no_error() -> None:
    command = f"{sys.executable} -m smartpipe topology plan {TARGET} | head -1; echo ${{PIPESTATUS[0]}}"

    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.stdout.splitlines()[0].startswith("account ")
    assert result.stdout.splitlines()[1] in {"141", "1"}  # 1, if everything was written before the pipe was closed
    assert result.stderr == ""


def test_two_applications_that_declare_one_queue_are_an_error(inside: Command) -> None:
    inside("topology", "apply", "--yes", TARGET, SMARTPIPE_APPLICATION="billing")

    result = inside("topology", "plan", TARGET)

    assert result.returncode == 2
    assert "belongs to application 'billing': two services claim one queue" in result.stderr


def test_show_prints_the_deployed_topology_with_the_number_of_messages(inside: Command, queues: Queues) -> None:
    before = inside("topology", "show", TARGET)
    inside("topology", "apply", "--yes", TARGET)
    queues.send("jobs", "one", "two")
    queues.send("jobs-dlq", "dead")
    _report_age(prefixed("jobs"), 90)

    after = inside("topology", "show", TARGET)
    as_json = json.loads(inside("topology", "show", "--json", TARGET).stdout)

    assert before.stdout.count("not deployed") == 3
    assert after.stdout.splitlines()[1:] == [
        f"topic {prefixed('jobs')}",
        "└── subscription type in job.posted",
        f"    └── queue {prefixed('jobs')}  2 waiting, 0 in flight, oldest 1.5 min",
        f"        └── dead-letter queue {prefixed('jobs-dlq')}  1 waiting, 0 in flight",
    ]
    [topic] = as_json["topics"]
    assert topic["branches"][0]["queue"]["visible"] == 2
    assert topic["branches"][0]["queue"]["dead_letters"]["visible"] == 1


def _report_age(queue: str, seconds: float) -> None:
    """Report the age of the oldest message, as SQS does once a minute."""
    dimensions: Any = [{"Name": "QueueName", "Value": queue}]
    datum: Any = {"MetricName": "ApproximateAgeOfOldestMessage", "Dimensions": dimensions, "Value": seconds}
    boto3.client("cloudwatch").put_metric_data(Namespace="AWS/SQS", MetricData=[datum])


def test_missing_permissions_are_reported_with_the_policy_to_ask_for(
    inside: Command, fast_broker: EmbeddedBroker
) -> None:
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        proxy.judge = allowed_by({}, "")
        result = inside("topology", "plan", TARGET, AWS_ENDPOINT_URL=proxy.endpoint_url)

    assert result.returncode == 2
    assert "your credentials may not call sqs:GetQueueUrl on arn:aws:sqs:us-east-1:000000000000:" in result.stderr
    assert 'ask for this policy: {"Version": "2012-10-17"' in result.stderr.splitlines()[-1]


def test_a_strict_worker_does_not_start_without_permission_to_read(jobs: Jobs, fast_broker: EmbeddedBroker) -> None:
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        proxy.add(Fault("GetTopicAttributes", answer=(403, "AuthorizationError", "no")))
        arguments = ("worker", TARGET, "--port", "0", "--verify", "strict")
        result = smartpipe(*arguments, AWS_ENDPOINT_URL=proxy.endpoint_url)

    assert result.returncode == 1
    assert "may not call sns:GetTopicAttributes" in result.stderr


def test_a_worker_reports_missing_resources_even_without_permission_to_read_all(fast_broker: EmbeddedBroker) -> None:
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        proxy.add(Fault("GetTopicAttributes", answer=(403, "AuthorizationError", "no")))
        result = smartpipe("worker", TARGET, "--port", "0", AWS_ENDPOINT_URL=proxy.endpoint_url)

    assert result.returncode == 1
    assert f"missing: queue {prefixed('jobs')}" in result.stderr


@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [("missing", 0, "differs from its declaration"), ("strict", 1, "differs: update queue"), ("off", 0, "")],
)
def test_a_worker_checks_the_topology_according_to_its_setting(
    jobs: Jobs, queues: Queues, mode: str, code: int, said: str
) -> None:
    boto3.client("sqs").set_queue_attributes(QueueUrl=queues.url("jobs"), Attributes={"DelaySeconds": "1"})

    worker = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0", "--verify", mode)
    try:
        until_blocking(lambda: worker.logged("ready") or not worker.running)
        if worker.running:
            worker.signal(signal.SIGTERM)
        ended = worker.wait()
    finally:
        worker.end()

    assert ended == code
    assert any(said in line for line in worker.lines)
    assert (worker.logged("verified") is not None) == (mode == "missing")


@pytest.fixture
def judged(fast_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The broker behind IAM: an access key such as ``consume`` has the permissions of the policy with that name."""
    naming = Naming("aws", "us-east-1", "000000000000", os.environ["SMARTPIPE_PREFIX"])
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        proxy.judge = allowed_by(build_policies(services.service, naming), naming.account_id)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        yield proxy


def test_the_exported_policies_are_sufficient_and_minimal(
    inside: Command, judged: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPTANCE_DIR", str(tmp_path))
    sqs = boto3.client("sqs", endpoint_url=judged._upstream)

    provisioning = {"AWS_ACCESS_KEY_ID": "provision"}
    assert inside("topology", "apply", "--yes", TARGET, **provisioning).returncode == 0
    url = sqs.get_queue_url(QueueName=prefixed("jobs"))["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"DelaySeconds": "1"})
    sqs.untag_queue(QueueUrl=url, TagKeys=["smartpipe:service"])
    _change_topic(judged._upstream)
    assert inside("topology", "apply", "--yes", TARGET, **provisioning).returncode == 0
    assert inside("topology", "plan", TARGET, **provisioning).returncode == 0
    assert inside("topology", "show", TARGET, **provisioning).returncode == 0

    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "publish")
        post("good", "poison", "good-2")
    worker = Process(
        "worker", TARGET, "--host", "127.0.0.1", "--port", "0", "--wait-seconds", "1", AWS_ACCESS_KEY_ID="consume"
    )
    try:
        happened = tmp_path / "happened"
        until_blocking(lambda: happened.exists() and happened.read_text().count("begun poison") == 3)
        worker.wait_until(lambda: happened.read_text().count("done good") == 2)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, "\n".join(worker.lines)
    finally:
        worker.end()
    for command in (["list"], ["redrive", "--yes"]):
        done = inside("dlq", *command, TARGET, AWS_ACCESS_KEY_ID="redrive")
        assert done.returncode == 0, done.stderr
    examined = inside("doctor", "--live", "--format", "json", TARGET, AWS_ACCESS_KEY_ID="examine")
    assert "SP300" not in {one["code"] for one in json.loads(examined.stdout)["findings"]}, examined.stdout
    assert inside("topology", "destroy", "--yes", "--even-if-not-empty", TARGET, **provisioning).returncode == 0

    for key in ("publish", "consume", "provision", "redrive", "examine"):
        used = {action for call in judged.calls if call.access_key == key for action in call.actions}
        granted = build_policies(services.service, Naming("aws", "us-east-1", "000000000000"))[key]["Statement"]
        allowed = {action for one in granted for action in listed(one["Action"])}
        assert allowed - used == set(), key
        assert used - allowed <= {"sts:GetCallerIdentity"}, key


def post(*names: str) -> None:
    with Publisher("test") as publisher:
        publisher.publish_many(services.JobPosted(name=name) for name in names)


def _change_topic(endpoint_url: str) -> None:
    """Change attributes of topic and subscription, so that an apply has to set them."""
    sns: Any = boto3.client("sns", endpoint_url=endpoint_url)
    arn = f"arn:aws:sns:us-east-1:000000000000:{prefixed('jobs')}"
    sns.set_topic_attributes(TopicArn=arn, AttributeName="KmsMasterKeyId", AttributeValue="alias/theirs")
    [subscription] = sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
    sns.set_subscription_attributes(
        SubscriptionArn=subscription["SubscriptionArn"], AttributeName="RawMessageDelivery", AttributeValue="false"
    )


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
