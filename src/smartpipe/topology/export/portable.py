"""A topology without an account and a region, for templates that can be deployed anywhere. Pure."""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from smartpipe.names import Naming, name_in, partition_in, region_in
from smartpipe.topology.policy import source_topics
from smartpipe.topology.regions import ENABLED_BY_DEFAULT, LISTED_TWICE, is_opt_in, sns_principals

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from smartpipe.topology.resources import Topology

    K = TypeVar("K", bound=Hashable)

REGION = "this-region"
ACCOUNT = "this-account"
"""Placeholders that no real ARN contains. They are about as long as real ones, because the length of a policy decides
its form."""
_ARN = re.compile(rf"arn:aws:([a-z0-9]+):{REGION}:{ACCOUNT}:")
_INTEGERS = frozenset({"DelaySeconds", "MaximumMessageSize", "MessageRetentionPeriod", "VisibilityTimeout"})
_BOOLEANS = frozenset({"FifoQueue", "FifoTopic", "RawMessageDelivery", "SqsManagedSseEnabled"})


def portable_naming(prefix: str, application: str) -> Naming:
    """Return a naming with placeholders for the account and the region."""
    return Naming("aws", REGION, ACCOUNT, prefix, application)


class Principals(NamedTuple):
    """The service principals that a queue's policy has to allow, by the region in which a template is deployed.

    Args:
        topics: The regions of the topics; REGION for topics of the template itself.
        within: The principals in regions that need their own, by region.
        by_default: The principals in the other regions that are enabled by default.
        opt_in: The principals in the other opt-in regions; REGION is the placeholder for the region's name.
    """

    topics: tuple[str, ...]
    within: dict[str, list[str]]
    by_default: list[str]
    opt_in: list[str]


def principals_of(statement: Mapping[str, Any]) -> Principals | None:
    """Return the principals of a queue's *statement*; None if they are the same in every region."""
    topics = source_topics(statement)
    regions = sorted({region_in(arn) for arn in topics if partition_in(arn) == "aws"})
    external = [one for one in regions if one != REGION]

    def find_principals(region: str) -> list[str]:
        return sns_principals([arn.replace(f":{REGION}:", f":{region}:") for arn in topics], region)

    special = dict.fromkeys([*external, *LISTED_TWICE])
    by_default = find_principals(next(region for region in ENABLED_BY_DEFAULT if region not in special))
    opt_in = find_principals(REGION)
    within = {region: find_principals(region) for region in special}
    within = {one: allowed for one, allowed in within.items() if allowed != (opt_in if is_opt_in(one) else by_default)}
    return Principals(tuple(regions), within, by_default, opt_in) if within or by_default != opt_in else None


def rewrite(value: Any, change: Callable[[str], Any]) -> Any:
    """Return *value* with *change* applied to every text in it, except keys."""
    if isinstance(value, dict):
        return {name: rewrite(one, change) for name, one in value.items()}
    if isinstance(value, list):
        return [rewrite(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


def replace_placeholders(text: str, arn: str, account: str) -> str:
    r"""Return *text* with the placeholders replaced.

    Args:
        arn: The replacement for an ARN up to its name, with ``\1`` for the service.
        account: The replacement for an account that is not part of an ARN.
    """
    return account if text == ACCOUNT else _ARN.sub(arn, text)


def convert(name: str, value: Any) -> Any:
    """Return an attribute's value with the type that templates need; SQS and SNS use text for numbers and booleans."""
    if name in _INTEGERS:
        return int(value)
    return value == "true" if name in _BOOLEANS else value


def created_names(topology: Topology, prefix: str) -> dict[str, str]:
    """Return the names, without the prefix, of the topics and queues that the topology creates, by ARN."""
    created = [arn for arn in (*topology.topics, *topology.queues) if arn not in topology.external]
    return {arn: name_in(arn).removeprefix(prefix) for arn in created}


def make_unique(wanted: Mapping[K, str], *, longest: int = 255) -> dict[K, str]:
    """Return the wanted id of each key; with a hash at its end if two keys want the same id or if it is too long."""
    times = Counter(wanted.values())
    return {
        key: one if times[one] == 1 and len(one) <= longest else f"{one[: longest - 8]}{_hash(key)}"
        for key, one in wanted.items()
    }


def _hash(key: Hashable) -> str:
    return sha256(repr(key).encode()).hexdigest()[:8]
