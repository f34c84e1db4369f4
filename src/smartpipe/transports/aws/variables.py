"""The AWS variables: read with the precedence of AWS's other SDKs, and refused if a header could not contain them.

Source: AWS SDKs and Tools Reference Guide, "AWS Region", "Shared config and credentials files" and "AWS access keys".
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from smartpipe.characters import CONTROL, character_error
from smartpipe.errors import ConfigError
from smartpipe.settings import REGION_VARIABLES
from smartpipe.transports.aws.credential_errors import SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aiobotocore.session import AioSession
    from botocore.session import Session

    from smartpipe.transports.aws.direct.signing import Credentials

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_TOKENS = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_MORE_VARIABLES = (
    "AWS_ACCOUNT_ID", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CREDENTIAL_EXPIRATION",
    "AWS_EXECUTION_ENV", "AWS_REGION", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE",
)  # fmt: skip
"""Variables that botocore reads, but that are not in its table of settings."""
_ENDPOINTS = "AWS_ENDPOINT_URL"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

_REGION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def read_as_other_sdks_do(session: Session | AioSession, env_provider: Any) -> None:
    """Let *session* read the environment with the precedence of AWS's other SDKs. This changes the session.

    ``AWS_REGION`` wins over ``AWS_DEFAULT_REGION`` and the profile, ``AWS_PROFILE`` over ``AWS_DEFAULT_PROFILE``, and
    ``AWS_SESSION_TOKEN`` over ``AWS_SECURITY_TOKEN``. botocore does not know the first, and prefers the older name of
    the others. An empty variable counts as not set.

    Args:
        env_provider: The ``EnvProvider`` of botocore, or that of aiobotocore.
    """
    known: Any = session.session_var_map
    for name, variables in (("region", REGION_VARIABLES), ("profile", _PROFILES)):
        option, _, default, convert = known[name]
        known[name] = (option, _keep_set(variables), default, convert)
    tokens = _keep_set(_TOKENS)
    if len(tokens) == len(_TOKENS):
        providers: Any = session.get_component("credential_provider")
        providers.insert_before("env", env_provider(mapping={"token": tokens}))


def _keep_set(variables: Iterable[str]) -> list[str]:
    return [name for name in variables if os.environ.get(name)]


def check_region(region: str, source: str) -> str:
    """Return *region*.

    Raises:
        ConfigError: It cannot be part of a host name. The error names *source*.
    """
    if not _REGION.fullmatch(region):
        msg = f"{source}={region!r} is not an AWS region: set AWS_REGION to one, such as eu-west-1"
        raise ConfigError(msg)
    return region


def check_variables(session: Session | AioSession) -> None:
    """Check the AWS variables in the environment. Their values become parts of headers, URLs and signatures.

    White space around a value is refused too, and not removed: other programs and libraries that read the same
    variable would continue to fail, and so would other boto3 clients in this process.

    Raises:
        ConfigError: One sentence for each variable with an error. No sentence has a value, since most are secrets.
    """
    errors = list(_find_errors(session))
    if errors:
        raise ConfigError(errors)


def _find_errors(session: Session | AioSession) -> Iterator[str]:
    known: Any = session.session_var_map
    names = [name for _, variables, *_ in known.values() for name in _as_list(variables)]
    endpoints = [name for name in os.environ if name.startswith(_ENDPOINTS)]
    for name in dict.fromkeys([*SECRETS, *_MORE_VARIABLES, *names, *sorted(endpoints)]):
        error = character_error(os.environ.get(name, ""), ascii_only=name in SECRETS)
        if error:
            yield f"{name} {error}"
    for name in (*_PROXIES, *map(str.lower, _PROXIES)):
        if CONTROL.search(os.environ.get(name, "")):
            yield f"{name} contains a control character: set it again without"


def _as_list(variables: list[str] | str | None) -> list[str]:
    return [variables] if isinstance(variables, str) else list(variables or ())


def check_credentials(credentials: Credentials, method: str) -> None:
    """Check the credentials that will sign requests.

    Args:
        method: botocore's name of their source.

    Raises:
        ConfigError: A header cannot contain a key or the token. The error names their source, and no value.
    """
    parts = {
        "the access key id": credentials.access_key,
        "the secret access key": credentials.secret_key,
        "the session token": credentials.token,
    }
    source = SOURCES.get(method, method)
    errors = [
        f"AWS credentials from {source}: {name} {error}"
        for name, value in parts.items()
        if value and (error := character_error(str(value), ascii_only=True))
    ]
    if errors:
        raise ConfigError(errors)


def check_before_signing(session: AioSession) -> None:
    """Check the credentials of each request that the clients of *session* sign."""

    async def check(*, request_signer: Any, **_: Any) -> None:
        credentials = request_signer._credentials  # noqa: SLF001 - the event passes nothing else
        if credentials is not None:
            check_credentials(await credentials.get_frozen_credentials(), credentials.method)

    session.register("before-sign", check, unique_id="smartpipe-credentials-check")


def check_before_signing_blocking(session: Session) -> None:
    """Do the same for the clients of a blocking session."""

    def check(*, request_signer: Any, **_: Any) -> None:
        credentials = request_signer._credentials  # noqa: SLF001
        if credentials is not None:
            check_credentials(credentials.get_frozen_credentials(), credentials.method)

    hook: Any = check
    session.register("before-sign", hook, unique_id="smartpipe-credentials-check")
