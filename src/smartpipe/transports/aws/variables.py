"""AWS's own variables: read with the precedence that AWS's other SDKs have, and refused where no header may hold them.

Source: AWS SDKs and Tools Reference Guide, "AWS Region", "Shared config and credentials files" and "AWS access keys".
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from smartpipe.characters import CONTROL, character_error
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aiobotocore.session import AioSession
    from botocore.session import Session

    from smartpipe.transports.aws.direct.signing import Credentials

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_TOKENS = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_BESIDES_BOTOCORES = (
    "AWS_ACCOUNT_ID", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CREDENTIAL_EXPIRATION",
    "AWS_EXECUTION_ENV", "AWS_REGION", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE",
)  # fmt: skip
"""Variables that botocore reads and that are not in its table of settings."""
_ENDPOINTS = "AWS_ENDPOINT_URL"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

_REGION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PLACES = {
    "config-file": "the AWS config file",
    "container-role": "the container's credentials endpoint",
    "custom-process": "credential_process",
    "env": "the environment",
    "explicit": "the session that was passed in",
    "iam-role": "the instance's metadata service",
    "shared-credentials-file": "the shared credentials file",
}
"""botocore's names of where credentials are from, in words; others are shown as they are."""


def read_as_other_sdks_do(session: Session | AioSession, env_provider: Any) -> None:
    """Let *session*, which must be ours alone, read the environment with the precedence of AWS's other SDKs.

    ``AWS_REGION`` wins over ``AWS_DEFAULT_REGION`` and the profile, ``AWS_PROFILE`` over ``AWS_DEFAULT_PROFILE``, and
    ``AWS_SESSION_TOKEN`` over ``AWS_SECURITY_TOKEN``; botocore does not know the first, and prefers the older name of
    the others. An empty variable counts as none.

    Args:
        env_provider: botocore's ``EnvProvider``, or aiobotocore's.
    """
    known: Any = session.session_var_map
    for name, variables in (("region", _REGIONS), ("profile", _PROFILES)):
        option, _, default, convert = known[name]
        known[name] = (option, _set(variables), default, convert)
    tokens = _set(_TOKENS)
    if len(tokens) == len(_TOKENS):
        providers: Any = session.get_component("credential_provider")
        providers.insert_before("env", env_provider(mapping={"token": tokens}))


def _set(variables: Iterable[str]) -> list[str]:
    return [name for name in variables if os.environ.get(name)]


def check_region(region: str, source: str) -> str:
    """Return *region*.

    Raises:
        ConfigError: It cannot be part of a host name.
    """
    if not _REGION.fullmatch(region):
        msg = f"{source}={region!r} is not an AWS region: set AWS_REGION to one, as in eu-west-1"
        raise ConfigError(msg)
    return region


def check_variables(session: Session | AioSession) -> None:
    """Check AWS's variables in the environment. Their values get into headers, URLs and signatures.

    White space around a value is refused too, and not cut off: other programs and libraries that read the same
    variable would go on failing, and so would this process's own clients of boto3.

    Raises:
        ConfigError: One sentence for each faulty variable. It has no value of any, for most are secrets.
    """
    problems = list(_problems(session))
    if problems:
        raise ConfigError(problems)


def _problems(session: Session | AioSession) -> Iterator[str]:
    known: Any = session.session_var_map
    names = [name for _, variables, *_ in known.values() for name in _listed(variables)]
    endpoints = [name for name in os.environ if name.startswith(_ENDPOINTS)]
    for name in dict.fromkeys([*SECRETS, *_BESIDES_BOTOCORES, *names, *sorted(endpoints)]):
        fault = character_error(os.environ.get(name, ""), ascii_only=name in SECRETS)
        if fault:
            yield f"{name} {fault}"
    for name in (spelt for one in _PROXIES for spelt in (one, one.lower())):
        if CONTROL.search(os.environ.get(name, "")):
            yield f"{name} contains a control character: set it again without"


def _listed(variables: list[str] | str | None) -> list[str]:
    return [variables] if isinstance(variables, str) else list(variables or ())


def check_credentials(credentials: Credentials, method: str) -> None:
    """Check the credentials that requests will be signed with.

    Args:
        method: botocore's name of where they are from.

    Raises:
        ConfigError: A key or the token cannot stand in a header; the error names where they are from, and no value.
    """
    parts = {
        "the access key id": credentials.access_key,
        "the secret access key": credentials.secret_key,
        "the session token": credentials.token,
    }
    faults = {name: character_error(str(value), ascii_only=True) for name, value in parts.items() if value}
    problems = [
        f"AWS credentials from {_PLACES.get(method, method)}: {name} {fault}" for name, fault in faults.items() if fault
    ]
    if problems:
        raise ConfigError(problems)


def check_before_signing(session: AioSession) -> None:
    """Check the credentials of every request that the clients of *session* sign."""

    async def check(*, request_signer: Any, **_: Any) -> None:
        credentials = request_signer._credentials  # noqa: SLF001 - the hook gets nothing else
        if credentials is not None:
            check_credentials(await credentials.get_frozen_credentials(), credentials.method)

    session.register("before-sign", check, unique_id="smartpipe-credentials-check")


def check_before_signing_blocking(session: Session) -> None:
    """Do the same for botocore's own clients."""

    def check(*, request_signer: Any, **_: Any) -> None:
        credentials = request_signer._credentials  # noqa: SLF001
        if credentials is not None:
            check_credentials(credentials.get_frozen_credentials(), credentials.method)

    hook: Any = check
    session.register("before-sign", hook, unique_id="smartpipe-credentials-check")
