"""CloudWatch alarms: alone in a template, and in the template of the topology."""

from __future__ import annotations

from typing import Any

import pytest

from smartpipe import ConfigError, Queue, Service
from smartpipe.monitoring.rules import AlertOptions
from smartpipe.topology.export.cloudformation import build_alarm_template, build_template
from tests.support import exported
from tests.support.exported import AccountOpened, numbered, subscribed
from tests.support.processes import ROOT

OPTIONS = AlertOptions(promise_seconds=60)


def alarms_of(*services: Service) -> dict[str, Any]:
    return build_alarm_template(services, prefix="test-", application="shop", options=OPTIONS)


def with_alarms(*services: Service) -> dict[str, Any]:
    return build_template(services, prefix="test-", application="shop", alarms=OPTIONS)


def test_each_queue_dead_letter_queue_and_topic_has_its_alarm() -> None:
    resources = alarms_of(exported.mailer())["Resources"]

    found = {
        name: (one["Properties"]["MetricName"], one["Properties"]["Dimensions"][0]["Value"])
        for name, one in resources.items()
    }
    assert found == {
        "AccountsTopicFailedAlarm": ("NumberOfNotificationsFailed", "test-accounts"),
        "MailerDlqQueueNotEmptyAlarm": ("ApproximateNumberOfMessagesVisible", "test-mailer-dlq"),
        "MailerQueueAgeAlarm": ("ApproximateAgeOfOldestMessage", "test-mailer"),
    }


def test_the_age_may_be_the_promise_and_the_delay_of_the_queue() -> None:
    delayed = alarms_of(exported.mailer())["Resources"]["MailerQueueAgeAlarm"]["Properties"]

    assert delayed["Threshold"] == 60 + 5


def test_only_a_standard_queue_has_the_caveat_about_messages_received_three_times() -> None:
    standard, ordered = (
        alarms_of(service)["Resources"][name]["Properties"]["AlarmDescription"]
        for service, name in (
            (exported.archive(), "ArchiveQueueAgeAlarm"),
            (exported.ledger(), "LedgerQueueFifoAgeAlarm"),
        )
    )

    assert "three times" in standard
    assert "three times" not in ordered


def test_alarms_in_the_template_of_the_topology_refer_to_its_queues() -> None:
    found = with_alarms(exported.mailer())
    resources = found["Resources"]

    assert resources["MailerQueueAgeAlarm"]["Properties"]["Dimensions"] == [
        {"Name": "QueueName", "Value": {"Fn::GetAtt": ["MailerQueue", "QueueName"]}}
    ]
    without = build_template([exported.mailer()], prefix="test-", application="shop")["Resources"]
    assert {name: one for name, one in resources.items() if name in without} == without
    assert "AlarmTopicArn" in found["Parameters"]


def test_alarms_notify_a_topic_only_if_it_is_given() -> None:
    found = alarms_of(exported.mailer())

    assert found["Conditions"]["HasAlarmTopic"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "AlarmTopicArn"}, ""]}]}
    for one in found["Resources"].values():
        assert one["Properties"]["AlarmActions"] == {
            "Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]
        }


def test_every_alarm_names_a_runbook_that_exists() -> None:
    for one in alarms_of(*exported.everything())["Resources"].values():
        page = one["Properties"]["AlarmDescription"].rpartition("Runbook: ")[2]
        assert (ROOT / page).exists(), page


def test_external_queues_and_topics_have_no_alarms() -> None:
    assert list(alarms_of(exported.borrower())["Resources"]) == ["AccountsTopicFailedAlarm"]


def test_an_alarm_template_with_too_many_alarms_is_refused() -> None:
    services = [subscribed(Service(f"many-{number}"), numbered(number)) for number in range(167)]

    with pytest.raises(ConfigError, match="501 alarms"):
        alarms_of(*services)


def test_a_fifo_queue_and_a_standard_one_of_the_same_name_have_different_alarms() -> None:
    fifo = subscribed(Service("a", queue=Queue("same", fifo=True)), exported.PaymentMade)
    standard = subscribed(Service("b", queue=Queue("same")), AccountOpened)

    names = list(alarms_of(fifo, standard)["Resources"])

    assert {"SameQueueAgeAlarm", "SameQueueFifoAgeAlarm"} <= set(names)
