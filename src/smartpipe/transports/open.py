"""Open the transport that the environment asks for. The AWS client is imported only when it is needed."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from smartpipe.settings import TransportSettings, unknown_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.settings import AwsSettings
    from smartpipe.transport import Transport
    from smartpipe.transports.aws.transport import AwsTransport

log = logging.getLogger("smartpipe.aws")

_replacements: list[Transport] = []


@contextmanager
def use_transport(transport: Transport) -> Iterator[None]:
    """Let ``open_transport`` return *transport* inside the block, in the whole process: for tests."""
    _replacements.append(transport)
    try:
        yield
    finally:
        _replacements.remove(transport)


def open_transport() -> Transport:
    """Return the transport to AWS, or to the endpoint in ``AWS_ENDPOINT_URL``.

    Raises:
        ConfigError: The environment's settings have errors.
    """
    return _replacements[-1] if _replacements else open_aws_transport()


def open_aws_transport() -> AwsTransport:
    """Read ``SMARTPIPE_TRANSPORT``, ``SMARTPIPE_PREFIX``, ``SMARTPIPE_ACCOUNT_ID`` and the variables of AWS.

    Raises:
        ConfigError: As ``create_aws_transport``, or a setting has an error.
    """
    for sentence in unknown_settings():
        log.warning("%s", sentence)
    return create_aws_transport(TransportSettings.load())


def create_aws_transport(settings: AwsSettings) -> AwsTransport:
    """Return the transport that ``SMARTPIPE_TRANSPORT`` names.

    Args:
        settings: TransportSettings. Commands that publish and receive nothing do not read ``SMARTPIPE_TRANSPORT``, and
            pass AwsSettings.

    Raises:
        ConfigError: The region is missing, a CA bundle cannot be read, or the AWS configuration has an error.
    """
    from smartpipe.transports.aws.transport import AwsTransport

    botocore = isinstance(settings, TransportSettings) and settings.transport == "botocore"
    return AwsTransport(settings, direct=not botocore)
