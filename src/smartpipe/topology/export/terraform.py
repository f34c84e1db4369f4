"""A Terraform configuration, in JSON syntax, that creates the same resources as ``topology apply``. Pure.

Source: Terraform Registry, hashicorp/aws, ``aws_sqs_queue``, ``aws_sqs_queue_policy``,
``aws_sqs_queue_redrive_allow_policy``, ``aws_sns_topic`` and ``aws_sns_topic_subscription``.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from smartpipe.errors import ConfigError
from smartpipe.limits import MAX_MESSAGE_BYTES
from smartpipe.names import name_in, region_in
from smartpipe.topology.derive import derive
from smartpipe.topology.export.portable import (
    REGION,
    Principals,
    convert,
    created_names,
    make_unique,
    portable_naming,
    principals_of,
    replace_placeholders,
    rewrite,
)
from smartpipe.topology.kinds import QUEUE, TOPIC, kind_of
from smartpipe.topology.regions import ENABLED_BY_DEFAULT
from smartpipe.topology.resources import TAGS, TOPIC_DEFAULTS, Attributes, omit_defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from smartpipe.topology.derive import Declares
    from smartpipe.topology.kinds import ResourceKind
    from smartpipe.topology.resources import Topology

PROVIDER = {"source": "hashicorp/aws", "version": ">= 6.8"}
"""6.0 has ``region`` on each resource, 6.8 queues of 1 MiB."""
_ACCOUNT = "${data.aws_caller_identity.current.account_id}"
_REGION = "data.aws_region.current.region"
_ARN = rf"arn:${{data.aws_partition.current.partition}}:\1:${{{_REGION}}}:{_ACCOUNT}:"
_LOCAL = re.compile(r'"(local\.[a-z0-9_]+)"')
_DATA_SOURCES = ("aws_caller_identity", "aws_partition", "aws_region")

_QUEUE_ARGUMENTS = {
    "DeduplicationScope": "deduplication_scope",
    "DelaySeconds": "delay_seconds",
    "FifoQueue": "fifo_queue",
    "FifoThroughputLimit": "fifo_throughput_limit",
    "KmsMasterKeyId": "kms_master_key_id",
    "MaximumMessageSize": "max_message_size",
    "MessageRetentionPeriod": "message_retention_seconds",
    "SqsManagedSseEnabled": "sqs_managed_sse_enabled",
    "VisibilityTimeout": "visibility_timeout_seconds",
}
_TOPIC_ARGUMENTS = {
    "FifoThroughputScope": "fifo_throughput_scope",
    "FifoTopic": "fifo_topic",
    "KmsMasterKeyId": "kms_master_key_id",
}


def build_configuration(services: Iterable[Declares], *, prefix: str, application: str) -> dict[str, Any]:
    """Return the configuration of the topics, queues and subscriptions that *services* need.

    Raises:
        ConfigError: The declarations contradict each other, or a topic sets a size limit, which the provider cannot
            do.
    """
    topology = derive(services, portable_naming(prefix, application))
    _refuse_sizes(topology)
    names = created_names(topology, prefix)
    topics, queues = (make_unique(_select_identifiers(names, kind)) for kind in (TOPIC, QUEUE))
    references = {
        **{arn: f"aws_sns_topic.{one}" for arn, one in topics.items()},
        **{arn: f"aws_sqs_queue.{one}" for arn, one in queues.items()},
    }
    resources = {name: one for render in _RENDERERS.values() for name, one in render(topology, references).items()}
    principals = dict(sorted(_principals(topology, references).items()))
    text = json.dumps([resources, principals])
    return {
        "terraform": {"required_providers": {"aws": PROVIDER}},
        **({"locals": principals} if principals else {}),
        "data": {source: {"current": {}} for source in _DATA_SOURCES if f"data.{source}." in text},
        "resource": {kind: dict(sorted(blocks.items())) for kind, blocks in resources.items() if blocks},
        "output": {
            "queue_urls": {"value": {name_in(arn): f"${{{references[arn]}.url}}" for arn in sorted(queues)}},
            "topic_arns": {"value": {name_in(arn): f"${{{references[arn]}.arn}}" for arn in sorted(topics)}},
        },
    }


def _refuse_sizes(topology: Topology) -> None:
    default = TOPIC_DEFAULTS["MaximumMessageSize"]
    errors = [
        f"topic {name_in(arn)!r}: the AWS provider cannot set limit_bytes={attributes['MaximumMessageSize']} "
        f"(hashicorp/terraform-provider-aws#50109); leave it at {int(default):,}, or use --format cloudformation"
        for arn, attributes in topology.topics.items()
        if attributes.get("MaximumMessageSize", default) != default
    ]
    if errors:
        raise ConfigError(errors)


def _select_identifiers(names: Mapping[str, str], kind: ResourceKind) -> dict[str, str]:
    return {arn: make_identifier(name) for arn, name in names.items() if kind_of(arn) is kind}


def make_identifier(name: str) -> str:
    """Return an identifier of letters, digits and underscores, as in ``email_verification``."""
    words = re.sub(r"[^A-Za-z0-9]+", "_", name)
    return f"_{words}" if words[0].isdigit() else words


def escape(text: str) -> str:
    """Escape text of users in which Terraform would find templates. Source: "Strings and Templates", escapes."""
    return text.replace("${", "$${").replace("%{", "%%{")


def _refer(references: Mapping[str, str], text: str) -> str:
    return f"${{{references[text]}.arn}}" if text in references else replace_placeholders(text, _ARN, _ACCOUNT)


def _json(value: Any, references: Mapping[str, str]) -> str:
    return json.dumps(rewrite(value, partial(_refer, references)))


def _arguments(attributes: Attributes, arguments: Mapping[str, str]) -> dict[str, Any]:
    found = {
        argument: escape(value) if isinstance(value := convert(name, attributes[name]), str) else value
        for name, argument in arguments.items()
        if attributes.get(name)
    }
    return {**found, "tags": attributes[TAGS]}


def _render_topics(topology: Topology, references: Mapping[str, str]) -> dict[str, Any]:
    topics = {arn: attributes for arn, attributes in topology.topics.items() if arn in references}
    return {"aws_sns_topic": {_label(references[arn]): _topic(arn, attributes) for arn, attributes in topics.items()}}


def _topic(arn: str, attributes: Attributes) -> dict[str, Any]:
    return {"name": name_in(arn), **_arguments(omit_defaults(attributes, TOPIC_DEFAULTS), _TOPIC_ARGUMENTS)}


def _render_queues(topology: Topology, references: Mapping[str, str]) -> dict[str, Any]:
    queues = {arn: attributes for arn, attributes in topology.queues.items() if arn in references}
    return {
        "aws_sqs_queue": {_label(references[arn]): _queue(arn, one, references) for arn, one in queues.items()},
        "aws_sqs_queue_policy": _policies(topology, references),
        "aws_sqs_queue_redrive_allow_policy": _redrive_allow_policies(topology, references),
    }


def _queue(arn: str, attributes: Attributes, references: Mapping[str, str]) -> dict[str, Any]:
    # The provider's default is lower than that of SQS, and dead-letter queues and direct queues need the higher one.
    sized = {"MaximumMessageSize": MAX_MESSAGE_BYTES, **attributes}
    redrive = attributes.get("RedrivePolicy")
    return {
        "name": name_in(arn),
        **_arguments(sized, _QUEUE_ARGUMENTS),
        **({"redrive_policy": _json(redrive, references)} if redrive else {}),
    }


def _policies(topology: Topology, references: Mapping[str, str]) -> dict[str, Any]:
    return {
        _label(references[arn]): {
            "queue_url": f"${{{references[arn]}.url}}",
            "policy": _policy(attributes["Policy"], references),
        }
        for arn, attributes in topology.queues.items()
        if arn in references and attributes["Policy"]["Statement"]
    }


def _policy(policy: Attributes, references: Mapping[str, str]) -> str:
    """Return the policy as JSON; principals that depend on the region are a local value, which is JSON too."""
    statements = [
        {**one, "Principal": {"Service": f"local.{_local(found)}"}} if (found := principals_of(one)) else one
        for one in policy["Statement"]
    ]
    return _LOCAL.sub(r"${\1}", _json({**policy, "Statement": statements}, references))


def _principals(topology: Topology, references: Mapping[str, str]) -> dict[str, str]:
    statements = [
        one for arn, queue in topology.queues.items() if arn in references for one in queue["Policy"]["Statement"]
    ]
    return {_local(found): _choose(found) for found in map(principals_of, statements) if found}


def _local(principals: Principals) -> str:
    """Return the name of the local value, as in ``sns_from_me_south_1_and_here``."""
    regions = sorted(principals.topics, key=lambda one: (one == REGION, one))
    return make_identifier(f"sns_from_{'_and_'.join(regions)}").replace(make_identifier(REGION), "here")


def _choose(principals: Principals) -> str:
    """Return the principals as a conditional, so that Terraform chooses them by the provider's region."""
    found = _list(principals.opt_in)
    if principals.by_default != principals.opt_in:
        known = json.dumps(list(ENABLED_BY_DEFAULT))
        found = f"contains({known}, {_REGION}) ? {_list(principals.by_default)} : {found}"
    for region, allowed in principals.within.items():
        found = f'{_REGION} == "{region}" ? {_list(allowed)} : {found}'
    return f"${{{found}}}"


def _list(principals: list[str]) -> str:
    """Return a list as JSON: Terraform refuses a conditional with two lists of different lengths."""
    return f"jsonencode({json.dumps([one.replace(REGION, f'${{{_REGION}}}') for one in principals])})"


def _redrive_allow_policies(topology: Topology, references: Mapping[str, str]) -> dict[str, Any]:
    """Return separate resources: as arguments of the queues, they would refer to each other in a circle."""
    return {
        _label(references[arn]): {
            "queue_url": f"${{{references[arn]}.url}}",
            "redrive_allow_policy": _json(attributes["RedriveAllowPolicy"], references),
        }
        for arn, attributes in topology.queues.items()
        if "RedriveAllowPolicy" in attributes
    }


def _label(reference: str) -> str:
    return reference.partition(".")[2]


def _render_subscriptions(topology: Topology, references: Mapping[str, str]) -> dict[str, Any]:
    wanted = {arns: attributes for arns, attributes in topology.subscriptions.items() if arns[1] in references}
    labels = make_unique(
        {arns: "_to_".join(make_identifier(_name(arn, references)) for arn in arns) for arns in wanted}
    )
    return {
        "aws_sns_topic_subscription": {
            labels[arns]: _subscription(*arns, attributes, references) for arns, attributes in wanted.items()
        }
    }


def _name(arn: str, references: Mapping[str, str]) -> str:
    return _label(references[arn]) if arn in references else name_in(arn)


def _subscription(
    topic_arn: str, queue_arn: str, attributes: Attributes, references: Mapping[str, str]
) -> dict[str, Any]:
    redrive = attributes.get("RedrivePolicy")
    receiving = [queue_arn, *([redrive["deadLetterTargetArn"]] if redrive else [])]
    return {
        "topic_arn": _refer(references, topic_arn),
        "protocol": "sqs",
        "endpoint": _refer(references, queue_arn),
        **({} if topic_arn in references else {"region": region_in(topic_arn)}),
        "raw_message_delivery": convert("RawMessageDelivery", attributes["RawMessageDelivery"]),
        "filter_policy": escape(json.dumps(attributes["FilterPolicy"])),
        "filter_policy_scope": attributes["FilterPolicyScope"],
        **({"redrive_policy": _json(redrive, references)} if redrive else {}),
        # SNS drops events that it delivers before the policies allow it.
        "depends_on": [f"aws_sqs_queue_policy.{_label(references[arn])}" for arn in receiving],
    }


_RENDERERS: dict[str, Callable[[Topology, Mapping[str, str]], dict[str, Any]]] = {
    "topic": _render_topics,
    "subscription": _render_subscriptions,
    "queue": _render_queues,
}
"""By the name of the kind. Configurations leave out the other kinds."""
