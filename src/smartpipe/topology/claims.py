"""The DynamoDB table of idempotency claims: what it has to be, and what one needs to be allowed. Pure."""

from __future__ import annotations

from typing import Any

TTL_ATTRIBUTE = "expires_at"
"""For UpdateTimeToLive: epoch seconds, after which DynamoDB deletes the item, typically within a few days."""

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
    """Return the table that a store's URL names; None where the store is another."""
    scheme, _, name = (url or "").partition("://")
    return name if scheme.lower() == "dynamodb" else None


def claims_table(name: str) -> dict[str, Any]:
    """Return CreateTable's parameters: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_CreateTable.html."""
    return {
        "TableName": name,
        "AttributeDefinitions": [{"AttributeName": "key", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "key", "KeyType": "HASH"}],
        "BillingMode": "PAY_PER_REQUEST",
    }


def time_to_live(name: str) -> dict[str, Any]:
    """Return UpdateTimeToLive's parameters; it is called when the table is ACTIVE."""
    return {"TableName": name, "TimeToLiveSpecification": {"Enabled": True, "AttributeName": TTL_ATTRIBUTE}}
