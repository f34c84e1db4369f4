"""The least that a service's processes need of IAM, by what they do: publish, consume, provision, redrive. Pure.

Source: Service Authorization Reference, "Actions, resources, and condition keys" for Amazon SNS, Amazon SQS, AWS KMS,
Resource Groups Tagging and CloudWatch. A batch is authorized as its single verb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.names import account_in, is_arn
from smartpipe.topology.derive import derive
from smartpipe.topology.resources import VERSION
from smartpipe.topology.table_and_bucket import (
    BUCKET_CREATE_ACTIONS,
    BUCKET_READ_ACTIONS,
    BUCKET_WRITE_ACTIONS,
    NO_COMPANIONS,
    TABLE_CREATE_ACTIONS,
    TABLE_REDRIVE_ACTIONS,
    TABLE_USE_ACTIONS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.names import Naming
    from smartpipe.topology.derive import Declares
    from smartpipe.topology.resources import Topology
    from smartpipe.topology.table_and_bucket import TableAndBucket

_ENCRYPT = ("kms:Decrypt", "kms:GenerateDataKey")
_KEYS_ALIAS = "alias/"


def policies(
    service: Declares, naming: Naming, companions: TableAndBucket = NO_COMPANIONS
) -> dict[str, dict[str, Any]]:
    """Return the policy documents ``publish``, ``consume``, ``provision`` and ``redrive``, without the empty ones.

    ``provision`` is for ``topology plan``, ``apply``, ``destroy`` and ``show``. It may look at all topics and queues
    with the environment's prefix, for a plan tells what nobody declares any more; it changes only this service's.
    ``redrive`` is for the commands of ``dlq``.

    Raises:
        ConfigError: The service's declarations contradict each other or AWS.
    """
    topology = derive([service], naming, companions)
    objects = [companions.bucket.objects_arn(naming.partition)] if companions.bucket else []
    readable = companions.readable_objects(naming.partition)
    found = {
        "publish": _publish(service, naming, objects),
        "consume": [*_consume(service, topology, naming), *_allow("GetPayloads", BUCKET_READ_ACTIONS, readable)],
        "provision": _provision(topology, naming),
        "redrive": [*_redrive(service, topology, naming), *_allow("GetPayloads", BUCKET_READ_ACTIONS, readable)],
    }
    return {name: {"Version": VERSION, "Statement": statements} for name, statements in found.items() if statements}


def _allow(sid: str, actions: Iterable[str], resources: Iterable[str]) -> list[dict[str, Any]]:
    """Return the statement, or none where there is nothing that it would be for."""
    on = sorted(set(resources))
    return [{"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": on}] if on else []


def _publish(service: Declares, naming: Naming, objects: list[str]) -> list[dict[str, Any]]:
    topics = [contract.topic for contract in service.published]
    keys = [*(topic.kms_key for topic in topics), *(queue.kms_key for queue in service.sends_to)]
    return [
        *_allow("PublishToTopics", ["sns:Publish"], [naming.topic_arn(topic.name) for topic in topics]),
        *_allow(
            "SendToQueues",
            ["sqs:GetQueueUrl", "sqs:SendMessage"],
            [naming.queue_arn(queue.name) for queue in service.sends_to],
        ),
        *_keys("EncryptWhatIsPublished", keys, naming),
        *_allow("PutPayloads", BUCKET_WRITE_ACTIONS, objects if topics or service.sends_to else []),
    ]


def _consume(service: Declares, topology: Topology, naming: Naming) -> list[dict[str, Any]]:
    queues = [binding.queue for binding in service.bindings]
    looked_at = _looked_at([topic for topic, _ in topology.subscriptions], naming)
    subscribed = any(endpoint not in topology.external for _, endpoint in topology.subscriptions)
    return [
        *_allow(
            "ReceiveFromQueues",
            [
                "sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl",
                "sqs:ReceiveMessage",
            ],
            [naming.queue_arn(queue.name) for queue in queues],
        ),
        *_allow(
            "SendDeadLetters",
            ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"],
            [naming.queue_arn(queue.dead_letter_name) for queue in queues],
        ),
        *_allow("LookAtTopics", ["sns:GetTopicAttributes"], looked_at.topics),
        *_allow("LookAtSubscribers", ["sns:ListSubscriptionsByTopic"], looked_at.own),
        *_anywhere(
            "LookAtSubscriptions",
            [
                *(["sns:GetSubscriptionAttributes"] if subscribed else []),
                *(["sns:ListSubscriptions"] if looked_at.others else []),
            ],
        ),
        *_keys("DecryptWhatIsReceived", [queue.kms_key for queue in queues], naming),
        *_allow("ClaimOnce", TABLE_USE_ACTIONS, topology.tables),
    ]  # fmt: skip


def _provision(topology: Topology, naming: Naming) -> list[dict[str, Any]]:
    own_topics, own_queues = (
        [arn for arn in arns if arn not in topology.external] for arns in (topology.topics, topology.queues)
    )
    given_topics = [arn for arn in topology.topics if arn in topology.external]
    given_queues = [arn for arn in topology.queues if arn in topology.external]
    looked_at = _looked_at(given_topics, naming)
    return [
        *_allow(
            "LookAtTopics",
            ["sns:GetTopicAttributes", "sns:ListSubscriptionsByTopic", "sns:ListTagsForResource"],
            [naming.topic_arn("*"), *looked_at.own],
        ),
        *_allow(
            "LookAtQueues",
            ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:ListDeadLetterSourceQueues", "sqs:ListQueueTags"],
            [naming.queue_arn("*"), *given_queues],
        ),
        *_allow(
            "ChangeTopics",
            ["sns:CreateTopic", "sns:DeleteTopic", "sns:SetTopicAttributes", "sns:Subscribe", "sns:TagResource"],
            own_topics,
        ),
        *_allow(
            "ChangeQueues",
            ["sqs:CreateQueue", "sqs:DeleteQueue", "sqs:SetQueueAttributes", "sqs:TagQueue"],
            own_queues,
        ),
        *_allow("ChangeTables", TABLE_CREATE_ACTIONS, topology.tables),
        *_allow("ChangeBuckets", BUCKET_CREATE_ACTIONS, topology.buckets),
        *_allow("SubscribeToTopicsOfOthers", ["sns:GetTopicAttributes", "sns:Subscribe"], given_topics),
        *_anywhere(
            "ChangeSubscriptions",
            [
                "cloudwatch:GetMetricData", "sns:GetSubscriptionAttributes", "sns:SetSubscriptionAttributes",
                "sns:Unsubscribe", "tag:GetResources", *(["sns:ListSubscriptions"] if looked_at.others else []),
            ],
        ),
    ]  # fmt: skip


def _redrive(service: Declares, topology: Topology, naming: Naming) -> list[dict[str, Any]]:
    queues = [binding.queue for binding in service.bindings]
    return [
        *_allow(
            "TakeDeadLetters",
            [
                "sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl",
                "sqs:ReceiveMessage",
            ],
            [naming.queue_arn(queue.dead_letter_name) for queue in queues],
        ),
        *_allow(
            "SendThemBack", ["sqs:GetQueueUrl", "sqs:SendMessage"], [naming.queue_arn(queue.name) for queue in queues]
        ),
        *_anywhere("SeeHowOldTheyAre", ["cloudwatch:GetMetricData"] if queues else []),
        *_keys("DecryptAndEncryptThem", [queue.kms_key for queue in queues], naming),
        *_allow("LookUpAndForgetClaims", TABLE_REDRIVE_ACTIONS, topology.tables),
    ]  # fmt: skip


def _anywhere(sid: str, actions: list[str]) -> list[dict[str, Any]]:
    """Return the statement for actions that IAM knows no resource of, subscriptions' among them."""
    return _allow(sid, actions, ["*"] if actions else [])


class _LookedAt(NamedTuple):
    """Topics whose subscriptions are looked at: another account shows its own only to itself."""

    own: list[str]
    others: list[str]

    @property
    def topics(self) -> list[str]:
        return [*self.own, *self.others]


def _looked_at(topics: Iterable[str], naming: Naming) -> _LookedAt:
    arns = list(topics)
    own = [arn for arn in arns if account_in(arn) == naming.account_id]
    return _LookedAt(own, [arn for arn in arns if arn not in own])


def _keys(sid: str, keys: Iterable[str | None], naming: Naming) -> list[dict[str, Any]]:
    """Return what using KMS keys takes: a key by its ARN, and one by its alias by a condition.

    Source: AWS KMS, "Use aliases to control access to KMS keys": an alias's ARN is no resource of these actions.
    """
    arns, aliases = set(), set()
    for key in filter(None, keys):
        home, _, name = key.rpartition(":") if is_arn(key) else (_home(naming), "", key)
        if name.startswith(_KEYS_ALIAS):
            aliases.add((home, name))
        else:
            arns.add(f"{home}:{name}" if name.startswith("key/") else f"{home}:key/{name}")
    by_alias = _allow(f"{sid}ByAlias", _ENCRYPT, [f"{home}:key/*" for home, _ in aliases])
    for statement in by_alias:
        names = sorted({name for _, name in aliases})
        statement["Condition"] = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": names}}
    return [*_allow(sid, _ENCRYPT, arns), *by_alias]


def _home(naming: Naming) -> str:
    return f"arn:{naming.partition}:kms:{naming.region}:{naming.account_id}"
