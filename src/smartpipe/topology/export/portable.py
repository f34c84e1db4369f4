"""A topology of no account and no region yet: templates say where each ARN will come from. Pure."""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from smartpipe.topology.naming import Naming, name_in

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


def rewritten(value: Any, change: Callable[[str], Any]) -> Any:
    """Return *value* with every text in it, but for keys, changed."""
    if isinstance(value, dict):
        return {name: rewritten(one, change) for name, one in value.items()}
    if isinstance(value, list):
        return [rewritten(one, change) for one in value]
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
    created = [arn for arn in (*topology.topics, *topology.queues) if arn not in topology.given]
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
