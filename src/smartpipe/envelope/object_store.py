"""The interface of stores for payloads, and a store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from smartpipe.errors import PayloadError

if TYPE_CHECKING:
    from smartpipe.message import Payload


class ObjectStore(Protocol):
    """A store of objects by bucket and key. It may be called concurrently, from the event loop that first used it."""

    async def put(self, payload: Payload) -> None:
        """Write ``payload.text``, and overwrite an existing object.

        Raises:
            TransportError: The write failed; ``retryable`` says whether it can succeed later.
        """

    async def get(self, payload: Payload, limit_bytes: int) -> str:
        """Return the text of the object.

        Raises:
            PayloadError: The object does not exist, may not be read, is longer than *limit_bytes* or is not text, or
                the store refuses the read and will refuse it again.
            TransportError: The store is unreachable at present.
        """

    async def aclose(self) -> None:
        """Release connections. A second call does nothing."""


_objects: dict[tuple[str, str], str] = {}


class MemoryObjectStore:
    """Objects in the memory of this process, which all instances share."""

    async def put(self, payload: Payload) -> None:
        """Write the object."""
        put_in_memory(payload)

    async def get(self, payload: Payload, limit_bytes: int) -> str:
        """Return the text of the object."""
        text = get_from_memory(payload)
        if len(text.encode()) > limit_bytes:
            raise payload_too_long(payload, limit_bytes)
        return text

    async def aclose(self) -> None:
        """Do nothing: other instances share the objects."""


def put_in_memory(payload: Payload) -> None:
    """Write *payload* into the memory of this process. The blocking publisher calls this too."""
    _objects[payload.bucket, payload.key] = payload.text


def get_from_memory(payload: Payload) -> str:
    """Return the text of the object in the memory of this process.

    Raises:
        PayloadError: The object does not exist.
    """
    try:
        return _objects[payload.bucket, payload.key]
    except KeyError:
        raise payload_missing(payload, "there is no such object in this process's memory") from None


def payload_missing(payload: Payload, reason: str) -> PayloadError:
    """Return the error for a payload that cannot be read."""
    detail = f"the body at {payload.url} cannot be read: {reason}"
    return PayloadError("payload-missing", detail)


def payload_too_long(payload: Payload, limit_bytes: int) -> PayloadError:
    """Return the error for a payload above this worker's limit."""
    return payload_missing(
        payload, f"it is longer than {limit_bytes:,} bytes, the limit set by SMARTPIPE_PAYLOAD_LIMIT_BYTES"
    )
