"""aiobotocore's sessions and clients, opened in the one way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioEnvProvider
from aiobotocore.session import AioSession, get_session

from smartpipe.errors import ConfigError
from smartpipe.transports.aws.client import (
    CALL_TIMEOUT_SECONDS,
    check_ca_bundle,
    check_urls,
    client_options,
    configuration_faults,
    endpoint_fault,
)
from smartpipe.transports.aws.variables import check_before_signing, check_variables, read_as_other_sdks_do

if TYPE_CHECKING:
    from contextlib import AsyncExitStack


def open_session(session: AioSession | None = None) -> AioSession:
    """Return *session*, or one of the environment, with its configuration checked.

    Raises:
        ConfigError: A variable of AWS's that no header or URL may hold, or a CA bundle that cannot be read.
    """
    if session is None:
        session = get_session()
        with configuration_faults():
            read_as_other_sdks_do(session, AioEnvProvider)
    check_variables(session)
    check_ca_bundle(session)
    check_before_signing(session)
    return session


async def open_client(
    stack: AsyncExitStack,
    session: AioSession,
    service: str,
    region: str,
    *,
    read_timeout_seconds: float = CALL_TIMEOUT_SECONDS,
) -> Any:
    """Return a client that *stack* closes.

    Raises:
        ConfigError: The AWS configuration is faulty.
    """
    check_urls(service)
    config = AioConfig(max_pool_connections=0, **client_options(read_timeout_seconds=read_timeout_seconds))
    create: Any = session.create_client
    with configuration_faults():
        client = await stack.enter_async_context(create(service, region_name=region, config=config))
    fault = endpoint_fault(client.meta.endpoint_url)
    if fault:  # of an AWS profile; those of the environment have been checked
        raise ConfigError(f"AWS configuration: endpoint_url {fault}")
    return client
