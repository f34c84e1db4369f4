"""Clients of botocore and aiobotocore, configured the one way smartpipe wants them."""

from __future__ import annotations

import json
import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ConfigNotFound, ConfigParseError, InvalidRegionError, ProfileNotFound
from botocore.httpsession import where

from smartpipe.errors import ConfigError
from smartpipe.transports.aws.variables import check_region
from smartpipe.urls import is_readable, redact, scheme_of
from smartpipe.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from botocore.session import Session

    from smartpipe.message import Payload

CONNECT_TIMEOUT_SECONDS = 5
CALL_TIMEOUT_SECONDS = 15
POLL_MARGIN_SECONDS = 10
"""A poll's answer may come so long after its wait: a read timeout below the wait strands messages."""
_PROXIES = frozenset({"all_proxy", "http_proxy", "https_proxy"})
_OWN_ENDPOINT = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


def region_of(session: Session) -> str:
    """Return the region: the one set on *session*, else AWS_REGION, else the one that botocore finds.

    Raises:
        ConfigError: There is none, or it cannot be one, or the AWS configuration is faulty.
    """
    given = session.instance_variables().get("region")
    if given:
        return check_region(str(given), "region_name")
    variable = next((name for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if os.environ.get(name)), None)
    if variable:
        return check_region(os.environ[variable], variable)
    region = _configured(session, "region")
    if not region:
        msg = "no AWS region: set AWS_REGION (as in eu-west-1), or region in the AWS profile"
        raise ConfigError(msg)
    return check_region(region, "region of the AWS profile")


@contextmanager
def configuration_faults() -> Iterator[None]:
    """Raise ConfigError in place of botocore's exceptions for a faulty configuration, while a client is made."""
    try:
        yield
    except InvalidRegionError as error:
        raise ConfigError(f"AWS configuration: {error}") from None
    except ValueError as error:
        if "endpoint" in str(error).lower():  # without a scheme; the text quotes it
            raise ConfigError("AWS configuration: endpoint_url must begin with http:// or https://") from None
        raise ConfigError(f"AWS configuration: {redact(str(error))}") from None  # credentials that cannot be read
    except (ConfigNotFound, ConfigParseError, ProfileNotFound) as error:
        raise ConfigError(f"AWS configuration: {error}") from None


def tls_of(session: Session) -> ssl.SSLContext:
    """Return what verifies servers: by AWS_CA_BUNDLE or the profile's ``ca_bundle``, else as botocore does.

    Raises:
        ConfigError: The bundle cannot be read, or has no certificate, or the AWS configuration is faulty.
    """
    bundle = _configured(session, "ca_bundle")
    try:
        context = ssl.create_default_context(cafile=bundle or where())
    except OSError as error:
        msg = f"the CA bundle {bundle} (AWS_CA_BUNDLE, or ca_bundle of the AWS profile) cannot be read: {error}"
        raise ConfigError(msg) from None
    # Python 3.13 sets it, botocore does not: corporate authorities often lack what it asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def check_ca_bundle(session: Session) -> None:
    """Read the bundle, where one is named: botocore would at its first call, and take a fault in it for the network's.

    Raises:
        ConfigError: As ``tls_of``.
    """
    if _configured(session, "ca_bundle") is not None:
        tls_of(session)


def _configured(session: Session, name: str) -> str | None:
    try:
        return session.get_config_variable(name) or None
    except BotoCoreError as error:  # a profile that does not exist, a configuration file that cannot be read
        raise ConfigError(f"AWS configuration: {error}") from None


def check_urls(service: str, environment: Mapping[str, str] = os.environ) -> None:
    """Check the endpoints of *service* and the proxies before botocore, aiohttp or urllib3 read and quote them.

    Args:
        service: As botocore calls it, such as ``sns``.

    Raises:
        ConfigError: An endpoint that is not an http or https URL or that has a user, or a proxy that cannot be read.
    """
    problems = []
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        names = ("AWS_ENDPOINT_URL", f"AWS_ENDPOINT_URL_{service.upper()}")
        problems += [f"{name} {fault}" for name in names if (fault := endpoint_fault(environment.get(name)))]
    for name, value in environment.items():
        url = value if "://" in value else f"http://{value}"
        # urllib3 ends the host at a backslash, and quotes the part before it.
        if name.lower() in _PROXIES and value and ("\\" in url or not is_readable(url, at_in_password=True)):
            problems.append(
                f"{name} cannot be read; are all special characters of its password percent-encoded, as in %2F for /, "
                "and is its port a number?"
            )
    if problems:
        raise ConfigError(problems)


def endpoint_fault(url: str | None) -> str:
    """Return the fault of an endpoint's URL, without any part of the URL; empty if there is none."""
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
    """Return the arguments for botocore's or aiobotocore's Config.

    One attempt: smartpipe's own layer retries, with a classifier that knows all throttles and one
    deadline. The pool has no limit, because waiting for one of its connections would have none
    either: the number of calls is bounded where they are made, by pollers and batchers.
    """
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": read_timeout_seconds,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "tcp_keepalive": True,
        "parameter_validation": False,
        # At an endpoint of one's own a bucket has no DNS name: it stands in the path.
        "s3": {"addressing_style": "path"} if any(map(os.environ.get, _OWN_ENDPOINT)) else None,
        "user_agent_extra": f"smartpipe/{__version__}",
    }


def put_request(payload: Payload, account_id: str) -> dict[str, Any]:
    """Return PutObject's arguments; *account_id* owns the bucket where the payload does not say who does."""
    return {
        "Bucket": payload.bucket,
        "Key": payload.key,
        "Body": payload.text.encode(),
        "ContentType": "application/json",
        "ExpectedBucketOwner": payload.owner or account_id,
    }


async def refuse_no_json(*, http_response: Any, parsed: Mapping[str, Any], **_: Any) -> None:
    """Raise ValueError for an answer without messages that is no JSON; botocore's hook ``after-call``.

    botocore would take the page of a proxy, or half an answer, for a poll that found nothing: one that
    returns at once, so that polling would run hot and look well.
    """
    if http_response.status_code < 300 and "Messages" not in parsed:  # noqa: PLR2004 - errors have their own parser
        json.loads(await http_response.content)
