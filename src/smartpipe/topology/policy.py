"""Queue policies: smartpipe writes one statement and keeps those of others. Pure.

Source: Amazon SQS, "Policy quotas" (8,192 bytes, 20 statements); Amazon SNS, "Subscribing an Amazon SQS
queue to an Amazon SNS topic", step 2; IAM, "The confused deputy problem" (SourceArn and SourceAccount).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.names import account_in, region_in
from smartpipe.topology.open_statements import allows_everyone
from smartpipe.topology.regions import sns_principals
from smartpipe.topology.resources import POLICY_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

POLICY_SID = "SmartpipeAllowSns"
POLICY_LIMIT_BYTES = 8_192
MAX_STATEMENTS = 20
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


def build_statement(queue_arn: str, topic_arns: Iterable[str]) -> dict[str, Any]:
    """Return the queue policy statement that allows these topics, of their accounts, and no others, to send.

    One statement lists all topics, because a policy has at most 20 statements.
    """
    topics = sorted(topic_arns)
    accounts = sorted({account_in(arn) for arn in topics})
    return {
        "Sid": POLICY_SID,
        "Effect": "Allow",
        "Principal": _principal(topics, region_in(queue_arn)),
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {
            "ArnEquals": {"aws:SourceArn": topics},
            "StringEquals": {"aws:SourceAccount": accounts[0] if len(accounts) == 1 else accounts},
        },
    }


def _principal(topic_arns: list[str], queue_region: str) -> dict[str, Any]:
    found = sns_principals(topic_arns, queue_region)
    return {"Service": found[0] if len(found) == 1 else found}


def fold_sources(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statement with one pattern for each account and region instead of a list of topics.

    The cost: every topic of that account and region whose name has the same beginning may send too.
    """
    owners: dict[str, list[str]] = {}
    for arn in source_topics(ours):
        owner, _, name = arn.rpartition(":")
        owners.setdefault(owner, []).append(name)
    patterns = [
        f"{owner}:{names[0] if len(names) == 1 else _common_start(names) + '*'}" for owner, names in owners.items()
    ]
    condition = {key: value for key, value in ours["Condition"].items() if key != "ArnEquals"}
    return {**ours, "Condition": {"ArnLike": {"aws:SourceArn": sorted(patterns)}, **condition}}


def _common_start(names: list[str]) -> str:
    first, last = min(names), max(names)
    return next((first[:end] for end, letter in enumerate(first) if letter != last[end : end + 1]), first)


def source_topics(ours: Mapping[str, Any]) -> list[str]:
    """Return the topics, or patterns of topics, that our statement allows."""
    condition = ours.get("Condition") or {}
    found = (condition.get("ArnEquals") or condition.get("ArnLike") or {}).get("aws:SourceArn", [])
    return [found] if isinstance(found, str) else list(found)


def fit_statements(text: str | None, ours: Mapping[str, Any] | None) -> str:
    """Return the policy with our statement, which is folded if the policy would be too long otherwise.

    It may be too long even so: only their owners can shorten the other statements.
    """
    whole = merge_statements(text, ours)
    if ours is None or len(whole.encode()) <= POLICY_LIMIT_BYTES:
        return whole
    return merge_statements(text, fold_sources(ours))


def _is_same(one: Any, other: Any) -> bool:
    """Compare by value: for IAM, lists are sets, and a list of one value may be that value."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    lists = [value if isinstance(value, list) else [value] for value in (one, other)]
    return set(map(str, lists[0])) == set(map(str, lists[1]))


class _Span(NamedTuple):
    """The position and the value of one statement in the text of a policy."""

    start: int
    end: int
    value: Any

    @property
    def ours(self) -> bool:
        return isinstance(self.value, dict) and self.value.get("Sid") == POLICY_SID


def read_statements(text: str | None) -> list[Any]:
    """Return the statements of a policy; none if *text* is not a policy."""
    return [span.value for span in _spans(text)[0]] if text else []


def find_our_statement(text: str | None) -> dict[str, Any] | None:
    """Return our statement in a policy."""
    return next((span.value for span in _spans(text)[0] if span.ours), None) if text else None


def merge_statements(text: str | None, ours: Mapping[str, Any] | None) -> str:
    """Return the policy *text* with our statement added, replaced or (None) removed; the rest stays byte for byte.

    Return *text* unchanged if it already has our statement, by value. Return an empty text, which for SQS means no
    policy, if no statement is left.
    """
    spans, is_list, (first, last) = _spans(text) if text else ([], True, (0, 0))
    if text is None or not spans:
        return "" if ours is None else json.dumps({"Version": POLICY_VERSION, "Statement": [ours]})
    own = [span for span in spans if span.ours]
    if (ours is None and not own) or (len(own) == 1 and _is_same(own[0].value, ours)):
        return text
    kept = [span for span in spans if not span.ours]
    if ours is None and not kept:
        return ""
    if is_list and len(own) == len([ours]) and ours is not None:  # replace it where it is
        return text[: own[0].start] + json.dumps(ours) + text[own[0].end :]
    raw = [text[span.start : span.end] for span in kept] + ([] if ours is None else [json.dumps(ours)])
    return f"{text[:first]}[{', '.join(raw)}]{text[last:]}"


def _spans(text: str) -> tuple[list[_Span], bool, tuple[int, int]]:
    """Return the statements, whether they are in a list, and the start and end of their value in *text*."""
    try:
        start = _statement_value(text)
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, IndexError):
        return [], True, (0, 0)
    if isinstance(value, dict):  # IAM accepts a single statement without a list
        return [_Span(start, end, value)], False, (start, end)
    if not isinstance(value, list):
        return [], True, (0, 0)
    spans = []
    position = start + 1
    for _ in value:
        position = _skip(text, position, _SPACE + ",")
        one, after = _DECODER.raw_decode(text, position)
        spans.append(_Span(position, after, one))
        position = after
    return spans, True, (start, end)


def _statement_value(text: str) -> int:
    """Return the position of the value of "Statement" at the top level.

    Raises:
        ValueError: *text* is not a JSON object, or has no statements.
    """
    position = _skip(text, 0, _SPACE)
    if text[position] != "{":
        raise ValueError("a policy is a JSON object")
    position = _skip(text, position + 1, _SPACE)
    while text[position] != "}":
        key, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position, _SPACE + ":")
        if key == "Statement":
            return position
        _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position, _SPACE + ",")
    raise ValueError("a policy has statements")


def _skip(text: str, position: int, characters: str) -> int:
    while text[position] in characters:
        position += 1
    return position


def find_open_statements(text: str | None) -> list[str]:
    """Return the Sids of statements that allow everyone: a principal ``*`` without a condition on who it is."""
    return [
        str(one.get("Sid", "without a Sid"))
        for one in read_statements(text)
        if isinstance(one, dict) and one.get("Effect") == "Allow" and allows_everyone(one)
    ]


def build_key_statement(queue_arn: str, topic_arns: Iterable[str]) -> dict[str, Any]:
    """Return the statement that the policy of a KMS key needs, so that SNS can deliver from these topics to this queue.

    Source: Amazon SNS, "Configuring Amazon SNS topic encryption with an encrypted Amazon SQS queue subscription".
    """
    return {
        **build_statement(queue_arn, topic_arns),
        "Sid": "SmartpipeAllowSnsToEncrypt",
        "Action": ["kms:GenerateDataKey*", "kms:Decrypt"],
        "Resource": "*",
    }
