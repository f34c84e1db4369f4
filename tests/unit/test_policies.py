"""Queue policies: smartpipe writes one statement, and the others stay byte for byte."""

from __future__ import annotations

import json

import botocore.session
import pytest
from botocore.args import LEGACY_GLOBAL_STS_REGIONS
from hypothesis import given
from hypothesis import strategies as st

from smartpipe.topology.policy import (
    POLICY_LIMIT_BYTES,
    POLICY_SID,
    build_key_statement,
    build_statement,
    find_open_statements,
    find_our_statement,
    fit_statements,
    fold_sources,
    merge_statements,
    read_statements,
    source_topics,
)
from smartpipe.topology.regions import ENABLED_BY_DEFAULT, is_opt_in

QUEUE = "arn:aws:sqs:eu-west-1:123456789012:mailer"
USERS = "arn:aws:sns:eu-west-1:123456789012:users"
ORDERS = "arn:aws:sns:eu-west-1:123456789012:orders"
OURS = build_statement(QUEUE, [USERS, ORDERS])
STALE = build_statement(QUEUE, [USERS])
THEIRS = '{ "Effect":"Allow",\n "Sid" : "th\\u00e9irs", "Principal":"*", "Action":["sqs:*"] , "Resource":"x" }'


def policy(*raw: str) -> str:
    return f'{{"Id" : "kept", "Statement": [ {" , ".join(raw)} ]\n, "Version":"2012-10-17"}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (policy(THEIRS), f'{{"Id" : "kept", "Statement": [{THEIRS}, {json.dumps(OURS)}]\n, "Version":"2012-10-17"}}'),
        (policy(THEIRS, json.dumps(STALE)), policy(THEIRS, json.dumps(OURS))),
        (policy(json.dumps(STALE), THEIRS), policy(json.dumps(OURS), THEIRS)),
        (policy(THEIRS, json.dumps(OURS, indent=3)), policy(THEIRS, json.dumps(OURS, indent=3))),
        (f'{{"Statement":{THEIRS}}}', f'{{"Statement":[{THEIRS}, {json.dumps(OURS)}]}}'),
    ],
    ids=[
        "added",
        "put right behind others",
        "put right before others",
        "in place already",
        "a statement without a list",
    ],
)
def test_the_statements_of_others_are_kept_byte_for_byte(text: str, expected: str) -> None:
    assert merge_statements(text, OURS) == expected


def test_two_statements_of_ours_become_one() -> None:
    text = merge_statements(policy(json.dumps(STALE), THEIRS, json.dumps(STALE)), OURS)

    assert [one.get("Sid") for one in read_statements(text)] == ["th\u00e9irs", POLICY_SID]
    assert THEIRS in text


NO_POLICIES = [None, "", "no policy", "[]", '{"Version": "2012-10-17"}', "{", '{"Statement": [{]}']


@pytest.mark.parametrize("text", [*NO_POLICIES, '{"Statement": null}', '{"Statement": "x"}'])
def test_without_a_policy_our_statement_is_the_only_one(text: str | None) -> None:
    assert json.loads(merge_statements(text, OURS)) == {"Version": "2012-10-17", "Statement": [OURS]}


def test_our_statement_is_removed_when_nothing_is_subscribed() -> None:
    assert merge_statements(policy(json.dumps(OURS)), None) == ""
    assert read_statements(merge_statements(policy(THEIRS, json.dumps(OURS)), None)) == [json.loads(THEIRS)]
    assert merge_statements(policy(THEIRS), None) == policy(THEIRS)


def test_a_list_of_one_and_another_order_are_the_same_statement() -> None:
    one = build_statement(QUEUE, [USERS])
    written = {**one, "Condition": {**one["Condition"], "ArnEquals": {"aws:SourceArn": USERS}}}
    shuffled = {**OURS, "Condition": {**OURS["Condition"], "ArnEquals": {"aws:SourceArn": [USERS, ORDERS]}}}

    assert merge_statements(policy(json.dumps(written)), one) == policy(json.dumps(written))
    assert merge_statements(policy(json.dumps(shuffled)), OURS) == policy(json.dumps(shuffled))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_all_statements_of_others_are_kept(
    theirs: list[dict[str, object]], indent: int, ours_is_there: bool, ascii_only: bool
) -> None:
    raw = [
        json.dumps(one, indent=indent or None, ensure_ascii=ascii_only)
        for one in theirs
        if one.get("Sid") != POLICY_SID
    ]
    text = policy(*raw, *([json.dumps(STALE)] if ours_is_there else []))

    result = merge_statements(text, OURS)

    assert all(one in result for one in raw)
    assert find_our_statement(result) == OURS
    assert len(read_statements(result)) == len(raw) + 1


def topics(count: int, name: str = "team-growth-events-of-a-long-name-{:03}") -> list[str]:
    return [f"arn:aws:sns:eu-west-1:123456789012:{name.format(number)}" for number in range(count)]


def test_fault_49_sixty_topics_into_one_queue_are_one_statement_within_the_limit() -> None:
    short = fit_statements(None, build_statement(QUEUE, topics(60, "topic-{}")))
    long = fit_statements(None, build_statement(QUEUE, topics(60, "a-very-long-name-" * 8 + "{}")))

    assert len(read_statements(short)) == len(read_statements(long)) == 1
    assert len(source_topics(find_our_statement(short) or {})) == 60
    assert source_topics(find_our_statement(long) or {}) == [topics(1, "a-very-long-name-" * 8)[0] + "*"]
    assert len(long.encode()) <= POLICY_LIMIT_BYTES


@pytest.mark.parametrize(
    ("topic_region", "queue_region", "expected"),
    [
        ("us-east-1", "us-east-1", "sns.amazonaws.com"),
        ("us-east-1", "eu-west-1", "sns.amazonaws.com"),
        ("me-south-1", "us-east-1", "sns.me-south-1.amazonaws.com"),
        ("us-east-1", "me-south-1", "sns.me-south-1.amazonaws.com"),
        ("me-south-1", "af-south-1", "sns.af-south-1.amazonaws.com"),
        ("me-south-1", "me-south-1", "sns.amazonaws.com"),
        ("xx-future-1", "us-east-1", "sns.xx-future-1.amazonaws.com"),
        ("us-east-1", "xx-future-1", "sns.xx-future-1.amazonaws.com"),
        ("ap-northeast-3", "us-east-1", ["sns.amazonaws.com", "sns.ap-northeast-3.amazonaws.com"]),
        ("us-east-1", "ap-northeast-3", ["sns.amazonaws.com", "sns.ap-northeast-3.amazonaws.com"]),
        ("ap-northeast-3", "ap-northeast-3", "sns.amazonaws.com"),
        ("ap-northeast-3", "me-south-1", "sns.me-south-1.amazonaws.com"),
    ],
)
def test_the_principal_is_the_one_that_sns_delivers_as_between_these_regions(
    topic_region: str, queue_region: str, expected: object
) -> None:
    queue = f"arn:aws:sqs:{queue_region}:123456789012:mailer"
    topic = f"arn:aws:sns:{topic_region}:123456789012:users"

    for found in (
        build_statement(queue, [topic]),
        fold_sources(build_statement(queue, [topic])),
        build_key_statement(queue, [topic]),
    ):
        assert found["Principal"] == {"Service": expected}


@pytest.mark.parametrize(
    ("partition", "topic_region", "queue_region"),
    [
        ("aws-cn", "cn-north-1", "cn-northwest-1"),
        ("aws-us-gov", "us-gov-east-1", "us-gov-west-1"),
        ("aws-iso", "us-iso-east-1", "us-iso-west-1"),
        ("aws-eusc", "eusc-de-east-1", "eusc-de-west-1"),
    ],
)
def test_other_partitions_have_no_opt_in_regions(partition: str, topic_region: str, queue_region: str) -> None:
    found = build_statement(f"arn:{partition}:sqs:{queue_region}:1:q", [f"arn:{partition}:sns:{topic_region}:1:t"])

    assert found["Principal"] == {"Service": "sns.amazonaws.com"}


def test_each_topic_region_is_allowed_by_its_principal() -> None:
    regions = ("us-east-1", "me-south-1", "af-south-1", "eu-west-1")

    found = build_statement(QUEUE, [f"arn:aws:sns:{region}:1:t" for region in regions])

    assert found["Principal"] == {
        "Service": ["sns.amazonaws.com", "sns.af-south-1.amazonaws.com", "sns.me-south-1.amazonaws.com"]
    }


def test_regions_enabled_by_default_are_regions_of_the_partition_and_hold_all_that_sts_has_known_for_long() -> None:
    sns = botocore.session.Session().get_available_regions("sns", "aws")
    before_2019 = set(LEGACY_GLOBAL_STS_REGIONS) - {"aws-global"}

    assert set(ENABLED_BY_DEFAULT) <= set(sns)
    assert before_2019 < set(ENABLED_BY_DEFAULT)
    assert set(ENABLED_BY_DEFAULT) - before_2019 == {"ap-northeast-2", "ap-northeast-3"}
    # All other regions of botocore are opt-in, and so are new ones.
    assert {
        "af-south-1", "ap-east-1", "ap-south-2", "ap-southeast-3", "ap-southeast-4", "ca-west-1", "eu-central-2",
        "eu-south-1", "eu-south-2", "il-central-1", "me-central-1", "me-south-1",
    } <= set(filter(is_opt_in, sns))  # fmt: skip


def test_a_folded_statement_still_names_the_account() -> None:
    other = "arn:aws:sns:eu-west-1:999999999999:theirs"

    pattern = fold_sources(build_statement(QUEUE, [*topics(3), other]))

    assert pattern["Principal"] == {"Service": "sns.amazonaws.com"}
    assert pattern["Condition"] == {
        "ArnLike": {"aws:SourceArn": [topics(1, "team-growth-events-of-a-long-name-00")[0] + "*", other]},
        "StringEquals": {"aws:SourceAccount": ["123456789012", "999999999999"]},
    }


def test_statements_of_others_count_for_the_limit_and_are_not_cut() -> None:
    theirs = policy(json.dumps({"Sid": "theirs", "Resource": "x" * 4_000}))

    text = fit_statements(theirs, build_statement(QUEUE, topics(60)))

    assert "ArnLike" in (find_our_statement(text) or {})["Condition"]
    assert "x" * 4_000 in text


@pytest.mark.parametrize(
    ("statement_of_others", "expected"),
    [
        ({"Sid": "open", "Effect": "Allow", "Principal": "*"}, ["open"]),
        ({"Sid": "open", "Effect": "Allow", "Principal": {"AWS": "*"}}, ["open"]),
        ({"Effect": "Allow", "Principal": "*"}, ["without a Sid"]),
        ({"Sid": "x", "Effect": "Allow", "Principal": {"AWS": ["*"]}}, ["x"]),
        ({"Sid": "x", "Effect": "Allow", "NotPrincipal": {"AWS": "123456789012"}}, ["x"]),
        (
            {
                "Sid": "x",
                "Effect": "Allow",
                "Principal": "*",
                "Condition": {"StringNotEquals": {"aws:SourceAccount": "1"}},
            },
            ["x"],
        ),
        (
            {"Sid": "x", "Effect": "Allow", "Principal": "*", "Condition": {"Bool": {"aws:SecureTransport": "true"}}},
            ["x"],
        ),
        ({"Sid": "x", "Effect": "Allow", "Principal": "*", "Condition": {"ArnLike": {"aws:SourceArn": "a"}}}, []),
        ({"Sid": "x", "Effect": "Deny", "Principal": "*"}, []),
        ({"Sid": "x", "Effect": "Allow", "Principal": {"AWS": "123456789012"}}, []),
    ],
)
def test_a_statement_that_allows_everyone_is_found(statement_of_others: dict[str, object], expected: list[str]) -> None:
    assert find_open_statements(policy(json.dumps(statement_of_others))) == expected


HERE, ORG = "123456789012", "o-a1b2c3d4e5"
LIMITING = [
    {"StringEquals": {"aws:SourceVpc": "vpc-111bbb22"}},
    {"StringEquals": {"aws:SourceVpce": ["vpce-1a2b3c4d", "vpce-5e6f7a8b"]}},
    {"StringEquals": {"aws:PrincipalOrgID": ORG}},
    {"StringEquals": {"aws:PrincipalOrgID": "${aws:ResourceOrgID}"}},
    {"ForAnyValue:StringLike": {"aws:PrincipalOrgPaths": f"{ORG}/*"}},
    {"ForAnyValue:StringEquals": {"aws:PrincipalOrgPaths": [f"{ORG}/r-ab12/ou-ab12-11111111/"]}},
    {"StringEquals": {"aws:PrincipalAccount": HERE}},
    {"ArnLike": {"aws:PrincipalArn": f"arn:aws:iam::{HERE}:role/*"}},
    {"StringEquals": {"aws:SourceAccount": HERE}},
    {"StringEqualsIgnoreCase": {"aws:sourceaccount": HERE}},
    {"StringEquals": {"AWS:SourceOwner": HERE}},
    {"ArnEquals": {"aws:SourceArn": USERS}},
    {"ArnLike": {"aws:SourceArn": f"arn:aws:sns:*:{HERE}:*"}},
    {"StringLike": {"aws:SourceArn": f"arn:aws:sns:eu-west-1:{HERE}:users*"}},
    {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::my-bucket"}},
    {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::my-bucket/*"}},
    {"StringEquals": {"aws:SourceOrgID": ORG}},
    {"ForAnyValue:StringLike": {"aws:SourceOrgPaths": f"{ORG}/r-ab12/*"}},
    {"IpAddress": {"aws:SourceIp": ["203.0.113.0/24", "2001:db8::/32"]}},
    {"IpAddress": {"aws:SourceIp": "128.0.0.0/1"}},
    {"StringLike": {"aws:userid": "AROAEXAMPLEID:*"}},
    {"StringEquals": {"aws:VpceOrgID": ORG}},
    {"StringLike": {"aws:SourceVpc": "*"}, "StringEquals": {"aws:SourceAccount": HERE}},
    {"Bool": {"aws:SecureTransport": "true"}, "StringEquals": {"aws:SourceVpce": "vpce-1a2b3c4d"}},
]
OPEN = [
    {"ArnLike": {"aws:SourceArn": "*"}},
    {"ArnEquals": {"aws:SourceArn": "*"}},
    {"StringLike": {"aws:SourceArn": ["*"]}},
    {"ArnLike": {"aws:SourceArn": "arn:aws:sns:*:*:*"}},
    {"ArnLike": {"aws:SourceArn": "arn:aws:sns:eu-west-1:*:users"}},
    {"StringLike": {"aws:SourceArn": "arn:aws:sns:*"}},
    {"ArnLike": {"aws:SourceArn": [USERS, "*"]}},
    {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::*"}},
    {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::*/key"}},
    {"ArnLike": {"aws:SourceArn": "arn:aws:sns:eu-west-1:*"}},
    {"ArnNotEquals": {"aws:SourceArn": USERS}},
    {"ArnLikeIfExists": {"aws:SourceArn": USERS}},
    {"StringEqualsIfExists": {"aws:SourceAccount": HERE}},
    {"StringEqualsIfExists": {"aws:PrincipalOrgID": ORG}},
    {"StringNotEquals": {"aws:SourceVpce": "vpce-1a2b3c4d"}},
    {"StringNotEqualsIgnoreCase": {"aws:PrincipalAccount": HERE}},
    {"StringNotLike": {"aws:PrincipalOrgID": ORG}},
    {"NotIpAddress": {"aws:SourceIp": "203.0.113.0/24"}},
    {"ForAnyValue:StringNotLike": {"aws:PrincipalOrgPaths": f"{ORG}/*"}},
    {"ForAllValues:StringLike": {"aws:PrincipalOrgPaths": f"{ORG}/*"}},
    {"ForAnyValue:StringLike": {"aws:PrincipalOrgPaths": "*/r-ab12/*"}},
    {"StringLike": {"aws:PrincipalOrgID": "o-*"}},
    {"StringLike": {"aws:SourceAccount": "1234*"}},
    {"StringLike": {"aws:SourceVpc": "vpc-*"}},
    {"StringLike": {"aws:userid": "*:session"}},
    {"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/deployer"}},
    {"IpAddress": {"aws:SourceIp": "0.0.0.0/0"}},
    {"IpAddress": {"aws:SourceIp": ["203.0.113.0/24", "::/0"]}},
    {"IpAddress": {"aws:SourceIp": "203.0.113.7/0"}},
    {"StringLike": {"aws:SourceIp": "203.*"}},
    {"IpAddress": {"aws:VpcSourceIp": "10.0.0.0/8"}},
    {"Null": {"aws:SourceArn": "false"}},
    {"Bool": {"aws:PrincipalIsAWSService": "true"}},
    {"StringEquals": {"aws:PrincipalTag/team": "shop"}},
    {"StringEquals": {"aws:username": "ada"}},
    {"StringEquals": {"aws:SourceAccount": "${aws:PrincipalAccount}"}},
    {"StringEquals": {"aws:SourceAccount": [HERE, "${aws:PrincipalAccount}"]}},
    {"DateGreaterThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}},
    {},
]


@pytest.mark.parametrize("principal", ["*", {"AWS": "*"}, {"AWS": [HERE, "*"]}, {"AWS": "*", "Service": "x"}], ids=str)
@pytest.mark.parametrize(
    ("condition", "expected"), [*((one, []) for one in LIMITING), *((one, ["s"]) for one in OPEN)], ids=str
)
def test_a_condition_limits_if_it_names_the_requests_account_organization_network_or_resource(
    condition: dict[str, object], expected: list[str], principal: object
) -> None:
    statement = {"Sid": "s", "Effect": "Allow", "Principal": principal, "Condition": condition}

    assert find_open_statements(policy(json.dumps(statement))) == expected


@pytest.mark.parametrize("principal", [{"AWS": HERE}, {"Service": "sns.amazonaws.com"}, {"AWS": [HERE]}, None, "x"])
def test_a_statement_for_certain_principals_is_not_open(principal: object) -> None:
    assert find_open_statements(policy(json.dumps({"Sid": "s", "Effect": "Allow", "Principal": principal}))) == []


@pytest.mark.parametrize("condition", [None, [], "x", {"StringEquals": None}, {"StringEquals": {"aws:SourceArn": []}}])
def test_a_condition_in_an_unexpected_form_is_survived(condition: object) -> None:
    find_open_statements(policy(json.dumps({"Effect": "Allow", "Principal": "*", "Condition": condition})))


def test_fault_10_the_statement_for_a_key_allows_only_these_topics_to_encrypt() -> None:
    needed = build_key_statement(QUEUE, [USERS])

    assert needed["Action"] == ["kms:GenerateDataKey*", "kms:Decrypt"]
    assert needed["Principal"] == {"Service": "sns.amazonaws.com"}
    assert needed["Condition"] == STALE["Condition"]
