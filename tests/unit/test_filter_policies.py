"""What SNS would refuse of a filter policy, refused at the declaration."""

from __future__ import annotations

import re
from typing import Any

import pytest

from smartpipe import ConfigError, Queue, Service
from smartpipe.filter_operators import expand, split_wildcard
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


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ([{"prefx": "a"}], "SNS has no operator 'prefx'; did you mean 'prefix'?"),
        ([{"exactly": "a"}], "SNS has no operator 'exactly'; its operators are prefix, suffix,"),
        ([{"": "a"}], "SNS has no operator ''"),
        ([{1: "a"}], "SNS has no operator 1"),
        ([{}], "{} has 0 operators"),
        ([{"prefix": "a", "suffix": "b"}], "has 2 operators: SNS expects one"),
        ([["a"]], "['a'] is not a value"),
        ([("a",)], "('a',) is not a value"),
        ([{"prefix": 1}], "operator 'prefix' expects a text"),
        ([{"prefix": ["a"]}], "operator 'prefix' expects a text"),
        ([{"prefix": {"equals-ignore-case": "a"}}], "operator 'prefix' expects a text"),
        ([{"suffix": None}], "operator 'suffix' expects a text"),
        ([{"equals-ignore-case": True}], "operator 'equals-ignore-case' expects a text"),
        ([{"exists": "yes"}], "operator 'exists' expects True or False"),
        ([{"exists": 1}], "operator 'exists' expects True or False"),
        ([{"numeric": 5}], "operator 'numeric' expects a comparison or a range"),
        ([{"numeric": []}], "operator 'numeric' expects a comparison or a range"),
        ([{"numeric": [">"]}], "operator 'numeric' expects a comparison or a range"),
        ([{"numeric": [">", 1, "<"]}], "operator 'numeric' expects a comparison or a range"),
        ([{"numeric": [">", 1, "<", 2, "<", 3]}], "operator 'numeric' expects a comparison or a range"),
        ([{"numeric": ["!=", 1]}], "operator 'numeric' has no comparison '!='"),
        ([{"numeric": [1, ">"]}], "operator 'numeric' has no comparison 1"),
        ([{"numeric": [["="], 1]}], "operator 'numeric' has no comparison ['=']"),
        ([{"numeric": ["=", "1"]}], "operator 'numeric' compares with '1', which is not a number"),
        ([{"numeric": ["=", True]}], "operator 'numeric' compares with True, which is not a number"),
        ([{"numeric": ["<", 5, ">", 1]}], "expects a range with its lower bound first"),
        ([{"numeric": [">", 1, ">", 2]}], "expects a range with its lower bound first"),
        ([{"numeric": ["=", 1, "<", 2]}], "expects a range with its lower bound first"),
        ([{"numeric": [">", 2, "<", 2]}], "has an empty range: 2 is not less than 2"),
        ([{"numeric": [">", float("nan")]}], "cannot be written as JSON"),
        ([{"anything-but": []}], "operator 'anything-but' expects texts or numbers"),
        ([{"anything-but": ["a", 1]}], "operator 'anything-but' expects texts or numbers, not both"),
        ([{"anything-but": [None]}], "operator 'anything-but' expects texts or numbers"),
        ([{"anything-but": [["a"]]}], "operator 'anything-but' expects texts or numbers"),
        ([{"anything-but": True}], "operator 'anything-but' expects a text, a number, or a list of either"),
        ([{"anything-but": None}], "operator 'anything-but' expects a text, a number, or a list of either"),
        ([{"anything-but": {"suffix": "a"}}], "operator 'anything-but' can contain 'prefix' or 'wildcard'"),
        ([{"anything-but": {"equals-ignore-case": "a"}}], "operator 'anything-but' can contain 'prefix' or 'wildcard'"),
        ([{"anything-but": {}}], "operator 'anything-but' can contain 'prefix' or 'wildcard'"),
        ([{"anything-but": {"prefix": "a", "wildcard": "b"}}], "operator 'anything-but' can contain"),
        ([{"anything-but": {"prefix": ""}}], "operator 'anything-but' with 'prefix' expects a text or a list of texts"),
        ([{"anything-but": {"prefix": []}}], "operator 'anything-but' with 'prefix' expects a text or a list of texts"),
        ([{"anything-but": {"wildcard": ["a**"]}}], "operator 'anything-but' has two * in a row"),
        ([{"wildcard": 5}], "operator 'wildcard' expects a text"),
        ([{"wildcard": "a**b"}], "operator 'wildcard' has two * in a row"),
        ([{"wildcard": "a*b*c*d*"}], "operator 'wildcard' has 4 *: SNS allows 3"),
        ([{"wildcard": "a\\d"}], "has a backslash that does not precede *"),
        ([{"wildcard": "a\\"}], "has a backslash that does not precede *"),
        ([{"cidr": "10.0.0.0"}], "operator 'cidr' expects an address and the bits of its mask"),
        ([{"cidr": "10.0.0.0/255.0.0.0"}], "operator 'cidr' expects an address"),
        ([{"cidr": "10.0.0/8"}], "operator 'cidr' expects an address"),
        ([{"cidr": "10.0.0.0/33"}], "operator 'cidr' expects an address"),
        ([{"cidr": 10}], "operator 'cidr' expects an address"),
        ([{"cidr": "10.0.0.1/32"}], "operator 'cidr' needs a mask of fewer than 32 bits"),
        ([{"cidr": "2001:db8::1/128"}], "operator 'cidr' needs a mask of fewer than 128 bits"),
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["attribute", "body", "or"])
def test_an_operator_or_operand_that_sns_refuses_is_refused_by_its_name(rules: Any, sentence: str, place: str) -> None:
    conditions, scope = {
        "attribute": ({"x": rules}, "MessageAttributes"),
        "body": ({"data": {"x": rules}}, "MessageBody"),
        "or": ({"$or": [{"x": rules}, {"y": ["z"]}]}, "MessageAttributes"),
    }[place]

    with pytest.raises(ConfigError) as caught:
        FilterPolicy(conditions, scope)  # type: ignore[arg-type]

    assert sentence in str(caught.value)
    if "JSON" not in sentence:
        assert "'x': " in str(caught.value)


@pytest.mark.parametrize(
    ("conditions", "points"),
    [
        ({"a": [{"wildcard": f"{number}*"} for number in range(11)]}, 121),
        ({"a": [{"wildcard": f"{number}*"} for number in range(8)], "b": [{"wildcard": f"*{n}*"} for n in "xyz"]}, 118),
        ({"a": [{"anything-but": {"wildcard": [f"*{letter}*" for letter in "vwxyz"]}}]}, 150),
        (
            {"$or": [{"a": [{"wildcard": f"*{n}*"} for n in "xyz"]}, {"b": [{"wildcard": f"*{n}*"} for n in "xyz"]}]},
            108,
        ),
        ({"a": [{"wildcard": f"{number}*"} for number in range(10)]}, None),
        ({"a": [{"wildcard": f"{number}*"} for number in range(10)], "b": [{"wildcard": "x*"}]}, 101),
    ],
    ids=str,
)
def test_wildcards_have_points_of_which_sns_allows_a_hundred_in_a_policy(conditions: Any, points: int | None) -> None:
    if points is None:
        assert FilterPolicy(conditions)
    else:
        with pytest.raises(ConfigError, match=f"its wildcards have {points} points"):
            FilterPolicy(conditions)


def test_each_wrong_operator_is_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        FilterPolicy({"a": [{"prefx": "x"}, {"exists": 1}], "b": [{"numeric": [">"]}]})

    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "rules",
    [
        ["a", 1, -1.5, True, False, None],
        [{"prefix": "a"}, {"suffix": "b"}, {"equals-ignore-case": "c"}, {"prefix": ""}],
        [{"anything-but": "a"}, {"anything-but": 1}, {"anything-but": ["a", "b"]}, {"anything-but": [1, 2.5]}],
        [{"anything-but": {"prefix": "a"}}, {"anything-but": {"prefix": ["a", "b"]}}],
        [{"anything-but": {"wildcard": "a*"}}, {"anything-but": {"wildcard": ["a*", "*b"]}}],
        [{"wildcard": "*/src/*.js"}, {"wildcard": "*"}, {"wildcard": "no star"}, {"wildcard": "a\\*b\\\\c*"}],
        [{"numeric": [sign, 5]} for sign in ("=", "<", "<=", ">", ">=")],
        [{"numeric": [">", 0, "<=", 150]}, {"numeric": [">=", -1.5, "<", 0]}],
        [{"cidr": "10.0.0.0/24"}, {"cidr": "10.0.0.7/8"}, {"cidr": "2001:db8::/32"}, {"cidr": "0.0.0.0/0"}],
        [{"exists": True}],
        [{"exists": False}, {"anything-but": ["a"]}],
    ],
    ids=str,
)
def test_every_operator_of_sns_is_accepted(rules: Any) -> None:
    assert FilterPolicy({"x": rules})
    assert FilterPolicy({"data": {"x": rules}}, scope="MessageBody")


@pytest.mark.parametrize("name", ["numeric", "prefix", "suffix", "exists", "anything-but", "wildcard", "cidr"])
def test_an_alternative_with_a_field_called_as_an_operator_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' in \"\\$or\" is an operator"):
        FilterPolicy({"$or": [{name: ["a"]}, {"x": ["b"]}]})


@pytest.mark.parametrize(
    ("conditions", "scope"),
    [
        ({"$or": [{"type": ["a"]}, {"x": ["b"]}]}, "MessageAttributes"),
        ({"$or": [{"x": ["b"]}, {"$or": [{"y": ["c"]}, {"type": ["a"]}]}]}, "MessageBody"),
    ],
)
def test_the_type_is_reserved_inside_alternatives_too(conditions: Any, scope: Any) -> None:
    with pytest.raises(ConfigError, match="'type' is reserved"):
        FilterPolicy(conditions, scope)


@pytest.mark.parametrize(
    "conditions",
    [
        {"x": ["a"], "$or": [{"x": ["b"]}, {"y": ["c"]}]},
        {"data": {"x": ["a"], "$or": [{"x": ["b"]}, {"y": ["c"]}]}},
        {"data.x": ["a"], "data": {"x": ["b"]}},
    ],
)
def test_a_name_with_two_conditions_is_refused_because_sns_uses_one(conditions: Any) -> None:
    with pytest.raises(ConfigError, match="has two conditions"):
        FilterPolicy(conditions, scope="MessageBody")


def test_alternatives_may_use_the_same_name() -> None:
    assert FilterPolicy({"$or": [{"x": ["a"], "y": ["b"]}, {"x": ["c"]}]})


@pytest.mark.parametrize(
    ("conditions", "sentence"),
    [
        ({"$or": [{"a": ["x"]}]}, "must be a list of at least two policies"),
        ({"$or": [{"a": ["x"]}, {}]}, "must be a list of at least two policies"),
        ({"$or": [{"a": ["x"]}, ["b"]]}, "must be a list of at least two policies"),
        ({"a": [{"anything-but": {"prefix": ["x", ""]}}]}, "none of them empty"),
        ({"a": [{"anything-but": {"prefix": ["x", 5]}}]}, "expects a text or a list of texts"),
        ({"a": [{"anything-but": {"wildcard": ["x*", "a**"]}}]}, "has two * in a row"),
        ({"a": [{"wildcard": "***"}]}, "has two * in a row"),
        ({"a": [{"wildcard": "**x"}]}, "has two * in a row"),
        ({"a": [{"numeric": [">", 1, "<", 1.0]}]}, "has an empty range: 1 is not less than 1.0"),
        ({"a": [{"numeric": [">=", 1, "<=", 1]}]}, "has an empty range"),
        ({"a": [{"numeric": ["=", 1, "=", 2]}]}, "expects a range with its lower bound first"),
        ({"a": [{"numeric": [">", 1, "=", 2]}]}, "expects a range with its lower bound first"),
        ({"a": [-1_000_000_001]}, "the number -1000000001"),
        ({"a": [1_000_000_000.1]}, "the number 1000000000.1"),
        ({"a": [0.000001]}, "the number 1e-06"),
        ({"a": [{"anything-but": [1, 0.000001]}]}, "the number 1e-06"),
        ({5: ["x"]}, "5 is not a name"),
    ],
    ids=str,
)
def test_a_rule_is_refused_wherever_it_breaks(conditions: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        FilterPolicy(conditions)

    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "conditions",
    [
        {"a": [1_000_000_000, -1_000_000_000, 0.00001, -0.99999, True]},
        {"a": [{"numeric": [">", 1, "<", 1.00001]}]},
        {"a": [{"wildcard": "a*b*c*d"}]},
        {"$or": [{"a": ["x"]}, {"b": ["y"]}, {"c": ["z"]}]},
        {"$or": [{"$or": [{"a": ["x"]}, {"b": ["y"]}]}, {"c": ["z"]}]},
    ],
    ids=str,
)
def test_a_rule_at_its_limit_is_accepted(conditions: Any) -> None:
    assert FilterPolicy(conditions)


def test_a_policy_may_be_as_long_as_sns_allows() -> None:
    rest = len('{"a": [""]}')

    assert FilterPolicy({"a": ["x" * (262_144 - rest)]})
    assert FilterPolicy({"a": ["\u00e4" * ((262_144 - rest) // 2)]})
    for text in ("x" * (262_145 - rest), "\u00e4" * ((262_146 - rest) // 2)):
        with pytest.raises(ConfigError, match="it has 262,14[56] bytes: SNS allows 262,144"):
            FilterPolicy({"a": [text]})


@pytest.mark.parametrize(("names", "allowed"), [(4, True), (5, True), (6, False)])
def test_a_complete_policy_has_five_names_with_that_of_the_type(names: int, allowed: bool) -> None:
    policy = {name: ["x"] for name in "abcdefg"[:names]}

    assert (policy_errors(policy, "MessageAttributes") == []) is allowed
    assert allowed or policy_errors(policy, "MessageAttributes") == [
        f"{names} names: SNS allows 5, one of which is the event's type"
    ]


@pytest.mark.parametrize(
    ("conditions", "combinations"),
    [
        ({"a": {"b": {"c": ["x"] * 51}}}, 153),
        ({"a": {"b": ["x"] * 8, "c": ["y"] * 5}}, 160),
        ({"a": ["x"] * 76, "$or": [{"b": ["y"]}, {"c": ["z"]}]}, 152),
        ({"$or": [{"a": ["x"] * 10, "b": ["y"] * 10}, {"c": ["z"] * 51}]}, 151),
        ({"a": {"$or": [{"b": ["x"] * 38}, {"c": ["y"] * 38}]}}, 152),
    ],
    ids=str,
)
def test_values_count_by_their_depth_and_alternatives_are_added(conditions: Any, combinations: int) -> None:
    with pytest.raises(ConfigError, match=f"^FilterPolicy: {combinations} combinations of values"):
        FilterPolicy(conditions, "MessageBody")


@pytest.mark.parametrize(
    "conditions",
    [
        {"a": {"b": {"c": ["x"] * 50}}},
        {"$or": [{"a": ["x"] * 10, "b": ["y"] * 10}, {"c": ["z"] * 50}]},
        {"a": {"$or": [{"b": ["x"] * 38}, {"c": ["y"] * 37}]}},
    ],
    ids=str,
)
def test_150_combinations_are_accepted(conditions: Any) -> None:
    assert FilterPolicy(conditions, "MessageBody")


@pytest.mark.parametrize(
    ("conditions", "points"),
    [
        ({"a": {"b": [{"wildcard": f"{n}*"} for n in range(10)]}, "c": [{"wildcard": "x*"}]}, 101),
        ({"a": [{"wildcard": "no star"}, *({"wildcard": f"{n}*"} for n in range(10))]}, 110),
        ({"a": [{"wildcard": "*a*b*"}] * 3, "b": [{"wildcard": "*a*"}, {"wildcard": "x"}, {"prefix": "y"}] * 2}, 129),
    ],
    ids=str,
)
def test_points_of_nested_names_and_patterns_without_a_star_count(conditions: Any, points: int) -> None:
    with pytest.raises(ConfigError, match=f"its wildcards have {points} points"):
        FilterPolicy(conditions, "MessageBody")


def test_a_policy_differs_by_its_scope_and_not_by_the_order_of_its_names() -> None:
    one, other = FilterPolicy({"a": ["x"], "b": ["y"]}), FilterPolicy({"b": ["y"], "a": ["x"]})

    assert hash(one) == hash(other)
    assert len({one, other, FilterPolicy({"a": ["x"], "b": ["y"]}, "MessageBody")}) == 2
    assert FilterPolicy({"a": ["x"]}).scope == "MessageAttributes"


@pytest.mark.parametrize(("pattern", "parts"), [
    ("", [""]), ("a", ["a"]), ("*", ["", ""]), ("a*b", ["a", "b"]), (r"a\*b", ["a*b"]), ("a\\\\*", ["a\\", ""]),
    ("a\nb*", ["a\nb", ""]),
])  # fmt: skip
def test_a_pattern_is_split_at_its_stars(pattern: str, parts: list[str]) -> None:
    assert split_wildcard(pattern) == parts


def test_a_policy_is_expanded_into_its_alternatives_by_path() -> None:
    policy = {"a": {"b": [1], "$or": [{"c": [2]}, {"d": {"e": [3]}}]}, "f": [4]}

    assert expand(policy) == [
        [("a.b", [1]), ("a.c", [2]), ("f", [4])],
        [("a.b", [1]), ("a.d.e", [3]), ("f", [4])],
    ]
