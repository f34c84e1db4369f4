"""The DynamoDB table of idempotency claims: what it has to be, and what one needs to be allowed. Pure."""

from __future__ import annotations

import re
from typing import Any

from smartpipe.errors import ConfigError

TTL_ATTRIBUTE = "expires_at"
"""For UpdateTimeToLive: epoch seconds, after which DynamoDB deletes the item, typically within a few days."""

KEY_ATTRIBUTE = "claim"
"""Tables of earlier versions have ``key``: their claims name no service and no queue, and are not mixed with ours."""
TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
"""https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html"""

USE_ACTIONS = ("dynamodb:DescribeTable", "dynamodb:UpdateItem", "dynamodb:DeleteItem")
"""What a worker needs on the table's ARN."""

REDRIVE_ACTIONS = ("dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:DeleteItem")
"""What ``dlq redrive`` needs on the table's ARN."""

CREATE_ACTIONS = (
    "dynamodb:CreateTable",
    "dynamodb:DescribeTable",
    "dynamodb:DescribeTimeToLive",
    "dynamodb:UpdateTimeToLive",
    "dynamodb:TagResource",
    "dynamodb:ListTagsOfResource",
)
"""What making it, and seeing whether it is as it should be, needs on the table's ARN."""


def table_in(url: str | None) -> str | None:
    """Return the table that a store's URL names; None where the store is another.

    Raises:
        ConfigError: It names none, or has a user: AWS takes credentials from its own variables only.
    """
    scheme, _, name = (url or "").partition("://")
    if scheme.lower() != "dynamodb":
        return None
    if not TABLE_NAME.fullmatch(name):
        raise ConfigError("SMARTPIPE_IDEMPOTENCY_URL: dynamodb:// must name a table, as in dynamodb://claims")
    return name


def claims_table(name: str) -> dict[str, Any]:
    """Return CreateTable's parameters: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_CreateTable.html."""
    return {
        "TableName": name,
        "AttributeDefinitions": [{"AttributeName": KEY_ATTRIBUTE, "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": KEY_ATTRIBUTE, "KeyType": "HASH"}],
        "BillingMode": "PAY_PER_REQUEST",
    }


def another_kind(
    name: str, key_schema: list[dict[str, Any]], definitions: list[dict[str, Any]] | None = None
) -> str | None:
    """Say what is wrong with the table called *name*, if it is not one of claims or an earlier version's."""
    wanted = claims_table(name)
    if key_schema == wanted["KeySchema"] and definitions in (None, wanted["AttributeDefinitions"]):
        return None
    remedy = "name another one in SMARTPIPE_IDEMPOTENCY_URL and run smartpipe topology apply"
    if key_schema == [{"AttributeName": "key", "KeyType": "HASH"}]:
        return (
            f"DynamoDB table {name!r} has claims of an earlier version. They name no service and no queue, so this "
            "version cannot use them: if one of their events is delivered again, its effect happens again. Stop the "
            f"workers, wait until their queues are empty, then {remedy}"
        )
    return f"DynamoDB table {name!r} is not one of claims: its key must be the string {KEY_ATTRIBUTE!r}; {remedy}"


def time_to_live(name: str) -> dict[str, Any]:
    """Return UpdateTimeToLive's parameters; it is called when the table is ACTIVE."""
    return {"TableName": name, "TimeToLiveSpecification": {"Enabled": True, "AttributeName": TTL_ATTRIBUTE}}
