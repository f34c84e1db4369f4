"""Claims: how a handler's effect happens once, and what a store of them must guarantee."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from smartpipe.errors import ConfigError
from smartpipe.keys import compose, escape, shorten, typed_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.envelope.encode import Envelope

MAX_KEY_LENGTH = 512
MAX_TTL_SECONDS = 31_536_000


class HandlerName(NamedTuple):
    """The full name of a handler: no other handler that claims in the same store has it.

    Args:
        prefix: The environment's (``SMARTPIPE_PREFIX``).
        service: The service's name.
        queue: The logical name of its queue, or the ARN.
        function: Module and qualified name of the function.
    """

    prefix: str
    service: str
    queue: str
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """How the deliveries of one effect are known, and for how long it is remembered.

    Args:
        key: The event's field whose value names the effect, as in ``"order_id"``; by default the event's own
            ``source`` and ``id``, which every redelivery and every copy by SNS has, but no second event.
            An event whose field is None or empty is known by its ``source`` and ``id``. Values of different types
            are different, such as 4711 and "4711".
        ttl_seconds: A copy that comes later runs again: 60 to a year. Default a week: longer than the four days
            that a queue keeps messages by default.

    Raises:
        ConfigError: A value outside its range.
    """

    key: str | None = None
    ttl_seconds: float = 604_800

    def __post_init__(self) -> None:
        """Check the range."""
        if not 60 <= self.ttl_seconds <= MAX_TTL_SECONDS:  # noqa: PLR2004 - said above
            msg = f"Idempotency: ttl_seconds={self.ttl_seconds} is outside of 60 to {MAX_TTL_SECONDS:,}, a year"
            raise ConfigError(msg)

    def key_of(self, handler: HandlerName, envelope: Envelope) -> str:
        """Return the key of the effect of *handler* on this event; a long one by its SHA-256."""
        value = None if self.key is None else typed_text(getattr(envelope.data, self.key))
        if self.key is None or value is None:
            effect = f"id/{escape(envelope.source)}/{escape(envelope.id)}"
        else:
            effect = f"key/{escape(self.key)}/{value[0]}/{escape(value[1])}"
        return shorten(f"{_claims_of(handler, envelope.type)}/{effect}", MAX_KEY_LENGTH)


@lru_cache(maxsize=1024)
def _claims_of(handler: HandlerName, event_type: str) -> str:
    """Return the start of the keys of all effects of *handler* on events of this type."""
    return compose("claim", *handler, event_type)


class Claim(NamedTuple):
    """The wish to handle one event with one handler, or its holder's word on it.

    Args:
        key: Of the effect: the same in every delivery of the event to the handler. At most 512 characters.
        token: Of this very claim, never used again: whoever does not hold it any more is fenced off by it.
        lease_seconds: For how long it is this holder's alone, unless renewed.
        ttl_seconds: For how long after its completion it is remembered.
    """

    key: str
    token: str
    lease_seconds: float
    ttl_seconds: float


class Claimed(NamedTuple):
    """It is the claimant's now; *attempt* counts the claims of this key, this one included, since it was unknown."""

    attempt: int


class Completed(NamedTuple):
    """The effect has happened, and is remembered."""


class InProgress(NamedTuple):
    """Somebody else holds it, for *seconds* unless they renew it."""

    seconds: float


ClaimOutcome: TypeAlias = Claimed | Completed | InProgress

Known: TypeAlias = Completed | InProgress | None
"""What is known of a key that nobody claims right now; None: whoever claims it, gets it."""


def known(state: str, lease_left_seconds: float) -> Known:
    """Return what a record in *state*, whose memory has not run out, says of its key."""
    if state == "completed":
        return Completed()
    return InProgress(lease_left_seconds) if state == "held" and lease_left_seconds > 0 else None


class Store(Protocol):
    """Remembers claims by key. Every verb takes many and makes, where the store can, one round trip.

    A store must guarantee:

    - ``claim`` is atomic for each key, among all processes: of claimants at once one is told Claimed. A key that
      stands twice in one call is claimed in its order: the second sees the first.
    - Whether a lease or a memory has run out is judged by the store's own clock, where it has one.
    - ``claim`` with the token that holds the key already says Claimed again, with the same attempt: an answer was lost.
    - ``renew``, ``complete`` and ``release`` do nothing, and say False, for a token that does not hold its key
      any more. They may be repeated after a lost answer: what this token has completed or released already, says True,
      and what is completed is never released.
    - ``complete`` is remembered for ``ttl_seconds``. ``release`` frees the key at once, and keeps the count of attempts
      for ``ttl_seconds``; so does a lease that runs out.
    - Outcomes are in the order of the claims, or keys. ``look`` changes nothing.
    - A store that cannot be reached, or refuses, raises StoreError, and nothing else.
    """

    async def open(self) -> None:
        """Connect, and check that the table is there as it should be.

        Raises:
            ConfigError: It is not there, or another version's: with the command that makes it.
            StoreError: It cannot be asked.
        """

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim what is unknown, released, or whose lease has run out."""

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Let each lease last ``lease_seconds`` from now."""

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Say that each effect has happened."""

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Give back what did not succeed: the next delivery may claim it at once."""

    async def look(self, keys: Sequence[str]) -> list[Known]:
        """Say what ``claim`` would find, without claiming: by the time it is read it may be so no more."""

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove all memory of these keys, whoever holds them: before a deliberate replay."""

    async def aclose(self) -> None:
        """Disconnect. A second call does nothing."""
