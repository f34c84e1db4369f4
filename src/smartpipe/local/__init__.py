"""The local broker: a maintained emulator of SNS and SQS in a child process, which listens on loopback."""

from smartpipe.local.broker import BACKENDS, EmbeddedBroker

__all__ = ["BACKENDS", "EmbeddedBroker"]
