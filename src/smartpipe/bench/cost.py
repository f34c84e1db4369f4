"""The cost of requests on AWS. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.bench.counting import BILLED_BYTES
from smartpipe.doctor.costs.prices import PRICE_DATE, PRICE_REGION, PRICES

if TYPE_CHECKING:
    from smartpipe.bench.counting import Requests
    from smartpipe.bench.load import Load

MILLION = 1_000_000
PRICES_TEXT = f"{PRICE_REGION}, standard topics and queues, list prices of {PRICE_DATE}, without the free tier"


class Cost(NamedTuple):
    """A cost in US dollars."""

    sns: float
    sqs: float

    @property
    def total(self) -> float:
        """The sum of both services."""
        return self.sns + self.sqs

    def multiply(self, factor: float) -> Cost:
        """Return the cost multiplied by *factor*."""
        return Cost(self.sns * factor, self.sqs * factor)


def cost_of(requests: Requests) -> Cost:
    """Return the cost of the counted requests: SNS bills publishing, and SQS bills everything else.

    It does not include KMS, data that leaves the region, or S3 for large bodies.
    """
    sns = requests["publish"].billed if "publish" in requests else 0
    sqs = sum(calls.billed for verb, calls in requests.items() if verb != "publish")
    return Cost(sns * PRICES.sns_standard / MILLION, sqs * PRICES.sqs_standard / MILLION)


def max_cost_of(load: Load) -> Cost:
    """Return the highest cost of a run: separate requests for each message, received and deleted once by each queue."""
    count = load.events + load.warmup
    billed = math.ceil(load.size_bytes / BILLED_BYTES)
    sqs = count * load.queues * (billed + 1)
    return Cost(count * billed * PRICES.sns_standard / MILLION, sqs * PRICES.sqs_standard / MILLION)
