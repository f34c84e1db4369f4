"""The local broker: a maintained emulator of SNS and SQS in a child process."""

from smartpipe.local.broker import BACKENDS, EmbeddedBroker

__all__ = ["BACKENDS", "EmbeddedBroker"]
