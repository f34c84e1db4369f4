"""From a message to its envelope: fetched from S3, decompressed, taken out of SNS's own envelope, decoded."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache, partial
from os import register_at_fork
from typing import TYPE_CHECKING, TypeVar

from smartpipe.envelope.compression import ENCODING_ATTRIBUTE
from smartpipe.envelope.decode import EncodedBody, UndecidedUnions, decoder_of
from smartpipe.envelope.encoding import decompress_body, is_encoded
from smartpipe.envelope.structure import is_simple
from smartpipe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smartpipe.envelope.encode import Envelope
    from smartpipe.events import Event
    from smartpipe.message import Message
    from smartpipe.payload_offload import PayloadOffload

T = TypeVar("T")

SMALL_CHARACTERS = 4_096
INLINE_CHARACTERS = 65_536
INLINE_OBJECTS = 1_000
"""Longer bodies, and those above 4,096 characters with more objects and arrays, are decoded in a thread. A model with
Python validators takes 16 µs, so the event loop waits for some 20 ms at most."""


class MessageReader:
    """Reads the messages of one queue.

    A body that is large or compressed is decoded in a thread, one at a time in a process, so that heartbeats go on and
    the memory for it is needed once.

    Args:
        events: At most one class for each type and major version.
    """

    def __init__(self, events: Iterable[type[Event]], payloads: PayloadOffload) -> None:
        self._decoder = decoder_of(frozenset(events))
        self._payloads = payloads
        self._limit_objects = payloads.packing.limit_objects

    async def read(self, message: Message) -> Envelope:
        """Return the envelope in *message*.

        Cancelled, it leaves a thread to finish what it decodes.

        Raises:
            DecodeError, UnknownEventType: As Decoder.decode; and for a body that is not packed as its attributes say,
                or has too many values.
            PayloadError: Its payload does not exist, or is of a coding that nothing here reads.
            TransportError: S3 cannot be asked for now.
        """
        body, attributes = message.body, message.attributes
        if not is_encoded(attributes):
            try:
                return await self._decode(body)
            except EncodedBody as inner:
                body, attributes = inner.body, inner.attributes
        fetched, limit_bytes = await self._payloads.fetch(body, attributes)
        try:
            if ENCODING_ATTRIBUTE in attributes:
                unpack = partial(decompress_body, fetched, attributes, limit_bytes)
                return await _in_thread(lambda: self._decoder.decode_large(unpack(), self._limit_objects))
            return await self._decode(fetched)
        except EncodedBody:
            raise DecodeError("not-compressed", "what was unpacked says that it is packed once more") from None

    async def _decode(self, body: str) -> Envelope:
        if len(body) <= SMALL_CHARACTERS or (len(body) <= INLINE_CHARACTERS and is_simple(body, INLINE_OBJECTS)):
            try:
                return self._decoder.decode(body)
            except UndecidedUnions:
                pass  # a thread has the time
        return await _in_thread(lambda: self._decoder.decode_large(body, self._limit_objects))


async def _in_thread(function: Callable[[], T]) -> T:
    """Run *function* in the thread of large bodies, with the caller's context variables."""
    return await asyncio.get_running_loop().run_in_executor(_thread(), copy_context().run, function)


@lru_cache(maxsize=1)
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="smartpipe-decoder")


register_at_fork(after_in_child=_thread.cache_clear)  # threads do not survive a fork
