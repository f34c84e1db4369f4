"""An Ansible playbook that creates the same topics, queues and subscriptions as ``topology apply``. Pure.

Sources: the collections amazon.aws 10 and community.aws 10. Their modules cover only a part of the attributes:
``sqs_queue`` does not know ``RedriveAllowPolicy`` and ``SqsManagedSseEnabled``. ``sns_topic`` knows neither keys nor
sizes, and would subscribe a queue without its filter policy. The AWS CLI sets the rest.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from smartpipe.deploy.place import Place, find_partition
from smartpipe.deploy.yaml import write_documents
from smartpipe.names import Naming, name_in, region_in
from smartpipe.topology.derive import derive
from smartpipe.topology.export.portable import ACCOUNT, convert, rewrite
from smartpipe.topology.resources import QUEUE_DEFAULTS, SUBSCRIPTION_DEFAULTS, TAGS, TOPIC_DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smartpipe.topology.derive import Declares
    from smartpipe.topology.resources import Attributes, Topology

_ACCOUNT_ID = "{{ aws_account_id }}"
_JINJA = re.compile(r"\{[{%#]")
_QUEUE_PARAMETERS = {
    "DeduplicationScope": "deduplication_scope",
    "DelaySeconds": "delay_seconds",
    "FifoThroughputLimit": "fifo_throughput_limit",
    "KmsMasterKeyId": "kms_master_key_id",
    "MaximumMessageSize": "maximum_message_size",
    "MessageRetentionPeriod": "message_retention_period",
    "RedrivePolicy": "redrive_policy",
    "VisibilityTimeout": "visibility_timeout",
}
"""The parameters of ``sqs_queue`` by the attributes that they set."""
_QUEUE_ATTRIBUTES = ("KmsMasterKeyId", "SqsManagedSseEnabled", "RedriveAllowPolicy")
"""The attributes that the CLI sets. ``sqs_queue`` sets a key only when it creates the queue. SQS refuses its own
encryption while there is a key, so the key comes first."""


def write_playbook(services: Iterable[Declares], place: Place, application: str) -> str:
    """Return the playbook of the topics, queues and subscriptions that *services* need, for one region.

    Args:
        application: The application that owns the resources; it is written into their tags.

    Raises:
        ConfigError: The declarations contradict each other.
    """
    account_id = place.account_id or ACCOUNT
    naming = Naming(find_partition(place.region), place.region, account_id, place.prefix, application)
    topology = derive(services, naming)
    variables = rewrite(_list_resources(topology, place), partial(_template, naming))
    header = [
        f"Ansible playbook of the topics, queues and subscriptions of application {application}.",
        "Written by `smartpipe deploy export --format ansible`; run it again when services or settings change.",
        "Run it where boto3, the AWS CLI and the collections amazon.aws and community.aws are installed:",
        "    ansible-playbook FILE",
        "It creates and changes resources, and deletes none. `smartpipe topology plan` lists those that are left.",
    ]
    play = {
        "name": f"Create the topology of application {application}",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "environment": {"AWS_REGION": place.region, "AWS_DEFAULT_REGION": place.region, "AWS_PAGER": ""},
        "vars": {"aws_account_id": place.account_id or "{{ caller.stdout }}", **variables, **_ATTRIBUTES},
        "tasks": _build_tasks(place.account_id),
    }
    return write_documents(header, [[play]])


def _template(naming: Naming, text: str) -> str:
    """Return *text* with the variable for the account, and without Jinja's marks in the text of users."""
    escaped = _JINJA.sub(r"{{ '\g<0>' }}", text)
    if naming.account_id != ACCOUNT:
        return escaped
    if escaped == ACCOUNT:
        return _ACCOUNT_ID
    arn = rf"(arn:{naming.partition}:(sns|sqs):{naming.region}:){ACCOUNT}:"
    url = rf"(https://sqs\.{naming.region}\.[a-z.]+/){ACCOUNT}/"
    return re.sub(url, rf"\g<1>{_ACCOUNT_ID}/", re.sub(arn, rf"\g<1>{_ACCOUNT_ID}:", escaped))


def _list_resources(topology: Topology, place: Place) -> dict[str, list[Any]]:
    subscriptions: list[dict[str, Any]] = [
        {"topic_arn": topic, "queue_arn": queue, "region": region_in(topic), "attributes": attributes}
        for (topic, queue), attributes in topology.subscriptions.items()
        if queue not in topology.external
    ]
    topics = [arn for arn in topology.topics if arn not in topology.external]
    listed = dict.fromkeys([*topics, *(one["topic_arn"] for one in subscriptions)])
    return {
        "topics": [_topic(arn, topology.topics[arn]) for arn in topics],
        "queues": [_queue(arn, one, place) for arn, one in topology.queues.items() if arn not in topology.external],
        "subscriptions": subscriptions,
        "subscribed_topics": [{"arn": arn, "region": region_in(arn)} for arn in listed],
    }


def _topic(arn: str, attributes: Attributes) -> dict[str, Any]:
    return {
        "name": name_in(arn),
        "type": "fifo" if "FifoTopic" in attributes else "standard",
        "tags": attributes[TAGS],
        "attributes": {name: attributes[name] for name in TOPIC_DEFAULTS if name in attributes},
    }


def _queue(arn: str, attributes: Attributes, place: Place) -> dict[str, Any]:
    parameters = {
        parameter: convert(name, attributes[name])
        for name, parameter in _QUEUE_PARAMETERS.items()
        if attributes.get(name)
    }
    policy = attributes["Policy"]
    return {
        "name": name_in(arn),
        "url": place.locate(arn),
        "type": "fifo" if "FifoQueue" in attributes else "standard",
        **parameters,
        **({"policy": policy} if policy["Statement"] else {}),
        "tags": attributes[TAGS],
        "attributes": {name: attributes[name] for name in _QUEUE_ATTRIBUTES if name in attributes},
    }


def _describe_attributes(names: Iterable[str], defaults: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the attributes that the CLI sets, each with its name in the results of the modules, and its default."""
    return [
        {
            "name": name,
            "returned": re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(),
            "default": defaults.get(name, "{}"),
        }
        for name in names
    ]


_COMPARED = {
    "wanted": "{{ item.0.item.attributes[item.1.name] }}",
    "text": "{{ wanted if wanted is string else wanted | to_json }}",
}
_DIFFERS = ["item.1.name in item.0.item.attributes", "(found if wanted is string else found | from_json) != wanted"]


def _build_tasks(account_id: str | None) -> list[dict[str, Any]]:
    wrong = f"the credentials are those of account {{{{ caller.stdout }}}}, and the export was made for {account_id}"
    check = {
        "name": "Check the account",
        "ansible.builtin.assert": {"that": ["caller.stdout == aws_account_id"], "fail_msg": wrong},
    }
    return [
        {
            "name": "Find out the account",  # amazon.aws.aws_caller_info would also need a permission of IAM
            "ansible.builtin.command": _call("sts", "get-caller-identity", "--query", "Account", "--output", "text"),
            "register": "caller",
            "changed_when": False,
            "check_mode": False,
        },
        *([check] if account_id else []),
        *_create_topics(),
        *_create_queues(),
        *_create_subscriptions(),
        *_update_subscriptions(),
    ]


def _loop(variable: str, label: str, **keywords: Any) -> dict[str, Any]:
    """Return the keywords of a task that runs for each item, and shows only its *label*."""
    return {"loop": f"{{{{ {variable} }}}}", "loop_control": {"label": f"{{{{ {label} }}}}"}, **keywords}


def _create_topics() -> list[dict[str, Any]]:
    return [
        {
            "name": "Create topics",
            "community.aws.sns_topic": {
                "name": "{{ item.name }}",
                "topic_type": "{{ item.type }}",
                "tags": "{{ item.tags }}",
                "purge_tags": False,
                "purge_subscriptions": False,
            },
            **_loop("topics", "item.name", register="created_topics"),
        },
        _set_attributes(
            "Set the attributes of topics that sns_topic does not know",
            "sns", "set-topic-attributes",
            "--topic-arn", "{{ item.0.sns_arn }}",
            "--attribute-name", "{{ item.1.name }}",
            "--attribute-value", "{{ text }}",
            found="{{ item.0.sns_topic[item.1.returned] | default(item.1.default, true) }}",
            loop=_loop("created_topics.results | product(topic_attributes)", "item.0.item.name + ' ' + item.1.name"),
        ),
    ]  # fmt: skip


def _create_queues() -> list[dict[str, Any]]:
    parameters = {
        parameter: f"{{{{ item.{parameter} | default(omit) }}}}"
        for parameter in (*_QUEUE_PARAMETERS.values(), "policy")
    }
    return [
        {
            "name": "Create queues, each after its dead-letter queue",
            "community.aws.sqs_queue": {
                "name": "{{ item.name }}",
                "queue_type": "{{ item.type }}",
                **parameters,
                "tags": "{{ item.tags }}",
                "purge_tags": False,
            },
            **_loop("queues", "item.name", register="created_queues"),
        },
        _set_attributes(
            "Set the attributes of queues that sqs_queue does not know",
            "sqs", "set-queue-attributes",
            "--queue-url", "{{ item.0.item.url }}",  # sqs_queue returns no URL of a queue that it has just created
            "--attributes", "{{ {item.1.name: text} | to_json }}",
            found="{{ item.0[item.1.returned] | default(item.1.default, true) }}",
            loop=_loop("created_queues.results | product(queue_attributes)", "item.0.item.name + ' ' + item.1.name"),
        ),
    ]  # fmt: skip


_SUBSCRIPTION = "item.topic_arn.split(':')[-1] + ' to ' + item.queue_arn.split(':')[-1]"
_KNOWN = """\
{{ listed.results | map(attribute='result.sns_topic.subscriptions') | flatten
| selectattr('topic_arn', '==', item.topic_arn)
| selectattr('endpoint', '==', item.queue_arn) }}"""
"""The subscription of ``item`` that exists, in a list."""
_TEXTS = """\
{{ item.attributes
| combine({'FilterPolicy': item.attributes.FilterPolicy | to_json})
| combine({'RedrivePolicy': item.attributes.RedrivePolicy | to_json} if 'RedrivePolicy' in item.attributes else {})
| to_json }}"""


def _create_subscriptions() -> list[dict[str, Any]]:
    return [
        {
            "name": "List the subscriptions of each topic",
            "community.aws.sns_topic_info": {"topic_arn": "{{ item.arn }}", "region": "{{ item.region }}"},
            **_loop("subscribed_topics", "item.arn", register="listed"),
        },
        {
            "name": "Subscribe queues, with their filter policies",
            "ansible.builtin.command": _call(
                "sns", "subscribe",
                "--region", "{{ item.region }}",
                "--topic-arn", "{{ item.topic_arn }}",
                "--protocol", "sqs",
                "--notification-endpoint", "{{ item.queue_arn }}",
                "--attributes", _TEXTS,
            ),
            "vars": {"known": _KNOWN},
            "when": "known | length == 0",
            "changed_when": True,
            **_loop("subscriptions", _SUBSCRIPTION),
        },
    ]  # fmt: skip


def _update_subscriptions() -> list[dict[str, Any]]:
    return [
        {
            "name": "Read the attributes of subscriptions that exist",
            "ansible.builtin.command": _call(
                "sns", "get-subscription-attributes",
                "--region", "{{ item.region }}",
                "--subscription-arn", "{{ known[0].subscription_arn }}",
                "--output", "json",
            ),
            "vars": {"known": _KNOWN},
            "when": "known | length > 0",
            "changed_when": False,
            "check_mode": False,
            **_loop("subscriptions", _SUBSCRIPTION, register="read"),
        },
        _set_attributes(
            "Set the attributes of subscriptions that differ",
            "sns", "set-subscription-attributes",
            "--region", "{{ item.0.item.region }}",
            "--subscription-arn", "{{ deployed.SubscriptionArn }}",
            "--attribute-name", "{{ item.1.name }}",
            "--attribute-value", "{{ text }}",
            deployed="{{ (item.0.stdout | from_json).Attributes }}",
            found="{{ deployed[item.1.name] | default(item.1.default, true) }}",
            loop=_loop(
                "read.results | rejectattr('skipped', 'defined') | product(subscription_attributes)",
                f"{_SUBSCRIPTION.replace('item.', 'item.0.item.')} + ' ' + item.1.name",
            ),
        ),
    ]  # fmt: skip


def _set_attributes(name: str, *arguments: str, loop: dict[str, Any], **variables: str) -> dict[str, Any]:
    """Return the task that calls the CLI for each attribute that differs from the one ``found``."""
    return {
        "name": name,
        "ansible.builtin.command": _call(*arguments),
        "vars": {**_COMPARED, **variables},
        "when": _DIFFERS,
        "changed_when": True,
        **loop,
    }


def _call(*arguments: str) -> dict[str, Any]:
    return {"argv": ["aws", *arguments]}


_ATTRIBUTES = {
    "topic_attributes": _describe_attributes(TOPIC_DEFAULTS, TOPIC_DEFAULTS),
    "queue_attributes": _describe_attributes(_QUEUE_ATTRIBUTES, QUEUE_DEFAULTS),
    "subscription_attributes": _describe_attributes(
        ("RawMessageDelivery", "FilterPolicyScope", "FilterPolicy", "RedrivePolicy"), SUBSCRIPTION_DEFAULTS
    ),
}
