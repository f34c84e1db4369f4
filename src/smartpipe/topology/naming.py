"""Physical names and ARNs. Pure: an environment's four words make every address."""

from __future__ import annotations

from typing import NamedTuple


class Naming(NamedTuple):
    """The words that an environment's names are made of.

    Args:
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
        account_id: Twelve digits.
        prefix: Goes before every name, as in ``staging-``.
    """

    partition: str
    region: str
    account_id: str
    prefix: str = ""

    def physical(self, name: str) -> str:
        """Return the name that AWS knows."""
        return self.prefix + name

    def topic_arn(self, name: str) -> str:
        """Return the ARN of the topic declared as *name*."""
        return f"arn:{self.partition}:sns:{self.region}:{self.account_id}:{self.physical(name)}"

    def queue_arn(self, name: str) -> str:
        """Return the ARN of the queue declared as *name*."""
        return f"arn:{self.partition}:sqs:{self.region}:{self.account_id}:{self.physical(name)}"


def name_in(arn: str) -> str:
    """Return the physical name at the end of *arn*."""
    return arn.rpartition(":")[2]
