"""The minimum IAM permissions of a service, one policy for each purpose. Pure.

Source: Service Authorization Reference, "Actions, resources, and condition keys" for Amazon SNS, Amazon SQS, AWS KMS,
Resource Groups Tagging and CloudWatch. IAM authorizes a batch call as the call for a single message.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.names import account_in, is_arn
from smartpipe.topology.derive import derive
from smartpipe.topology.export.portable import ACCOUNT
from smartpipe.topology.kinds import KINDS
from smartpipe.topology.resources import POLICY_VERSION
from smartpipe.topology.table_and_bucket import BUCKET_READ_ACTIONS, BUCKET_WRITE_ACTIONS, NO_TABLE_AND_BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from smartpipe.names import Naming
    from smartpipe.topology.derive import Declares
    from smartpipe.topology.kinds import Purpose
    from smartpipe.topology.resources import Topology
    from smartpipe.topology.table_and_bucket import TableAndBucket

MAX_CHARACTERS = 6_144
"""The longest managed policy, without white space: IAM and AWS STS quotas, "IAM and STS character limits"."""
MAX_PORTABLE_CHARACTERS = 4_900
"""The same in a template, because ARNs get longer: with aws-us-gov and a long region, each by up to 12 characters."""
_ENCRYPT = ("kms:Decrypt", "kms:GenerateDataKey")
_KEYS_ALIAS = "alias/"


def build_policies(
    service: Declares,
    naming: Naming,
    table_and_bucket: TableAndBucket = NO_TABLE_AND_BUCKET,
    *,
    reads_ages: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the policy documents ``publish``, ``consume``, ``provision``, ``redrive`` and ``examine``, if not empty.

    ``provision`` is for ``topology plan``, ``apply``, ``destroy`` and ``show``. It allows reading all topics and queues
    with the environment's prefix, because a plan also reports resources that no service declares any more. It allows
    changing only this service's resources. ``redrive`` is for the ``dlq`` commands, and ``examine`` for ``doctor
    --live``, which only reads.

    A policy that would be longer than IAM accepts is split: the names of its other parts are ``consume-2`` and so on,
    and a role needs all of them.

    Args:
        reads_ages: Whether workers ask CloudWatch for the age of the oldest messages (``SMARTPIPE_QUEUE_AGE_SECONDS``).

    Raises:
        ConfigError: The service's declarations contradict each other or AWS.
    """
    topology = derive([service], naming, table_and_bucket)
    objects = [table_and_bucket.bucket.objects_arn(naming.partition)] if table_and_bucket.bucket else []
    readable = table_and_bucket.readable_objects(naming.partition)
    longest = MAX_PORTABLE_CHARACTERS if naming.account_id == ACCOUNT else MAX_CHARACTERS
    read_payloads = _allow("GetPayloads", BUCKET_READ_ACTIONS, readable)
    found: dict[Purpose, list[dict[str, Any]]] = {
        "publish": [*_allow_publishing(service, naming, objects), *_allow_kinds("publish", topology)],
        "consume": [
            *_allow_consuming(service, topology, naming),
            *_allow_kinds("consume", topology),
            *read_payloads,
            *_allow_anywhere(
                "ReadAgesOfMessages", ["cloudwatch:GetMetricData"] if reads_ages and service.bindings else []
            ),
        ],
        "provision": _allow_provisioning(topology, naming),
        "redrive": [*_allow_redriving(service, naming), *_allow_kinds("redrive", topology), *read_payloads],
        "examine": _allow_examining(service, topology, naming),
    }
    return {
        name if number == 1 else f"{name}-{number}": document
        for name, statements in found.items()
        for number, document in enumerate(_split(statements, longest), 1)
    }


def describe_split_policies(service: str, policies: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each policy of a service that is split into several."""
    parts: dict[str, list[str]] = {}
    for name in policies:
        parts.setdefault(name.partition("-")[0], []).append(name)
    return [
        f"service {service}: policy {name} is longer than the {MAX_CHARACTERS:,} characters of a managed policy, so it "
        f"is split: attach {', '.join(found)} to the role (IAM allows 10 policies by default)"
        for name, found in parts.items()
        if len(found) > 1
    ]


def _split(statements: Iterable[dict[str, Any]], longest: int) -> Iterator[dict[str, Any]]:
    """Yield the documents with these statements, each of at most *longest* characters."""
    part: list[dict[str, Any]] = []
    for statement in statements:
        rest = statement["Resource"]
        while rest:
            fitting = _count_fitting(part, {**statement, "Resource": rest}, longest)
            if fitting or not part:
                part.append({**statement, "Resource": rest[: max(1, fitting)]})
                rest = rest[max(1, fitting) :]
            if rest:
                yield _document(part)
                part = []
    if part:
        yield _document(part)


def _count_fitting(part: list[dict[str, Any]], statement: dict[str, Any], longest: int) -> int:
    """Return how many resources of *statement* fit into a document with the statements of *part*."""
    resources = statement["Resource"]
    left = longest - _size_of(_document([*part, {**statement, "Resource": []}]))
    for count, resource in enumerate(resources):
        left -= _size_of(resource) + (1 if count else 0)
        if left < 0:
            return count
    return len(resources)


def _document(statements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": POLICY_VERSION, "Statement": statements}


def _size_of(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _allow_kinds(purpose: Purpose, topology: Topology) -> list[dict[str, Any]]:
    """Return the statements that the kinds of resources need, for the resources that the topology creates."""
    return [
        statement
        for kind in KINDS.values()
        for permission in kind.permissions
        if permission.purpose == purpose
        for statement in _allow(
            permission.sid,
            permission.actions,
            [arn for arn in topology.of(kind.name) if arn not in topology.external],
        )
    ]


def _allow(sid: str, actions: Iterable[str], resources: Iterable[str]) -> list[dict[str, Any]]:
    """Return the statement; none if there is no resource for it."""
    on = sorted(set(resources))
    return [{"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": on}] if on else []


def _allow_publishing(service: Declares, naming: Naming, objects: list[str]) -> list[dict[str, Any]]:
    topics = [contract.topic for contract in service.published]
    keys = [*(topic.kms_key for topic in topics), *(queue.kms_key for queue in service.sends_to)]
    return [
        *_allow("PublishToTopics", ["sns:Publish"], [naming.topic_arn(topic.name) for topic in topics]),
        *_allow(
            "SendToQueues",
            ["sqs:GetQueueUrl", "sqs:SendMessage"],
            [naming.queue_arn(queue.name) for queue in service.sends_to],
        ),
        *_allow_keys("EncryptWhatIsPublished", keys, naming),
        *_allow("PutPayloads", BUCKET_WRITE_ACTIONS, objects if topics or service.sends_to else []),
    ]


def _allow_consuming(service: Declares, topology: Topology, naming: Naming) -> list[dict[str, Any]]:
    queues = [binding.queue for binding in service.bindings]
    readable = _split_by_account([topic for topic, _ in topology.subscriptions], naming)
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
        *_allow("LookAtTopics", ["sns:GetTopicAttributes"], readable.topics),
        *_allow("LookAtSubscribers", ["sns:ListSubscriptionsByTopic"], readable.own),
        *_allow_anywhere(
            "LookAtSubscriptions",
            [
                *(["sns:GetSubscriptionAttributes"] if subscribed else []),
                *(["sns:ListSubscriptions"] if readable.others else []),
            ],
        ),
        *_allow_keys("DecryptWhatIsReceived", [queue.kms_key for queue in queues], naming),
    ]  # fmt: skip


def _allow_provisioning(topology: Topology, naming: Naming) -> list[dict[str, Any]]:
    external_topics = [arn for arn in topology.topics if arn in topology.external]
    readable = _split_by_account(external_topics, naming)
    return [
        *_allow_looking(topology, naming, readable, ["sqs:ListDeadLetterSourceQueues"]),
        *_allow_kinds("provision", topology),
        *_allow("SubscribeToTopicsOfOthers", ["sns:GetTopicAttributes", "sns:Subscribe"], external_topics),
        *_allow_anywhere(
            "ChangeSubscriptions",
            [
                "cloudwatch:GetMetricData", "sns:GetSubscriptionAttributes", "sns:SetSubscriptionAttributes",
                "sns:Unsubscribe", "tag:GetResources", *(["sns:ListSubscriptions"] if readable.others else []),
            ],
        ),
    ]  # fmt: skip


def _allow_looking(
    topology: Topology, naming: Naming, readable: _Readable, also_queues: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return the statements for reading all topics and queues with the prefix, and the declared external ones."""
    external_queues = [arn for arn in topology.queues if arn in topology.external]
    return [
        *_allow(
            "LookAtTopics",
            ["sns:GetTopicAttributes", "sns:ListSubscriptionsByTopic", "sns:ListTagsForResource"],
            [naming.topic_arn("*"), *readable.own],
        ),
        *_allow(
            "LookAtQueues",
            ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:ListQueueTags", *also_queues],
            [naming.queue_arn("*"), *external_queues],
        ),
    ]


def _allow_examining(service: Declares, topology: Topology, naming: Naming) -> list[dict[str, Any]]:
    """Return the statements for ``doctor --live``. None of their actions changes anything or receives messages."""
    readable = _split_by_account([arn for arn in topology.topics if arn in topology.external], naming)
    keys = [binding.queue.kms_key for binding in service.bindings if not binding.queue.existing]
    return [
        *_allow_looking(topology, naming, readable),
        *_allow("LookAtTopicsOfOthers", ["sns:GetTopicAttributes"], readable.others),
        *_allow_kinds("examine", topology),
        *_allow_anywhere(
            "LookAtAlarmsAndMetrics",
            [
                "cloudtrail:LookupEvents", "cloudwatch:DescribeAlarms", "cloudwatch:GetMetricData",
                "sns:GetSubscriptionAttributes", "tag:GetResources",
                *(["sns:ListSubscriptions"] if readable.others else []),
            ],
        ),
        *_allow_keys("LookAtKeys", keys, naming, ("kms:DescribeKey", "kms:GetKeyPolicy")),
    ]  # fmt: skip


def _allow_redriving(service: Declares, naming: Naming) -> list[dict[str, Any]]:
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
        *_allow_anywhere("SeeHowOldTheyAre", ["cloudwatch:GetMetricData"] if queues else []),
        *_allow_keys("DecryptAndEncryptThem", [queue.kms_key for queue in queues], naming),
    ]  # fmt: skip


def _allow_anywhere(sid: str, actions: list[str]) -> list[dict[str, Any]]:
    """Return the statement for actions that have no resource types in IAM, such as those on subscriptions."""
    return _allow(sid, actions, ["*"] if actions else [])


class _Readable(NamedTuple):
    """Topics whose subscriptions are read: ListSubscriptionsByTopic works only in the topic's own account."""

    own: list[str]
    others: list[str]

    @property
    def topics(self) -> list[str]:
        return [*self.own, *self.others]


def _split_by_account(topics: Iterable[str], naming: Naming) -> _Readable:
    """Return the topics by account. In a template, a topic with an ARN may be in the account or not, so it is both."""
    arns = list(topics)
    own = [arn for arn in arns if account_in(arn) == naming.account_id]
    others = [arn for arn in arns if arn not in own]
    return _Readable(arns if naming.is_portable else own, others)


def _allow_keys(
    sid: str, keys: Iterable[str | None], naming: Naming, actions: Iterable[str] = _ENCRYPT
) -> list[dict[str, Any]]:
    """Return the statements for KMS keys: a key is allowed by its ARN, or by a condition on its alias.

    Source: AWS KMS, "Use aliases to control access to KMS keys": these actions do not accept the ARN of an alias as
    resource.
    """
    arns, aliases = set(), set()
    for key in filter(None, keys):
        home, _, name = key.rpartition(":") if is_arn(key) else (_key_home(naming), "", key)
        if name.startswith(_KEYS_ALIAS):
            aliases.add((home, name))
        else:
            arns.add(f"{home}:{name}" if name.startswith("key/") else f"{home}:key/{name}")
    by_alias = _allow(f"{sid}ByAlias", actions, [f"{home}:key/*" for home, _ in aliases])
    for statement in by_alias:
        names = sorted({name for _, name in aliases})
        statement["Condition"] = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": names}}
    return [*_allow(sid, actions, arns), *by_alias]


def _key_home(naming: Naming) -> str:
    return f"arn:{naming.partition}:kms:{naming.region}:{naming.account_id}"
