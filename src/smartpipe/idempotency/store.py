"""Claims, which let a handler handle each event once, and the guarantees of the stores that keep them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from smartpipe.errors import ConfigError
from smartpipe.events import fields_of, key_error
from smartpipe.keys import compose, escape, shorten, typed_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.envelope.encode import Envelope
    from smartpipe.events import Event

MAX_KEY_LENGTH = 512
MAX_TTL_SECONDS = 31_536_000


class HandlerName(NamedTuple):
    """The full name of a handler. No other handler that uses the same store has the same name.

    Args:
        prefix: The environment's prefix (``SMARTPIPE_PREFIX``).
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
    """How duplicates of an event are recognized, and for how long.

    Args:
        key: The field whose value identifies duplicates, as in ``"order_id"``, or a tuple of fields, as in
            ``("tenant", "order_id")``. By default duplicates are recognized by the event's ``source`` and ``id``: every
            redelivery and every copy by SNS has the same, and no other event has. The same holds for an event one of
            whose fields is None or empty. Values of different types differ, such as 4711 and "4711".
        ttl_seconds: How long a handled event is remembered: 60 seconds to a year. A duplicate that arrives later is
            handled again. The default is three weeks. That is longer than a message can be redelivered: for the four
            days for which a queue keeps messages by default, and the 14 of its dead-letter queue.

    Raises:
        ConfigError: A value is out of range, or the key is neither a field nor a tuple of different fields.
    """

    key: str | tuple[str, ...] | None = None
    ttl_seconds: float = 1_814_400

    def __post_init__(self) -> None:
        """Check the values."""
        if error := key_error("Idempotency: key", self.key):
            raise ConfigError(error)
        if isinstance(self.key, tuple) and len(self.key) == 1:
            object.__setattr__(self, "key", self.key[0])
        if not 60 <= self.ttl_seconds <= MAX_TTL_SECONDS:  # noqa: PLR2004 - documented above
            msg = f"Idempotency: ttl_seconds={self.ttl_seconds} is outside of 60 to {MAX_TTL_SECONDS:,}, a year"
            raise ConfigError(msg)

    def key_of(self, handler: HandlerName, envelope: Envelope) -> str:
        """Return the key of the claim of *handler* on this event. A long key is replaced by its SHA-256."""
        event = None if self.key is None else _describe_values(envelope.data, fields_of(self.key))
        if event is None:
            event = f"id/{escape(envelope.source)}/{escape(envelope.id)}"
        return shorten(f"{_key_prefix(handler, envelope.type)}/{event}", MAX_KEY_LENGTH)


def _describe_values(data: Event, fields: Sequence[str]) -> str | None:
    """Return the fields and their values, each with its type, as the end of a key; None if a value is empty."""
    parts = ["key"]
    for field in fields:
        value = typed_text(getattr(data, field))
        if value is None:
            return None
        parts += escape(field), value[0], escape(value[1])
    return "/".join(parts)


@lru_cache(maxsize=1024)
def _key_prefix(handler: HandlerName, event_type: str) -> str:
    """Return the start of the keys of all claims of *handler* on events of this type.

    The number of a raw handler's type depends on the order of registration, so it is left out. No event type has one.
    """
    return compose("claim", *handler, event_type.partition("#")[0])


class Claim(NamedTuple):
    """A claim to handle one event with one handler.

    Args:
        key: The same in every delivery of the event to the handler. At most 512 characters.
        token: Identifies this claim and is never used again. The store ignores a holder whose token is not current.
        lease_seconds: How long the holder has the claim exclusively, unless the lease is renewed.
        ttl_seconds: How long it is remembered after its completion.
    """

    key: str
    token: str
    lease_seconds: float
    ttl_seconds: float


class Claimed(NamedTuple):
    """The claimant holds the claim now. *attempt* counts the claims of this key while the store remembers it."""

    attempt: int


class Completed(NamedTuple):
    """The event has been handled."""


class InProgress(NamedTuple):
    """Another holder has the claim, for *seconds* unless it renews the lease."""

    seconds: float


ClaimOutcome: TypeAlias = Claimed | Completed | InProgress

ClaimState: TypeAlias = Completed | InProgress | None
"""The state of a key in the store; None if it can be claimed."""


def claim_state(state: str, lease_left_seconds: float) -> ClaimState:
    """Return the state of a key whose record in the store has not expired."""
    if state == "completed":
        return Completed()
    return InProgress(lease_left_seconds) if state == "held" and lease_left_seconds > 0 else None


class Store(Protocol):
    """Stores claims by key. Each method takes many claims, if possible in one round trip to the server.

    A store must guarantee:

    - ``claim`` is atomic for each key among all processes: of concurrent claimants, one gets Claimed. If one call
      contains a key twice, the key is claimed in that order: the second claim sees the result of the first.
    - The store's own clock, if it has one, decides whether a lease or a record has expired.
    - ``claim`` with the token that already holds the key returns Claimed again, with the same attempt, because the
      first response may have been lost.
    - ``renew``, ``complete`` and ``release`` do nothing, and return False, for a token that no longer holds its key.
      They can be repeated if a response was lost: for a claim that this token has completed or released already, they
      return True. A completed claim is never released.
    - ``complete`` is remembered for ``ttl_seconds``. ``release`` frees the key immediately, and keeps the count of
      attempts for ``ttl_seconds``. So does a lease that expires.
    - Results are in the order of the claims, or keys. ``read`` changes nothing.
    - A store that is unreachable, or refuses a call, raises StoreError and no other exception.
    - A store with connections belongs to the process that uses it first. In a fork of it, calls raise ConfigError.
    """

    async def open(self) -> None:
        """Connect, and check that the table exists in the right version.

        Raises:
            ConfigError: The table does not exist, or is from another version. The error has the command that
                creates it.
            StoreError: The store is unreachable.
        """

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimOutcome]:
        """Claim the keys that are unknown or released, or whose lease has expired."""

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Renew each lease for ``lease_seconds`` from now."""

    async def complete(self, claims: Sequence[Claim]) -> list[bool]:
        """Mark each claim as completed: its event has been handled."""

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Release claims whose events were not handled, so that the next delivery can claim them immediately."""

    async def read(self, keys: Sequence[str]) -> list[ClaimState]:
        """Return the state of each key without claiming it. It may change at any time."""

    async def forget(self, keys: Sequence[str]) -> None:
        """Delete the records of these keys, held by any holder, before a deliberate replay."""

    async def aclose(self) -> None:
        """Disconnect. A second call does nothing."""
