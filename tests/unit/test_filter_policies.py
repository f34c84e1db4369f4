"""What SNS would refuse of a filter policy, refused at the declaration."""

from __future__ import annotations

import re
from typing import Any

import pytest

from smartpipe import ConfigError, Queue, Service
from smartpipe.filter_policy import FilterPolicy, policy_errors
from smartpipe.names import Naming
from smartpipe.topology.derive import derive
from smartpipe.topology.table_and_bucket import TableAndBucket
from tests.support.events import UserLeft


@pytest.mark.parametrize(
    ("conditions", "scope", "sentence"),
    [
        ({}, "MessageAttributes", "pass names with lists of values"),
        ({"a": ["x"]}, "Body", "scope='Body' is not one of MessageAttributes, MessageBody"),
        ({name: ["x"] for name in "abcde"}, "MessageAttributes", "SNS allows 5, one of which is the event's type"),
        ({"a": ["x"] * 12, "b": ["y"] * 13}, "MessageAttributes", "156 combinations"),
        ({"a": {"b": ["x"]}}, "MessageAttributes", "'a' is nested, and message attributes are flat"),
        ({"a": {"b": ["x"] * 76}}, "MessageBody", "152 combinations"),
        ({"a": "x"}, "MessageAttributes", "'x' must be a list of values"),
        ({"a": []}, "MessageAttributes", "must be a list of values"),
        ({"a": {"b": "x"}}, "MessageBody", "'x' must be a list of values"),
        ({"a": [1_000_000_001]}, "MessageAttributes", "the number 1000000001"),
        ({"a": [{"numeric": ["=", 0.1234567]}]}, "MessageAttributes", "with 5 decimals"),
        ({"a": ["x" * 262_144]}, "MessageAttributes", "SNS allows 262,144"),
        ({"type": ["x"]}, "MessageAttributes", "'type' is reserved"),
        ({"": ["x"]}, "MessageAttributes", "'' is not a name"),
        ({"$or": []}, "MessageAttributes", "must be a list of at least two policies"),
        ({"$or": "x"}, "MessageAttributes", "must be a list of at least two policies"),
        ({"$or": [{"a": {"b": ["x"]}}, {"c": ["y"]}]}, "MessageAttributes", "'a' is nested"),
        ({"a": [object()]}, "MessageAttributes", "cannot be written as JSON"),
    ],
)
def test_fault_47_what_sns_would_refuse_is_refused_at_once(conditions: Any, scope: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        FilterPolicy(conditions, scope)


@pytest.mark.parametrize(
    ("conditions", "scope"),
    [
        ({"tenant": ["acme", {"prefix": "ac"}]}, "MessageAttributes"),
        ({name: ["x"] for name in "abcd"}, "MessageAttributes"),
        ({"a": ["x"] * 10, "b": ["y"] * 15}, "MessageAttributes"),
        ({"a": {"b": ["x"] * 75}}, "MessageBody"),
        ({"price": [{"numeric": [">=", 0.00001, "<", 1_000_000_000]}], "paid": [True]}, "MessageAttributes"),
        ({"$or": [{"a": ["x"]}, {"b": ["y"]}]}, "MessageAttributes"),
    ],
)
def test_what_sns_takes_is_taken(conditions: Any, scope: Any) -> None:
    policy = FilterPolicy(conditions, scope)

    assert policy.policy(["b", "a"]) == {"type": ["a", "b"], **conditions}
    assert policy_errors(policy.policy(["a"]), scope) == []


def test_policies_compare_and_hash_by_what_they_say() -> None:
    assert len({FilterPolicy({"a": ["x"]}), FilterPolicy({"a": ["x"]}), FilterPolicy({"a": ["y"]})}) == 2


def test_more_types_than_combinations_are_a_problem_of_the_whole_policy() -> None:
    [problem] = policy_errors({"type": [str(number) for number in range(151)]}, "MessageAttributes")

    assert "151 combinations" in problem


@pytest.mark.parametrize("setting", ["SMARTPIPE_COMPRESSION=gzip", "SMARTPIPE_CLAIM_CHECK_URL=s3://my-bucket"])
def test_fault_47_a_filter_into_bodies_is_refused_where_some_are_packed(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*setting.split("=", 1))
    queue = Queue("mailer", filter_policy=FilterPolicy({"data": {"name": ["Ada"]}}, scope="MessageBody"))
    service = Service("mailer", queue=queue)
    naming = Naming("aws", "eu-west-1", "123456789012")

    @service.subscribe(UserLeft)
    async def handle(_: UserLeft) -> None: ...

    with pytest.raises(ConfigError, match="filter by attributes"):
        derive([service], naming, TableAndBucket.from_environment())
    assert derive([service], naming)
