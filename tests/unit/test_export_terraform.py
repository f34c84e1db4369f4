from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, FilterPolicy, Queue, Service
from smartpipe.topology.export.terraform import build_configuration
from tests.support import exported
from tests.support.exported import AccountOpened, numbered, subscribed
from tests.support.terraform import find_errors
from tests.support.terraform_program import adapt_to_older_provider, initialize, validate

if TYPE_CHECKING:
    from pathlib import Path


def configuration_of(*services: Service) -> dict[str, Any]:
    return build_configuration(services, prefix="test-", application="shop")


def resources(kind: str, *services: Service) -> dict[str, Any]:
    found: dict[str, Any] = configuration_of(*services)["resource"].get(kind, {})
    return found


def everything() -> list[Service]:
    return [service for service in exported.everything() if service.name != "cinema"]


def test_the_aws_provider_knows_every_argument_of_a_configuration_with_every_feature() -> None:
    assert find_errors(configuration_of(*everything())) == []


@pytest.mark.timeout(400)
def test_terraform_accepts_a_configuration_with_every_feature(tmp_path: Path) -> None:
    initialize(tmp_path, adapt_to_older_provider(configuration_of(*everything())))

    assert validate(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "change", "error"),
    [
        ("aws_sqs_queue", {"color": "red"}, "no such argument color"),
        ("aws_sqs_queue", {"delay_seconds": "5"}, "delay_seconds is not of type int"),
        ("aws_sqs_queue", {"kms_master_key_id": "k"}, "these conflict"),
        (
            "aws_sns_topic_subscription",
            {"endpoint": "${aws_sqs_queue.gone.arn}"},
            "aws_sqs_queue.gone.arn refers to an unknown object",
        ),
    ],
)
def test_the_table_of_the_provider_finds_errors(kind: str, change: dict[str, Any], error: str) -> None:
    found = configuration_of(exported.mailer())
    next(iter(found["resource"][kind].values())).update(change)

    assert any(error in one for one in find_errors(found))


def test_a_configuration_names_no_account_and_has_only_the_data_sources_that_it_uses() -> None:
    found = configuration_of(*exported.services())

    assert "this-" not in json.dumps(found)
    assert found["data"] == {"aws_caller_identity": {"current": {}}}


def test_a_configuration_does_not_depend_on_the_order_of_the_targets() -> None:
    services = everything()

    assert json.dumps(configuration_of(*services)) == json.dumps(configuration_of(*reversed(services)))


def test_text_of_users_that_looks_like_a_template_stays_text() -> None:
    [subscription] = resources("aws_sns_topic_subscription", exported.mailer()).values()

    assert json.loads(subscription["filter_policy"])["tenant"] == ["acme", {"prefix": "$${x} %%{y} <&>\"'"}]


def test_a_filter_with_a_null_is_json_text() -> None:
    policy = FilterPolicy({"data": {"name": [None, "x"]}}, scope="MessageBody")
    service = subscribed(Service("s", queue=Queue("s", filter_policy=policy)), AccountOpened)

    [subscription] = resources("aws_sns_topic_subscription", service).values()

    assert json.loads(subscription["filter_policy"])["data"] == {"name": [None, "x"]}


def test_queue_and_dead_letter_queue_allow_each_other_without_a_circular_reference() -> None:
    queues = resources("aws_sqs_queue", exported.mailer())
    allowing = resources("aws_sqs_queue_redrive_allow_policy", exported.mailer())

    redrive = json.loads(queues["mailer"]["redrive_policy"])
    assert redrive["deadLetterTargetArn"] == "${aws_sqs_queue.mailer_dlq.arn}"
    assert json.loads(allowing["mailer_dlq"]["redrive_allow_policy"])["sourceQueueArns"] == [
        "${aws_sqs_queue.mailer.arn}"
    ]
    assert "redrive_allow_policy" not in queues["mailer_dlq"]


def test_subscriptions_depend_on_the_policies_of_queue_and_dead_letter_queue() -> None:
    [subscription] = resources("aws_sns_topic_subscription", exported.mailer()).values()

    assert subscription["depends_on"] == ["aws_sqs_queue_policy.mailer", "aws_sqs_queue_policy.mailer_dlq"]


def test_a_policy_for_very_many_topics_allows_a_pattern_in_the_providers_account() -> None:
    found = configuration_of(subscribed(Service("s"), *map(numbered, range(200))))

    condition = json.loads(found["resource"]["aws_sqs_queue_policy"]["s"]["policy"])["Statement"][0]["Condition"]
    partition, region = "${data.aws_partition.current.partition}", "${data.aws_region.current.region}"
    account = "${data.aws_caller_identity.current.account_id}"
    assert condition["ArnLike"] == {"aws:SourceArn": [f"arn:{partition}:sns:{region}:{account}:test-many-*"]}
    assert find_errors(found) == []


def test_queues_have_the_size_limit_of_sqs_and_not_the_providers_default() -> None:
    queues = resources("aws_sqs_queue", exported.mailer())

    assert {queue["max_message_size"] for queue in queues.values()} == {1_048_576}


def test_a_topic_with_a_size_limit_is_refused_with_an_alternative() -> None:
    with pytest.raises(ConfigError, match=r"topic 'test-films'.*limit_bytes=1048576.*--format cloudformation"):
        configuration_of(exported.cinema())


def test_an_external_topic_is_subscribed_to_in_its_region_and_not_created() -> None:
    [subscription] = resources("aws_sns_topic_subscription", exported.affiliates()).values()

    assert (subscription["topic_arn"], subscription["region"]) == (exported.partners.arn, "us-east-2")
    assert resources("aws_sns_topic", exported.affiliates()) == {}


def test_an_external_queue_is_left_out() -> None:
    assert list(configuration_of(exported.borrower())["resource"]) == ["aws_sns_topic"]


def test_a_kms_key_replaces_the_keys_of_sqs() -> None:
    queue = resources("aws_sqs_queue", exported.vault())["vault"]

    assert queue["kms_master_key_id"] == "1234abcd-12ab-34cd-56ef-1234567890ab"
    assert "sqs_managed_sse_enabled" not in queue


def test_two_names_never_share_a_label() -> None:
    one, other = (subscribed(Service(name, queue=Queue(name)), AccountOpened) for name in ("1-b", "1_b"))

    found = configuration_of(one, other)

    assert find_errors(found) == []
    assert len(found["resource"]["aws_sqs_queue"]) == 4
    assert len(found["resource"]["aws_sns_topic_subscription"]) == 2
