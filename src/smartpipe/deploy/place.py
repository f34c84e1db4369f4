"""The place of the queues on AWS, and their addresses in it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from smartpipe.names import account_in, is_arn, name_in, physical_name, region_in

_PARTITIONS = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}


class Place(NamedTuple):
    """The place of the queues on AWS.

    Args:
        prefix: The prefix of their names.
        account_id: None if it is not known.
    """

    region: str
    prefix: str = ""
    account_id: str | None = None

    def locate(self, queue: str) -> str:
        """Return the URL of a queue with this logical name or ARN, or its name if the account is not known."""
        if is_arn(queue):
            region, account_id, name = region_in(queue), account_in(queue), name_in(queue)
        elif self.account_id is None:
            return physical_name(self.prefix, queue)
        else:
            region, account_id, name = self.region, self.account_id, physical_name(self.prefix, queue)
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return f"https://sqs.{region}.{domain}/{account_id}/{name}"


def find_partition(region: str) -> str:
    """Return the partition of a region."""
    return next((one for start, one in _PARTITIONS.items() if region.startswith(start)), "aws")
