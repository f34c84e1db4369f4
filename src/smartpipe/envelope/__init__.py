"""The envelope: an event's form on the wire, written, read and described."""

from smartpipe.envelope.encode import Envelope, current_envelope, encode, wrap

__all__ = ["Envelope", "current_envelope", "encode", "wrap"]
