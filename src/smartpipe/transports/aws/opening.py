"""Which of the two transports to AWS an environment asks for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smartpipe.settings import AwsSettings, unknown_settings

if TYPE_CHECKING:
    from smartpipe.transports.aws.transport import AwsTransport

log = logging.getLogger("smartpipe.aws")


def transport_for(settings: AwsSettings) -> AwsTransport:
    """Return the transport that ``SMARTPIPE_TRANSPORT`` names.

    Raises:
        ConfigError: No region, or a CA bundle that cannot be read.
    """
    if settings.transport == "direct":
        from smartpipe.transports.aws.direct.transport import DirectTransport

        return DirectTransport(settings)
    from smartpipe.transports.aws.transport import AwsTransport

    return AwsTransport(settings)


def transport_from_environment() -> AwsTransport:
    """Read ``SMARTPIPE_TRANSPORT``, ``SMARTPIPE_PREFIX``, ``SMARTPIPE_ACCOUNT_ID``, and AWS's own variables.

    Raises:
        ConfigError: Faulty settings, or no region.
    """
    for sentence in unknown_settings():
        log.warning("%s", sentence)
    return transport_for(AwsSettings.load())
