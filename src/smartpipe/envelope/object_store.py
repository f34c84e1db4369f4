"""Where payloads are kept: what it has to do, and the one in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from smartpipe.errors import PayloadError

if TYPE_CHECKING:
    from smartpipe.message import Payload


class ObjectStore(Protocol):
    """A store of objects by bucket and key. It may be called concurrently, from the loop that first used it."""

    async def put(self, payload: Payload) -> None:
        """Write ``payload.text``, over what is there.

        Raises:
            TransportError: It could not be written; ``retryable`` says whether it can be later.
        """

    async def get(self, payload: Payload, limit_bytes: int) -> str:
        """Return the text that is there.

        Raises:
            PayloadError: It is not there, may not be read, is longer than *limit_bytes*, is not text, or the store
                refuses it in a way that it will repeat.
            TransportError: The store cannot be asked for now.
        """

    async def aclose(self) -> None:
        """Release connections. A second call does nothing."""


_kept: dict[tuple[str, str], str] = {}


class MemoryObjectStore:
    """Objects of this process; every one of this class sees the same."""

    async def put(self, payload: Payload) -> None:
        """Write it."""
        put_in_memory(payload)

    async def get(self, payload: Payload, limit_bytes: int) -> str:
        """Return it."""
        text = get_from_memory(payload)
        if len(text.encode()) > limit_bytes:
            raise payload_too_long(payload, limit_bytes)
        return text

    async def aclose(self) -> None:
        """Keep what is there, for the others."""


def put_in_memory(payload: Payload) -> None:
    """Write *payload* into this process's memory; so does the blocking publisher."""
    _kept[payload.bucket, payload.key] = payload.text


def get_from_memory(payload: Payload) -> str:
    """Return what was written there.

    Raises:
        PayloadError: Nothing was.
    """
    try:
        return _kept[payload.bucket, payload.key]
    except KeyError:
        raise payload_missing(payload, "there is no such object in this process's memory") from None


def payload_missing(payload: Payload, reason: str) -> PayloadError:
    """Say that the body is not to be had."""
    detail = f"the body at {payload.url} cannot be read: {reason}"
    return PayloadError("payload-missing", detail)


def payload_too_long(payload: Payload, limit_bytes: int) -> PayloadError:
    """Say that the body is longer than this worker reads."""
    return payload_missing(
        payload, f"it is longer than {limit_bytes:,} bytes, which SMARTPIPE_PAYLOAD_LIMIT_BYTES sets"
    )
