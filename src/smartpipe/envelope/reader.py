"""From a message to its envelope: brought back from S3, decompressed, taken out of SNS's own envelope, decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.envelope.decoder import Packed, decoder_of
from smartpipe.errors import DecodeError
from smartpipe.payloads.payloads import is_packed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.envelope import Envelope
    from smartpipe.events import Event
    from smartpipe.message import Message
    from smartpipe.payloads.payloads import Payloads


class Reader:
    """Reads the messages of one queue.

    Args:
        events: At most one class for each type and major version.
    """

    def __init__(self, events: Iterable[type[Event]], payloads: Payloads) -> None:
        self._decoder = decoder_of(frozenset(events))
        self._payloads = payloads

    async def read(self, message: Message) -> Envelope:
        """Return the envelope in *message*.

        Raises:
            DecodeError, UnknownEventType: As Decoder.decode; and for a body that is not packed as its attributes say.
            PayloadError: Its payload is not there, or of a coding that nothing here reads.
            TransportError: S3 cannot be asked for now.
        """
        body, attributes = message.body, message.attributes
        if not is_packed(attributes):
            try:
                return self._decoder.decode(body)
            except Packed as inner:
                body, attributes = inner.body, inner.attributes
        restored = await self._payloads.restored(body, attributes)
        try:
            return self._decoder.decode(restored)
        except Packed:
            raise DecodeError("not-compressed", "what was unpacked says that it is packed once more") from None
