"""The Ansible playbook. tests/acceptance/test_ansible.py lints and runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from smartpipe import ConfigError, Event, FilterPolicy, Queue, Service, Topic
from smartpipe.deploy.ansible import write_playbook
from smartpipe.deploy.place import Place
from tests.support import exported

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Place("eu-west-1", "prod-", "123456789012")


def read(services: Sequence[Service], place: Place = HERE) -> Any:
    (play,) = yaml.safe_load(write_playbook(services, place, "shop"))
    return play


def tasks_of(play: Any) -> dict[str, Any]:
    return {task["name"]: task for task in play["tasks"]}


def test_the_playbook_has_every_topic_queue_and_subscription_and_no_external_one() -> None:
    variables = read(exported.everything())["vars"]

    assert [one["name"] for one in variables["topics"]] == [
        "prod-accounts", "prod-payments.fifo", "prod-films", "prod-trades.fifo", "prod-secrets",
    ]  # fmt: skip
    queues = [one["name"] for one in variables["queues"]]
    assert queues.index("prod-mailer-dlq") < queues.index("prod-mailer")
    assert not [name for name in queues if "theirs" in name or "their-dead" in name]
    regions = {one["topic_arn"]: one["region"] for one in variables["subscriptions"]}
    assert regions["arn:aws:sns:us-east-2:210987654321:partners"] == "us-east-2"


def test_the_account_is_found_out_when_the_playbook_runs_if_the_export_does_not_know_it() -> None:
    play = read(exported.services(), Place("eu-west-1", "prod-"))

    assert play["vars"]["aws_account_id"] == "{{ caller.stdout }}"
    (mailer,) = [one for one in play["vars"]["queues"] if one["name"] == "prod-mailer"]
    assert mailer["url"] == "https://sqs.eu-west-1.amazonaws.com/{{ aws_account_id }}/prod-mailer"
    (statement,) = mailer["policy"]["Statement"]
    assert statement["Resource"] == "arn:aws:sqs:eu-west-1:{{ aws_account_id }}:prod-mailer"
    assert statement["Condition"]["StringEquals"] == {"aws:SourceAccount": "{{ aws_account_id }}"}
    assert "Check the account" not in tasks_of(play)


def test_a_playbook_for_one_account_refuses_the_credentials_of_another() -> None:
    check = tasks_of(read(exported.services()))["Check the account"]["ansible.builtin.assert"]

    assert check["that"] == ["caller.stdout == aws_account_id"]
    assert "the export was made for 123456789012" in check["fail_msg"]


def test_text_of_users_is_not_a_template_of_ansible() -> None:
    class Templated(Event, topic=Topic("jinja"), type="jinja.templated", version="1.0"):
        pass

    policy = FilterPolicy({"tenant": ["a {{ lookup('env', 'HOME') }} {% b %}"]})
    service = Service("jinja", queue=Queue("jinja", filter_policy=policy))
    play = read([exported.subscribed(service, Templated)])

    (subscription,) = play["vars"]["subscriptions"]
    escaped = "a {{ '{{' }} lookup('env', 'HOME') }} {{ '{%' }} b %}"
    assert subscription["attributes"]["FilterPolicy"]["tenant"] == [escaped]


def test_a_direct_queue_has_no_empty_policy() -> None:
    queues = read(exported.services())["vars"]["queues"]

    assert [one["name"] for one in queues if "policy" not in one] == ["prod-reports-dlq", "prod-reports"]


def test_a_queue_is_subscribed_with_its_filter_policy_so_that_it_gets_no_other_events() -> None:
    subscribe = tasks_of(read(exported.services()))["Subscribe queues, with their filter policies"]

    arguments = subscribe["ansible.builtin.command"]["argv"]
    assert "--attributes" in arguments
    assert "FilterPolicy" in arguments[arguments.index("--attributes") + 1]


def test_wrong_declarations_are_an_error_as_in_every_format() -> None:
    twice = [exported.subscribed(Service(name, queue=Queue("same")), exported.AccountOpened) for name in "ab"]

    with pytest.raises(ConfigError, match="queue 'same' is claimed by two services"):
        write_playbook(twice, HERE, "shop")
