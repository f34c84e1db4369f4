"""Payload offload, the claim check pattern: large bodies are stored in S3, and messages carry a pointer.

Source: Gregor Hohpe and Bobby Woolf, "Enterprise Integration Patterns", 2003, "Claim Check".
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smartpipe.envelope.body_encoding import BodyEncoding
from smartpipe.envelope.object_store import MemoryObjectStore, ObjectStore
from smartpipe.envelope.pointer import is_pointer, read_pointer
from smartpipe.envelope.trusted_locations import TrustedLocations
from smartpipe.errors import TransportError
from smartpipe.message import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from smartpipe.message import Attribute, OutgoingMessage, Payload


NOT_PUT = "PayloadNotPut"
MAX_REMEMBERED = 10_000


class PayloadOffload:
    """Writes payloads before their messages are sent, and reads them. Publishers and consumers of a process share it.

    The environment names the locations that bodies may be read from.

    Args:
        encoding: By default read from the environment.
    """

    def __init__(self, encoding: BodyEncoding | None = None) -> None:
        self.encoding = encoding or BodyEncoding.from_environment()
        self._trusted_locations = TrustedLocations.from_environment()
        self._stores: dict[str, ObjectStore] = {}
        self._written: dict[tuple[str, str], None] = {}  # so that a retry of a message does not write it again

    async def send(
        self,
        messages: Sequence[OutgoingMessage],
        send: Callable[[Sequence[OutgoingMessage]], Awaitable[list[Failure]]],
    ) -> list[Failure]:
        """Write the payloads of *messages*, then send the messages whose payloads are written.

        Returns:
            The failures of both steps, by position in *messages*.
        """
        if not any(message.payload for message in messages):
            return await send(messages)
        written, failed = split_failed(await asyncio.gather(*(self._put(message.payload) for message in messages)))
        refused = await send([messages[index] for index in written]) if written else []
        return [*failed, *reindex(refused, written)]

    async def fetch(self, body: str, attributes: Mapping[str, Attribute]) -> tuple[str, int]:
        """Return the payload that *body* points to, if *attributes* mark it as a pointer, or else *body*.

        The second value is the limit for its decompression, in bytes.

        Raises:
            DecodeError: The body is not a valid pointer, or points to a location that may not be read.
            PayloadError: The object does not exist.
            TransportError: S3 is unreachable at present.
        """
        if not is_pointer(attributes):
            return body, self.encoding.decompressed_limit_bytes
        limit_bytes = self.encoding.payload_limit_bytes
        payload = read_pointer(body)
        location = self._trusted_locations.location_of(payload)
        stored = payload._replace(owner=location.owner)
        return await self._store(location.scheme).get(stored, limit_bytes), limit_bytes

    async def aclose(self) -> None:
        """Release connections. A second call does nothing."""
        for store in self._stores.values():
            await store.aclose()

    async def _put(self, payload: Payload | None) -> TransportError | None:
        if payload is None or (payload.bucket, payload.key) in self._written:
            return None
        try:
            location = self.encoding.claim_check
            if payload.owner is None and location is not None and location.bucket == payload.bucket:
                payload = payload._replace(owner=location.owner)  # a row of the outbox lacks the owner
            await self._store("s3" if location is None else location.scheme).put(payload)
        except TransportError as error:
            return error
        self._written[payload.bucket, payload.key] = None
        if len(self._written) > MAX_REMEMBERED:
            del self._written[next(iter(self._written))]
        return None

    def _store(self, scheme: str) -> ObjectStore:
        if scheme not in self._stores:
            self._stores[scheme] = open_object_store(scheme)
        return self._stores[scheme]


def split_failed(errors: Sequence[TransportError | None]) -> tuple[list[int], list[Failure]]:
    """Return the positions of messages whose payload was written, and a failure for each of the others.

    Args:
        errors: For each message, the error from writing its payload, or None.
    """
    written = [index for index, error in enumerate(errors) if error is None]
    failed = [
        Failure(index, NOT_PUT, error.detail, error.retryable)
        for index, error in enumerate(errors)
        if error is not None
    ]
    return written, failed


def reindex(failures: Sequence[Failure], sent: Sequence[int]) -> list[Failure]:
    """Return *failures* with positions among all messages, instead of among those at the positions *sent*."""
    return [failure._replace(position=sent[failure.position]) for failure in failures]


def open_object_store(scheme: str) -> ObjectStore:
    """Return the store for *scheme*: ``s3`` or ``memory``. It connects on its first use.

    Raises:
        ConfigError: The environment's AWS settings are wrong.
    """
    if scheme == "memory":
        return MemoryObjectStore()
    from smartpipe.transports.aws.s3 import S3ObjectStore  # here, so that an AWS client is loaded only for S3

    return S3ObjectStore()
