"""The envelope of an event: how it is encoded, decoded and described in JSON Schema."""

from smartpipe.envelope.encode import Envelope, current_envelope, encode, wrap
from smartpipe.envelope.traceparent import read_traceparent

__all__ = ["Envelope", "current_envelope", "encode", "read_traceparent", "wrap"]
