"""What requests cost on AWS. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.bench.counting import BILLED_BYTES

if TYPE_CHECKING:
    from smartpipe.bench.counting import Requests
    from smartpipe.bench.load import Load

MILLION = 1_000_000
PRICES = "us-east-1, standard topics and queues, list prices of November 2026, without the free tier"
"""https://aws.amazon.com/sns/pricing and https://aws.amazon.com/sqs/pricing; SNS delivers to SQS for nothing."""
SNS_DOLLARS_PER_MILLION = 0.50
SQS_DOLLARS_PER_MILLION = 0.40


class Cost(NamedTuple):
    """In US dollars."""

    sns: float
    sqs: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.sns + self.sqs

    def times(self, factor: float) -> Cost:
        """Return so many times of it."""
        return Cost(self.sns * factor, self.sqs * factor)


def cost(requests: Requests) -> Cost:
    """Return what AWS would bill for requests that were counted: publishing is SNS's, all else SQS's.

    Not in it: KMS, data that leaves the region, S3 of large bodies.
    """
    sns = requests["publish"].billed if "publish" in requests else 0
    sqs = sum(calls.billed for verb, calls in requests.items() if verb != "publish")
    return Cost(sns * SNS_DOLLARS_PER_MILLION / MILLION, sqs * SQS_DOLLARS_PER_MILLION / MILLION)


def at_most(load: Load) -> Cost:
    """Return what a run can cost: every message in requests of its own, received and deleted once by each queue."""
    count = load.events + load.warmup
    billed = max(1, math.ceil(load.size_bytes / BILLED_BYTES))
    sqs = count * load.queues * (billed + 1)
    return Cost(count * billed * SNS_DOLLARS_PER_MILLION / MILLION, sqs * SQS_DOLLARS_PER_MILLION / MILLION)
