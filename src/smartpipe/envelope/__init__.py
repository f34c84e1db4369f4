"""The envelope of an event: how it is encoded, decoded and described in JSON Schema."""

from smartpipe.envelope.encode import Envelope, current_envelope, encode, wrap

__all__ = ["Envelope", "current_envelope", "encode", "wrap"]
