"""What has to exist on AWS: declared by events and services, derived, compared. Pure: no I/O here."""

from smartpipe.topics import Queue, Topic

__all__ = ["Queue", "Topic"]
