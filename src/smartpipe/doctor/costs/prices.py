"""The list prices of AWS, as a dated table. Pure.

Source: the pricing pages of Amazon SQS, Amazon SNS, AWS KMS, Amazon S3, Amazon DynamoDB and Amazon CloudWatch, for the
region us-east-1, first tier, without the free tier.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from smartpipe.errors import ConfigError
from smartpipe.escaping import shorten_text

if TYPE_CHECKING:
    from collections.abc import Iterator

PRICE_DATE = "November 2026"
PRICE_REGION = "us-east-1"
MONTH_SECONDS = 2_592_000
"""A month of 30 days."""
CHUNK_BYTES = 65_536
"""SQS and SNS bill each 64 KiB of a request's payload as a request."""
GIB = 1_073_741_824
MAX_PRICE = 1_000_000
MAX_CHARACTERS = 100


@dataclass(frozen=True)
class Prices:
    """Prices in US dollars.

    Args:
        sqs_standard, sqs_fifo: A million requests.
        sns_standard, sns_fifo: A million publish requests.
        sns_fifo_gb: A GB that is published to a FIFO topic.
        sns_fifo_delivery, sns_fifo_delivery_gb: A million messages, and a GB, that a FIFO topic delivers to queues.
        sns_body_filter_gb: A GB of bodies that filter policies with the scope ``MessageBody`` read.
        kms_requests: A million requests.
        kms_key: A customer managed key for a month.
        s3_put, s3_get: A million requests.
        s3_gb: A GB for a month.
        dynamodb_write: A million write request units, on demand.
        dynamodb_gb: A GB for a month.
        alarm: A CloudWatch alarm with one metric and a period of at least 60 s, for a month.
    """

    sqs_standard: float = 0.40
    sqs_fifo: float = 0.50
    sns_standard: float = 0.50
    sns_fifo: float = 0.30
    sns_fifo_gb: float = 0.017
    sns_fifo_delivery: float = 0.01
    sns_fifo_delivery_gb: float = 0.001
    sns_body_filter_gb: float = 0.09
    kms_requests: float = 3.00
    kms_key: float = 1.00
    s3_put: float = 5.00
    s3_get: float = 0.40
    s3_gb: float = 0.023
    dynamodb_write: float = 0.625
    dynamodb_gb: float = 0.25
    alarm: float = 0.10


PRICES = Prices()


def read_prices(table: Any, where: str) -> Prices:
    """Return the prices, with those that *table* changes.

    Raises:
        ConfigError: With a sentence for each wrong entry.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is not a table: write {where[1:-1]}.sqs_standard = 0.42")
    errors = list(_find_errors(table, where))
    if errors:
        raise ConfigError(errors)
    return replace(PRICES, **{name: float(value) for name, value in table.items()})


def _find_errors(table: dict[str, Any], where: str) -> Iterator[str]:
    known = [one.name for one in fields(Prices)]
    for name, value in table.items():
        if name not in known:
            yield f"{where} {name} is not a price: use one of {', '.join(known)}"
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_PRICE:
            text = shorten_text(repr(value), MAX_CHARACTERS)
            yield f"{where} {name} = {text} is not a price: write US dollars, such as {getattr(PRICES, name)}"
