"""A topology of no account and no region yet: templates say where each ARN will come from. Pure."""

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
"""Stand-ins that no real ARN has, about as long as the real ones: a policy's length decides on its form."""
_ARN = re.compile(rf"arn:aws:(sns|sqs):{REGION}:{ACCOUNT}:")
_INTEGERS = frozenset({"DelaySeconds", "MaximumMessageSize", "MessageRetentionPeriod", "VisibilityTimeout"})
_BOOLEANS = frozenset({"FifoQueue", "FifoTopic", "RawMessageDelivery", "SqsManagedSseEnabled"})


def portable(prefix: str, application: str) -> Naming:
    """Return the naming of an account and a region that a template's user will choose."""
    return Naming("aws", REGION, ACCOUNT, prefix, application)


class Principals(NamedTuple):
    """Whom a queue's policy has to let in, by the region that a template is deployed in.

    Args:
        topics: The regions of the topics, REGION for those of the template itself.
        within: The region is one of these, each of which makes a difference of its own.
        by_default: The region is another one that is enabled by default.
        opt_in: The region is another opt-in region; REGION stands for its name.
    """

    topics: tuple[str, ...]
    within: dict[str, list[str]]
    by_default: list[str]
    opt_in: list[str]


def principals_of(statement: Mapping[str, Any]) -> Principals | None:
    """Return the principals of a queue's *statement*; None if they are the same in every region."""
    topics = source_topics(statement)
    regions = sorted({region_in(arn) for arn in topics if partition_in(arn) == "aws"})
    theirs = [one for one in regions if one != REGION]

    def found(region: str) -> list[str]:
        return sns_principals([arn.replace(f":{REGION}:", f":{region}:") for arn in topics], region)

    special = dict.fromkeys([*theirs, *LISTED_TWICE])
    by_default = found(next(region for region in ENABLED_BY_DEFAULT if region not in special))
    opt_in = found(REGION)
    within = {region: found(region) for region in special}
    within = {one: let_in for one, let_in in within.items() if let_in != (opt_in if is_opt_in(one) else by_default)}
    return Principals(tuple(regions), within, by_default, opt_in) if within or by_default != opt_in else None


def rewrite(value: Any, change: Callable[[str], Any]) -> Any:
    """Return *value* with every text in it, but for keys, changed."""
    if isinstance(value, dict):
        return {name: rewrite(one, change) for name, one in value.items()}
    if isinstance(value, list):
        return [rewrite(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


def with_tokens(text: str, arn: str, account: str) -> str:
    r"""Return *text* with the stand-ins replaced.

    Args:
        arn: The beginning of an ARN up to the name, with ``\1`` for the service.
        account: What stands for the account where it stands by itself.
    """
    return account if text == ACCOUNT else _ARN.sub(arn, text)


def typed(name: str, value: Any) -> Any:
    """Return an attribute's value as templates have it: SQS and SNS take numbers and booleans as text."""
    if name in _INTEGERS:
        return int(value)
    return value == "true" if name in _BOOLEANS else value


def declared_names(topology: Topology, prefix: str) -> dict[str, str]:
    """Return the names, without the prefix, of all topics and queues that the topology creates, by ARN."""
    created = [arn for arn in (*topology.topics, *topology.queues) if arn not in topology.external]
    return {arn: name_in(arn).removeprefix(prefix) for arn in created}


def unique(wanted: Mapping[K, str], *, longest: int = 255) -> dict[K, str]:
    """Give each key the id that it wants; where two want the same, or it is too long, with a hash behind it."""
    times = Counter(wanted.values())
    return {
        key: one if times[one] == 1 and len(one) <= longest else f"{one[: longest - 8]}{_hash(key)}"
        for key, one in wanted.items()
    }


def _hash(key: Hashable) -> str:
    return sha256(repr(key).encode()).hexdigest()[:8]
