"""Payload offload, the claim check pattern: large bodies are stored in S3, and messages carry a pointer.

Source: Gregor Hohpe and Bobby Woolf, "Enterprise Integration Patterns", 2003, "Claim Check".
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smartpipe.envelope.encoding import BodyEncoding
from smartpipe.envelope.object_store import MemoryObjectStore, ObjectStore
from smartpipe.envelope.pointer import is_pointer, payload_at
from smartpipe.envelope.trusted_locations import TrustedLocations
from smartpipe.errors import TransportError
from smartpipe.message import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from smartpipe.message import Attribute, OutgoingMessage, Payload


NOT_PUT = "PayloadNotPut"
MAX_REMEMBERED = 10_000


class PayloadOffload:
    """What a publisher and the consumers of a process share.

    Args:
        packing: By default as the environment says, which also says where bodies may be read from.
    """

    def __init__(self, packing: BodyEncoding | None = None) -> None:
        self.packing = packing or BodyEncoding.from_environment()
        self._readable = TrustedLocations.from_environment()
        self._objects: dict[str, ObjectStore] = {}
        self._put_before: dict[tuple[str, str], None] = {}  # lest each retry of the message puts it again

    async def send(
        self,
        messages: Sequence[OutgoingMessage],
        send: Callable[[Sequence[OutgoingMessage]], Awaitable[list[Failure]]],
    ) -> list[Failure]:
        """Put what *messages* point to, then send those whose payloads are there.

        Returns:
            What failed in either, by position among *messages*.
        """
        if not any(message.payload for message in messages):
            return await send(messages)
        going, failed = split_failed(await asyncio.gather(*(self._put(message.payload) for message in messages)))
        refused = await send([messages[index] for index in going]) if going else []
        return [*failed, *reindex(refused, going)]

    async def fetch(self, body: str, attributes: Mapping[str, Attribute]) -> tuple[str, int]:
        """Return the body that *attributes* say this one stands for, and to how many bytes it may be decompressed.

        Raises:
            DecodeError: It is not a pointer, though they say so; or it points to where nothing may be read.
            PayloadError: The object does not exist.
            TransportError: S3 cannot be asked for now.
        """
        if not is_pointer(attributes):
            return body, self.packing.decompressed_limit_bytes
        limit_bytes = self.packing.payload_limit_bytes
        payload = payload_at(body)
        location = self._readable.location_of(payload)
        stored = payload._replace(owner=location.owner)
        return await self._open(location.scheme).get(stored, limit_bytes), limit_bytes

    async def aclose(self) -> None:
        """Release connections. A second call does nothing."""
        for objects in self._objects.values():
            await objects.aclose()

    async def _put(self, payload: Payload | None) -> TransportError | None:
        if payload is None or (payload.bucket, payload.key) in self._put_before:
            return None
        try:
            at = self.packing.claim_check
            if payload.owner is None and at is not None and at.bucket == payload.bucket:
                payload = payload._replace(owner=at.owner)  # a row of the outbox does not say it
            await self._open("s3" if at is None else at.scheme).put(payload)
        except TransportError as error:
            return error
        self._put_before[payload.bucket, payload.key] = None
        if len(self._put_before) > MAX_REMEMBERED:
            del self._put_before[next(iter(self._put_before))]
        return None

    def _open(self, scheme: str) -> ObjectStore:
        if scheme not in self._objects:
            self._objects[scheme] = open_object_store(scheme)
        return self._objects[scheme]


def split_failed(faults: Sequence[TransportError | None]) -> tuple[list[int], list[Failure]]:
    """Return which messages may go, and which not, from what went wrong with putting the payload of each."""
    going = [index for index, fault in enumerate(faults) if fault is None]
    failed = [
        Failure(index, NOT_PUT, fault.detail, fault.retryable)
        for index, fault in enumerate(faults)
        if fault is not None
    ]
    return going, failed


def reindex(failures: Sequence[Failure], going: Sequence[int]) -> list[Failure]:
    """Return *failures* of those that went, by their positions among all."""
    return [failure._replace(position=going[failure.position]) for failure in failures]


def open_object_store(scheme: str) -> ObjectStore:
    """Return the store for *scheme*: ``s3`` or ``memory``. It connects on its first use.

    Raises:
        ConfigError: The environment's AWS settings are faulty.
    """
    if scheme == "memory":
        return MemoryObjectStore()
    from smartpipe.transports.aws.s3 import S3ObjectStore  # so that only those who use S3 load an AWS client

    return S3ObjectStore()
