"""aiobotocore's clients, opened in the one way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiobotocore.config import AioConfig
from botocore.exceptions import ConfigNotFound, ConfigParseError, InvalidRegionError, ProfileNotFound

from smartpipe.aws.client import CALL_TIMEOUT_SECONDS, client_options
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from aiobotocore.session import AioSession


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
    config = AioConfig(max_pool_connections=0, **client_options(read_timeout_seconds=read_timeout_seconds))
    create: Any = session.create_client
    try:
        return await stack.enter_async_context(create(service, region_name=region, config=config))
    except InvalidRegionError as error:
        raise ConfigError(f"AWS configuration: {error}") from None
    except ValueError as error:  # botocore: an endpoint URL without a scheme
        raise ConfigError(f"{error}; AWS_ENDPOINT_URL must begin with http:// or https://") from None
    except (ConfigNotFound, ConfigParseError, ProfileNotFound) as error:
        raise ConfigError(f"AWS configuration: {error}") from None
