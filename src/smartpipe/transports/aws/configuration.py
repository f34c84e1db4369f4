"""The configuration of a botocore session: region, endpoints, certificates and client options.

The sessions of aiobotocore are botocore sessions too, so asyncio and blocking code share every rule here.

Source: AWS SDKs and Tools Reference Guide, "AWS Region" and "Service-specific endpoints".
"""

from __future__ import annotations

import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ConfigNotFound, ConfigParseError, InvalidRegionError, ProfileNotFound
from botocore.httpsession import where

from smartpipe.errors import ConfigError
from smartpipe.settings import find_region_variable
from smartpipe.transports.aws.variables import check_region, check_variables, read_as_other_sdks_do
from smartpipe.urls import is_readable, redact, scheme_of
from smartpipe.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from botocore.session import Session

CONNECT_TIMEOUT_SECONDS = 5
CALL_TIMEOUT_SECONDS = 15
POLL_MARGIN_SECONDS = 10
"""Added to the wait of a receive call. A read timeout that is shorter than the wait strands messages."""
_PROXIES = frozenset({"all_proxy", "http_proxy", "https_proxy"})
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


def configure(session: Session, env_provider: Any | None) -> str:
    """Check the AWS configuration of *session*, and return its region.

    Args:
        env_provider: The ``EnvProvider`` of botocore or aiobotocore, for a session that smartpipe has created: the
            session will read the environment as AWS's other SDKs do. None for a session of the caller's.

    Raises:
        ConfigError: The region is missing, a CA bundle cannot be read, an AWS variable has a character that no header
            may have, or the AWS configuration has an error.
    """
    check_variables(session)
    if env_provider is not None:
        with configuration_errors():
            read_as_other_sdks_do(session, env_provider)
    region = find_region(session)
    check_ca_bundle(session)
    return region


def find_region(session: Session) -> str:
    """Return the region: the one set on *session*, else AWS_REGION, else the one that botocore finds.

    Raises:
        ConfigError: The region is missing, or cannot be one, or the AWS configuration has an error.
    """
    explicit = session.instance_variables().get("region")
    if explicit:
        return check_region(str(explicit), "region_name")
    variable = find_region_variable()
    if variable:
        return check_region(os.environ[variable], variable)
    region = _read_setting(session, "region")
    if not region:
        msg = "no AWS region: set AWS_REGION (such as eu-west-1), or region in the AWS profile"
        raise ConfigError(msg)
    return check_region(region, "region of the AWS profile")


@contextmanager
def configuration_errors() -> Iterator[None]:
    """Raise ConfigError instead of botocore's exceptions for a wrong configuration, while a client is created."""
    try:
        yield
    except InvalidRegionError as error:
        raise ConfigError(f"AWS configuration: {error}") from None
    except ValueError as error:
        if "endpoint" in str(error).lower():  # it has no scheme, and the text quotes it
            raise ConfigError("AWS configuration: endpoint_url must begin with http:// or https://") from None
        raise ConfigError(f"AWS configuration: {redact(str(error))}") from None  # unreadable credentials
    except (ConfigNotFound, ConfigParseError, ProfileNotFound) as error:
        raise ConfigError(f"AWS configuration: {error}") from None


def create_tls_context(session: Session) -> ssl.SSLContext:
    """Return a context that trusts the authorities of AWS_CA_BUNDLE or of the profile's ``ca_bundle``.

    Without either of them it trusts the same authorities as botocore.

    Raises:
        ConfigError: The bundle cannot be read, or has no certificate, or the AWS configuration has an error.
    """
    bundle = _read_setting(session, "ca_bundle")
    try:
        context = ssl.create_default_context(cafile=bundle or where())
    except OSError as error:
        msg = f"the CA bundle {bundle} (AWS_CA_BUNDLE, or ca_bundle of the AWS profile) cannot be read: {error}"
        raise ConfigError(msg) from None
    # Python 3.13 sets this flag, botocore does not: certificates of corporate authorities often fail its checks.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def check_ca_bundle(session: Session) -> None:
    """Read the CA bundle, if one is configured. botocore would read it at its first call, and report a network error.

    Raises:
        ConfigError: As ``create_tls_context``.
    """
    if _read_setting(session, "ca_bundle") is not None:
        create_tls_context(session)


def _read_setting(session: Session, name: str) -> str | None:
    try:
        return session.get_config_variable(name) or None
    except BotoCoreError as error:  # a profile that does not exist, a configuration file that cannot be read
        raise ConfigError(f"AWS configuration: {error}") from None


def check_urls(service: str, environment: Mapping[str, str] = os.environ) -> None:
    """Check the endpoints of *service* and the proxies before botocore, aiohttp or urllib3 read and quote them.

    Args:
        service: botocore's name of it, such as ``sns``.

    Raises:
        ConfigError: An endpoint is not an http or https URL or has a user, or a proxy's URL cannot be read.
    """
    errors = []
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        names = ("AWS_ENDPOINT_URL", f"AWS_ENDPOINT_URL_{service.upper()}")
        errors += [f"{name} {error}" for name in names if (error := endpoint_error(environment.get(name)))]
    for name, value in environment.items():
        url = value if "://" in value else f"http://{value}"
        # urllib3 ends the host at a backslash, and quotes the part before it.
        if name.lower() in _PROXIES and value and ("\\" in url or not is_readable(url, at_in_password=True)):
            errors.append(
                f"{name} cannot be read; are all special characters of its password percent-encoded, as in %2F for /, "
                "and is its port a number?"
            )
    if errors:
        raise ConfigError(errors)


def check_client(client: Any) -> None:
    """Check the endpoint of *client*, which may come from an AWS profile. ``check_urls`` checks the environment.

    Raises:
        ConfigError: The endpoint is not an http or https URL, or has a user.
    """
    error = endpoint_error(client.meta.endpoint_url)
    if error:
        raise ConfigError(f"AWS configuration: endpoint_url {error}")


def endpoint_error(url: str | None) -> str:
    """Return the error in an endpoint's URL, without any part of the URL; empty if there is none."""
    if not url:
        return ""
    if scheme_of(url) not in {"http", "https"}:
        return "must begin with http:// or https://"
    if not is_readable(url) or "?" in url or "#" in url:
        return "cannot be read; it must be like http://localhost:4566"
    if "@" in url:
        return "has a user or a password, and AWS takes credentials from its own variables only"
    return ""


def client_options(*, read_timeout_seconds: float = CALL_TIMEOUT_SECONDS) -> dict[str, Any]:
    """Return the arguments for the Config of botocore or aiobotocore.

    botocore makes one attempt. smartpipe retries in one layer of its own, which has one deadline and knows all
    throttling errors.
    """
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": read_timeout_seconds,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "tcp_keepalive": True,
        "parameter_validation": False,
        # At an endpoint other than AWS's a bucket has no DNS name, so its name goes into the path.
        "s3": {"addressing_style": "path"} if any(map(os.environ.get, _S3_ENDPOINTS)) else None,
        "user_agent_extra": f"smartpipe/{__version__}",
    }
