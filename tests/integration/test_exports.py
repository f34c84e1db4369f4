"""Templates create the same resources as ``topology apply``, which then has nothing to change."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, TypedDict

import boto3
import pytest

from smartpipe import Event, Service, Topic
from smartpipe.topology.export.cloudformation import build_template
from smartpipe.topology.export.terraform import build_configuration
from smartpipe.topology.resources import TAGS
from tests.conftest import lead_to
from tests.support import exported
from tests.support.cloudformation import Stack
from tests.support.terraform import Workspace, find_errors
from tests.support.topologies import compare, left_to_do

if TYPE_CHECKING:
    from smartpipe import EmbeddedBroker


class Names(TypedDict):
    prefix: str
    application: str


def naming() -> Names:
    return {"prefix": os.environ["SMARTPIPE_PREFIX"], "application": "smartpipe"}


async def test_a_cloudformation_template_leaves_nothing_to_apply(broker: EmbeddedBroker) -> None:
    services = exported.services()
    assert await left_to_do(*services)

    outputs = Stack(build_template(services, **naming())).make()

    assert await left_to_do(*services) == []
    assert outputs["MailerQueueUrl"].endswith(f"/{os.environ['SMARTPIPE_PREFIX']}mailer")
    assert outputs["AccountsTopicArn"].endswith(f":{os.environ['SMARTPIPE_PREFIX']}accounts")


async def test_a_terraform_configuration_leaves_nothing_to_apply(broker: EmbeddedBroker) -> None:
    services = exported.services()
    assert await left_to_do(*services)

    outputs = Workspace(build_configuration(services, **naming())).apply()

    assert await left_to_do(*services) == []
    name = f"{os.environ['SMARTPIPE_PREFIX']}mailer"
    assert outputs["queue_urls"][name].endswith(f"/{name}")


@pytest.mark.parametrize("tool", ["cloudformation", "terraform"])
async def test_an_external_topic_is_subscribed_to_and_not_changed(broker: EmbeddedBroker, tool: str) -> None:
    arn = boto3.client("sns").create_topic(Name=naming()["prefix"] + "theirs")["TopicArn"]

    class Theirs(Event, topic=Topic(arn=arn), type="theirs", version="1.0"):
        pass

    service = exported.subscribed(Service("s"), Theirs)

    if tool == "cloudformation":
        Stack(build_template([service], **naming())).make()
    else:
        Workspace(build_configuration([service], **naming())).apply()

    assert await left_to_do(service) == []
    assert boto3.client("sns").list_tags_for_resource(ResourceArn=arn)["Tags"] == []


@pytest.mark.parametrize("tool", ["cloudformation", "terraform"])
@pytest.mark.parametrize("region", ["us-east-1", "me-south-1", "ap-northeast-3"])
async def test_policies_allow_the_principal_for_the_region_of_the_deployment(
    broker: EmbeddedBroker, tool: str, region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    monkeypatch.setenv("AWS_REGION", region)

    def their(topic_region: str) -> type[Event]:
        sns = boto3.client("sns", region_name=topic_region)
        arn = sns.create_topic(Name=f"{naming()['prefix']}{topic_region}")["TopicArn"]

        class Theirs(Event, topic=Topic(arn=arn), type=f"theirs.{topic_region}", version="1.0"):
            pass

        return Theirs

    far, near, here = their("me-south-1"), their("eu-west-1"), exported.AccountOpened
    wanted: list[list[type[Event]]] = [[far], [near], [far, near], [far, here], [near, here], [far, near, here]]
    services = [exported.subscribed(Service(f"s{number}"), *events) for number, events in enumerate(wanted)]

    if tool == "cloudformation":
        Stack(build_template(services, **naming())).make()
    else:
        found = build_configuration(services, **naming())
        assert find_errors(found) == []
        Workspace(found).apply()

    assert await left_to_do(*services) == []


async def test_a_stack_of_motos_engine_lacks_only_the_features_that_moto_lacks(
    moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_to(moto.environment, monkeypatch)
    services = exported.services()
    body = json.dumps(build_template(services, **naming()))

    boto3.client("cloudformation").create_stack(StackName=naming()["prefix"] + "stack", TemplateBody=body)

    left = (await compare(*services)).pending
    assert {(change.action, change.kind) for change in left} == {
        ("update", "queue"),
        ("update", "topic"),
        ("create", "subscription"),
    }
    assert [set(change.attributes) for change in left if change.kind == "queue"] == [{"Policy"}] * 6
    assert [set(change.attributes) for change in left if change.kind == "topic"] == [{TAGS}] * 2
