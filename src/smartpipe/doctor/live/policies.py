"""Rules over the policies of queues, topics and KMS keys. Pure.

Source: IAM, "The confused deputy problem"; Amazon SNS, "Configuring Amazon SNS topic encryption with an encrypted
Amazon SQS queue subscription"; and Amazon SQS, "How does the data key reuse period work?".
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from smartpipe.doctor.findings import Finding
from smartpipe.names import account_in, is_arn, name_in, region_in
from smartpipe.topology.open_statements import allows_everyone
from smartpipe.topology.policy import build_key_statement, find_open_statements, read_statements
from smartpipe.topology.regions import sns_principals
from smartpipe.topology.resources import dead_letter_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smartpipe.doctor.live.account import Account, Key

SOURCES = ("aws:sourcearn", "aws:sourceaccount", "aws:sourceorgid", "aws:sourceorgpaths", "aws:sourceowner")
DEFAULT_REUSE_SECONDS = 300
MONTH_SECONDS = 2_592_000
_ENCRYPT = ("kms:GenerateDataKey", "kms:Decrypt")


def find_open_policies(account: Account) -> Iterator[Finding]:
    """SP303: statements that let others send to our queues or publish to our topics."""
    for kind, resources in (("queue", account.own_queues), ("topic", account.own_topics)):
        for arn, attributes in resources.items():
            yield from examine_policy(f"{kind} {name_in(arn)}", attributes.get("Policy"), account.naming.account_id)


def examine_policy(resource: str, text: str | None, account_id: str) -> Iterator[Finding]:
    """Apply the rules to the statements of one policy."""
    for sid in find_open_statements(text):
        yield Finding(
            code="SP303",
            resource=resource,
            message=f"statement {sid!r} of its policy allows everyone, also people outside of your organization",
            remedy="name the principals, or add a condition such as aws:SourceArn or aws:PrincipalOrgID",
        )
    for statement in read_statements(text):
        if not isinstance(statement, dict) or statement.get("Effect") != "Allow":
            continue
        if allows_everyone(statement):
            continue
        sid = str(statement.get("Sid", "without a Sid"))
        services = [one for one in _list_principals(statement, "Service") if not _names_source(statement)]
        if services:
            yield Finding(
                code="SP303",
                resource=resource,
                message=f"statement {sid!r} of its policy allows {', '.join(services)} without a condition on "
                "aws:SourceArn or aws:SourceAccount: these services then act for any AWS account",
                remedy="add a condition on aws:SourceArn, the ARN of the topic, bucket or rule",
                milder="warning",
            )
        others = sorted({one for one in _list_accounts(statement) if one != account_id})
        if others:
            yield Finding(
                code="SP303",
                resource=resource,
                message=f"statement {sid!r} of its policy allows account {', '.join(others)}",
                remedy="remove the statement if you do not know the account; ignore the finding if you do",
                figures={"accounts": ", ".join(others)},
                milder="note",
            )


def find_key_mistakes(account: Account) -> Iterator[Finding]:
    """SP307: SNS drops the messages for a queue if it may not use the key of the queue."""
    topics: dict[str, set[str]] = {}
    queues: dict[str, str] = {}
    for topic, queue in account.desired.subscriptions:
        attributes = account.own_queues.get(queue)
        if attributes and (name := attributes.get("KmsMasterKeyId")):
            topics.setdefault(name, set()).add(topic)
            queues[name] = queue
    for name, subscribed in topics.items():
        if (key := account.keys.get(name)) is not None:
            yield from examine_key(name, key, queues[name], subscribed)
    for arn, attributes in account.own_queues.items():
        seconds = int(attributes.get("KmsDataKeyReusePeriodSeconds", DEFAULT_REUSE_SECONDS))
        if attributes.get("KmsMasterKeyId") and seconds < DEFAULT_REUSE_SECONDS and dead_letter_of(attributes):
            calls = MONTH_SECONDS // seconds
            yield Finding(
                code="SP307",
                resource=f"queue {name_in(arn)}",
                message=f"its data key is used for {seconds} s, so each principal that uses the queue may cause up to "
                f"{calls:,} calls of KMS a month; the default of {DEFAULT_REUSE_SECONDS} s allows "
                f"{MONTH_SECONDS // DEFAULT_REUSE_SECONDS:,}",
                remedy=f"set KmsDataKeyReusePeriodSeconds to {DEFAULT_REUSE_SECONDS} or more",
                figures={"reuse_seconds": seconds, "calls_per_month": calls},
                milder="note",
            )


def examine_key(name: str, key: Key, queue: str, topics: Iterable[str]) -> Iterator[Finding]:
    """Apply the rules to the key of a queue that is subscribed to *topics*."""
    subscribed = sorted(topics)
    if key.state != "Enabled":
        yield Finding(
            code="SP307",
            resource=f"key {name}",
            message=f"its state is {key.state}: no message can be sent to the queues under it, or received from them",
            remedy="enable the key, or cancel its deletion",
            figures={"state": key.state},
        )
    elif key.manager == "AWS":
        yield Finding(
            code="SP307",
            resource=f"key {name}",
            message="AWS manages the key, and its policy does not allow SNS: SNS drops the messages for the queues "
            "under it without an error",
            remedy="use a key of your own, or SSE-SQS, which needs no key",
        )
    elif key.policy is not None and (refused := [one for one in subscribed if not allows_sns(key.policy, one, queue)]):
        statement = json.dumps(build_key_statement(queue, refused))
        yield Finding(
            code="SP307",
            resource=f"key {name}",
            message=f"its policy does not let SNS encrypt messages of {', '.join(map(name_in, refused))}: SNS drops "
            "them without an error for the publisher",
            remedy=f"add this statement to the policy of the key: {statement}",
        )


def allows_sns(policy: str, topic: str, queue: str) -> bool:
    """Return whether a key's policy lets SNS encrypt messages of a topic for a queue.

    Conditions other than those on the source are assumed to be true.
    """
    principals = sns_principals([topic], region_in(queue))
    allowed: set[str] = set()
    for statement in read_statements(policy):
        if not isinstance(statement, dict) or statement.get("Effect") != "Allow":
            continue
        services = _list_principals(statement, "Service")
        everyone = "*" in _list_principals(statement, "AWS")
        if not (everyone or set(principals) & set(services)) or not _fits_source(statement, topic):
            continue
        patterns = [str(one) for one in _to_list(statement.get("Action"))]
        allowed.update(one for one in _ENCRYPT if any(fnmatchcase(one.lower(), p.lower()) for p in patterns))
    return allowed == set(_ENCRYPT)


def _fits_source(statement: dict[str, Any], topic: str) -> bool:
    for key, values in _read_conditions(statement):
        found = {"aws:sourcearn": topic, "aws:sourceaccount": account_in(topic)}.get(key)
        if found is not None and not any(fnmatchcase(found, str(one)) for one in values):
            return False
    return True


def _names_source(statement: dict[str, Any]) -> bool:
    return any(key in SOURCES for key, _ in _read_conditions(statement))


def _read_conditions(statement: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    conditions = statement.get("Condition")
    for tests in conditions.values() if isinstance(conditions, dict) else ():
        for key, values in tests.items() if isinstance(tests, dict) else ():
            yield str(key).lower(), _to_list(values)


def _list_principals(statement: dict[str, Any], kind: str) -> list[str]:
    principal = statement.get("Principal")
    if isinstance(principal, str):
        return [principal] if kind == "AWS" else []
    return [str(one) for one in _to_list((principal or {}).get(kind))] if isinstance(principal, dict) else []


def _list_accounts(statement: dict[str, Any]) -> Iterator[str]:
    for one in _list_principals(statement, "AWS"):
        account = account_in(one) if is_arn(one) else one
        if account.isdigit():
            yield account


def _to_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
