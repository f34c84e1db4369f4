"""The playbook creates the same resources as ``topology apply``, which then has nothing to change."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smartpipe import Event, Service, Topic
from smartpipe.deploy.ansible import write_playbook
from smartpipe.deploy.place import Place
from tests.conftest import lead_to
from tests.support import exported
from tests.support.planted import refuse_planted
from tests.support.programs import find_ansible, find_program, judge
from tests.support.topologies import compare, left_to_do

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe import EmbeddedBroker

pytestmark = pytest.mark.timeout(600)
REGION = "eu-central-2"
"""The AWS CLI 1 ignores AWS_ENDPOINT_URL for SQS in regions with an old endpoint, which this one does not have."""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the playbook, and returns the counts of its recap."""
    program = find_ansible("ansible-playbook")
    find_program("aws", str(Path(program).parent))
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(variable, REGION)
    file = tmp_path / "playbook.yaml"

    def run(services: Sequence[Service]) -> dict[str, int]:
        place = Place(REGION, os.environ["SMARTPIPE_PREFIX"])
        file.write_text(write_playbook(services, place, "smartpipe"))
        own = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_LOCALHOST_WARNING": "False"}
        path = f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [program, str(file)],
            env={**os.environ, **own, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        refuse_planted(done.stdout, done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        recap = done.stdout.rpartition("PLAY RECAP")[2]
        return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap)}

    return run


def test_ansible_lint_has_no_findings_for_production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ansible_lint = find_ansible("ansible-lint")
    file = tmp_path / "playbook.yaml"
    file.write_text(write_playbook(exported.everything(), Place("eu-west-1"), "shop"))
    monkeypatch.setenv("PATH", f"{Path(ansible_lint).parent}{os.pathsep}{os.environ['PATH']}")

    judge(ansible_lint, "--offline", "--profile", "production", "--nocolor", str(file))


def lead_there(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_to({**broker.environment, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION}, monkeypatch)


async def test_a_playbook_leaves_nothing_to_apply_changes_nothing_again_and_undoes_drift(
    ministack: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, play: Any
) -> None:
    lead_there(ministack, monkeypatch)
    arn = boto3.client("sns", region_name="us-east-1").create_topic(Name=os.environ["SMARTPIPE_PREFIX"])["TopicArn"]

    class FarAway(Event, topic=Topic(arn=arn), type="ansible.far.away", version="1.0"):
        pass

    # No FIFO queue: ministack keeps the "True" that sqs_queue sends, and SQS does not.
    far_away = exported.subscribed(Service("far-away"), FarAway)
    services = [exported.mailer(), exported.archive(), exported.vault(), far_away]
    assert await left_to_do(*services)

    assert play(services)["changed"] > 0
    assert await left_to_do(*services) == []
    assert play(services)["changed"] == 0

    _let_drift(os.environ["SMARTPIPE_PREFIX"])
    drifted = (await compare(*services)).pending
    assert {change.kind for change in drifted} == {"topic", "queue", "subscription"}
    assert play(services)["changed"] > 0
    assert await left_to_do(*services) == []


def _let_drift(prefix: str) -> None:
    """Change attributes of all kinds: those that modules of Ansible know, and those that the AWS CLI sets."""
    sqs, sns = boto3.client("sqs"), boto3.client("sns")
    mailer = sqs.get_queue_url(QueueName=f"{prefix}mailer")["QueueUrl"]
    dead = sqs.get_queue_url(QueueName=f"{prefix}mailer-dlq")["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=mailer, Attributes={"DelaySeconds": "9", "SqsManagedSseEnabled": "false"})
    sqs.set_queue_attributes(QueueUrl=dead, Attributes={"RedriveAllowPolicy": '{"redrivePermission": "denyAll"}'})
    for topic in sns.list_topics()["Topics"]:
        if topic["TopicArn"].endswith(f":{prefix}accounts"):
            sns.set_topic_attributes(
                TopicArn=topic["TopicArn"], AttributeName="KmsMasterKeyId", AttributeValue="alias/other"
            )
            for one in sns.list_subscriptions_by_topic(TopicArn=topic["TopicArn"])["Subscriptions"]:
                for name, value in (("FilterPolicy", '{"type": ["other"]}'), ("RawMessageDelivery", "false")):
                    sns.set_subscription_attributes(
                        SubscriptionArn=one["SubscriptionArn"], AttributeName=name, AttributeValue=value
                    )


async def test_a_playbook_on_moto_lacks_only_the_policies_that_moto_forgets(
    moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, play: Any
) -> None:
    """Moto forgets a queue's policy when another attribute is set, and does not store RedriveAllowPolicy."""
    lead_there(moto, monkeypatch)
    services = [exported.ledger()]

    play(services)

    left = (await compare(*services)).pending
    assert {(change.kind, *change.attributes) for change in left} <= {("queue", "Policy")}
    assert all("-dlq" in str(change) for change in left)
