"""Calls of AWS for the topology: retried while AWS throttles them, with the refused permissions collected."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, TypeVar

from smartpipe.batching.resend import retry
from smartpipe.errors import TransportError
from smartpipe.names import name_in
from smartpipe.topology.resources import Denial, describe_denials
from smartpipe.transports.aws.errors import MISSING, classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from smartpipe.topology.changes import Change
    from smartpipe.transports.aws.session import AwsSession

K = TypeVar("K")
T = TypeVar("T")

MAX_CALLS = 8
"""The number of concurrent calls. SNS throttles ListSubscriptionsByTopic at 30 a second for each account."""
RETRY_SECONDS = 10.0

_REFUSED_ACTION = re.compile(r"not authorized to perform: (\w+:\w+)")
# Service Authorization Reference, Amazon SNS: these have no resource types.
_WITHOUT_RESOURCE = frozenset({"GetSubscriptionAttributes", "SetSubscriptionAttributes", "Unsubscribe"})


class Denied(TransportError):
    """IAM refused calls; ``denials`` names them."""

    def __init__(self, denials: Iterable[Denial]) -> None:
        self.denials = tuple(denials)
        super().__init__("AccessDenied", "\n".join(describe_denials(self.denials)), retryable=False)


class Reading:
    """Reads resources: at most eight calls at once, refused calls collected, so that all are reported together.

    Args:
        with_tags: Whether to read the tags of resources too.

    Attributes:
        denials: The calls that IAM refused.
        notes: Sentences about resources that could not be read, which are not errors.
    """

    def __init__(self, session: AwsSession, *, with_tags: bool = True) -> None:
        self.session = session
        self.with_tags = with_tags
        self.denials: list[Denial] = []
        self.notes: list[str] = []
        self._limit = asyncio.Semaphore(MAX_CALLS)

    async def call(
        self, call: Callable[[], Awaitable[Any]], action: str, resource: str, *, invalid_is_missing: bool = False
    ) -> Any:
        """Return the response, or None if the resource does not exist or IAM refuses the call.

        Args:
            action: The IAM action of the call.
            resource: The ARN of the resource, or ``*``.
            invalid_is_missing: Whether ``InvalidParameter`` means that the resource does not exist.

        Raises:
            TransportError: The call failed for another reason.
        """
        try:
            async with self._limit:
                return await call_with_retries(call, action, name_in(resource))
        except TransportError as error:
            if error.code == "AccessDenied":
                self.denials.append(Denial(action, resource, error.detail))
                return None
            if error.code in MISSING or (invalid_is_missing and error.code == "InvalidParameter"):
                return None
            raise

    async def each(self, keys: Iterable[K], read: Callable[[K], Awaitable[T | None]]) -> dict[K, T]:
        """Call *read* with all keys concurrently, and return the resources that exist."""

        async def read_one(key: K) -> tuple[K, T | None]:
            return key, await read(key)

        found = await asyncio.gather(*map(read_one, dict.fromkeys(keys)))
        return {key: value for key, value in found if value is not None}

    def turn_denials_into_note(self, arn: str, consequence: str) -> bool:
        """Replace the denials for *arn* by a note; return whether there were any."""
        denials = [denial for denial in self.denials if denial.resource == arn]
        self.denials = [denial for denial in self.denials if denial.resource != arn]
        if denials:
            self.notes.append(f"{arn} {consequence} ({denials[0].action})")
        return bool(denials)

    def raise_if_denied(self) -> None:
        """Raise Denied if IAM refused a call."""
        if self.denials:
            raise Denied(self.denials)


async def call_with_retries(call: Callable[[], Awaitable[Any]], action: str, target: str) -> Any:
    """Call, and call again for up to ten seconds while AWS throttles the call or fails.

    Raises:
        TransportError: The error of the last attempt.
    """

    async def call_classified() -> Any:
        try:
            return await call()
        except Exception as error:
            raise classify(error, action=action, target=target) from error

    return await retry(call_classified, deadline_seconds=RETRY_SECONDS)


async def call_for(change: Change, call: Awaitable[Any], action: str) -> Any:
    """Make one call that carries out *change*, without retries.

    Args:
        action: The IAM action of the call. If AWS's error names another one, that one is reported, because a call may
            need several.

    Raises:
        Denied: IAM refused the call.
        TransportError: The call failed for another reason.
    """
    try:
        return await call
    except Exception as error:
        classified = classify(error, action=action, target=f"{change.kind} {change.name}")
        if classified.code != "AccessDenied":
            raise classified from error
        refused = _REFUSED_ACTION.search(classified.detail)
        action = refused[1] if refused else action
        resource = "*" if action.partition(":")[2] in _WITHOUT_RESOURCE else change.arns[0]
        raise Denied([Denial(action, resource, classified.detail)]) from error


def to_tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return tags as most APIs of AWS accept them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def from_tag_list(tags: Iterable[dict[str, str]]) -> dict[str, str]:
    """Return the tags of a response by their keys."""
    return {one["Key"]: one["Value"] for one in tags}
