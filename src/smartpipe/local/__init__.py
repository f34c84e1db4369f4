"""The embedded broker: a well-kept emulator of SNS and SQS, as a child process on loopback."""

from smartpipe.local.broker import BACKENDS, EmbeddedBroker

__all__ = ["BACKENDS", "EmbeddedBroker"]
