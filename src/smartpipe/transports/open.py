"""Open the transport that the environment asks for. The AWS client is imported only when it is needed."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from smartpipe.settings import AwsSettings, unknown_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        ConfigError: The environment's settings are faulty.
    """
    return _replacements[-1] if _replacements else open_aws_transport()


def open_aws_transport() -> AwsTransport:
    """Read ``SMARTPIPE_TRANSPORT``, ``SMARTPIPE_PREFIX``, ``SMARTPIPE_ACCOUNT_ID`` and AWS's own variables.

    Raises:
        ConfigError: Faulty settings, or no region.
    """
    for sentence in unknown_settings():
        log.warning("%s", sentence)
    return create_aws_transport(AwsSettings.load())


def create_aws_transport(settings: AwsSettings) -> AwsTransport:
    """Return the transport that ``SMARTPIPE_TRANSPORT`` names.

    Raises:
        ConfigError: No region, or a CA bundle that cannot be read.
    """
    if settings.transport == "direct":
        from smartpipe.transports.aws.direct.transport import DirectTransport

        return DirectTransport(settings)
    from smartpipe.transports.aws.transport import AwsTransport

    return AwsTransport(settings)
