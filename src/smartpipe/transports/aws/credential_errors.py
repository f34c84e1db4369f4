"""Recognizes errors of credential providers, names the provider, and decides whether the error can pass. Pure."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore.credentials import CredentialProvider, RefreshableCredentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    InvalidConfigError,
    LoginError,
    MissingDependencyException,
    PartialCredentialsError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    SSOError,
    UnknownCredentialError,
)

from smartpipe.errors import ConfigError, SmartpipeError, TransportError
from smartpipe.exhaustion import shortage_code
from smartpipe.urls import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

CODE = "CredentialRetrievalError"
SOURCES = {
    "assume-role": "the role of the AWS profile",
    "assume-role-with-web-identity": "the web identity token",
    "config-file": "the AWS config file",
    "container-role": "the container's credentials endpoint",
    "custom-process": "credential_process",
    "env": "the environment",
    "explicit": "the session that was passed in",
    "iam-role": "the instance's metadata service",
    "login": "the AWS login session",
    "shared-credentials-file": "the shared credentials file",
    "sso": "IAM Identity Center",
}
"""botocore's names of credential sources, in words. Other names are shown unchanged."""
_ADVICE = {
    "assume-role-with-web-identity": "check AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN",
    "container-role": "check AWS_CONTAINER_CREDENTIALS_FULL_URI, or its _RELATIVE_URI",
    "custom-process": "run the command that the AWS profile names as credential_process, and look at its output",
}
_PERMANENT = (
    InvalidConfigError, LoginError, MissingDependencyException, PartialCredentialsError, ProfileNotFound,
    RefreshWithMFAUnsupportedError, SSOError, UnknownCredentialError,
)  # fmt: skip
# botocore has one class for a process that failed and for output that will never be accepted. Only the texts differ.
_WRONG_OUTPUT = ("Unsupported version", "Missing required key")
_OF_PYTHON = (ValueError, LookupError, TypeError, AttributeError)
"""The output is not JSON or lacks a field, or a URL cannot be read."""


@contextmanager
def credential_errors() -> Iterator[None]:
    """Convert the errors of credential providers that are raised inside the block.

    Raises:
        ConfigError: A provider failed in a way that only a change of the configuration can repair.
        TransportError: ``CredentialRetrievalError``: a provider failed, and may succeed later.
    """
    try:
        yield
    except Exception as error:
        failure = find_credential_failure(error)
        if failure is None:
            raise
        raise failure from error


def find_credential_failure(error: BaseException) -> ConfigError | TransportError | None:
    """Return the error of a credential provider with the provider's name; None if no provider raised *error*.

    A provider that has worked before is expected to work again, whatever its error. Otherwise a process that could
    finish its work would end, for example while another program replaces a file.
    """
    if isinstance(error, SmartpipeError):
        return None
    method, has_worked = _find_provider(error)
    if method is None:
        return None
    advice = f"; {_ADVICE[method]}" if method in _ADVICE else ""
    text = f"credentials from {SOURCES.get(method, method)}: {_describe(error, method)}{advice}"
    if not has_worked and _is_permanent(error):
        return ConfigError(f"AWS configuration: {text}")
    return TransportError(CODE, text, retryable=True)


def _find_provider(error: BaseException) -> tuple[str | None, bool]:
    """Return botocore's name of the innermost credential provider in the traceback of *error*, and whether it worked.

    Most exceptions of providers do not say whose they are: a process that prints no JSON, for example, makes botocore
    raise JSONDecodeError.
    """
    found: str | None = None
    has_worked = False
    traceback = error.__traceback__
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        if isinstance(owner, CredentialProvider):
            found = owner.METHOD or found
        elif isinstance(owner, RefreshableCredentials):
            found = owner.method
            has_worked = getattr(owner, "_access_key", None) is not None  # the public name would refresh them
        traceback = traceback.tb_next
    return found, has_worked


def _is_permanent(error: BaseException) -> bool:
    if shortage_code(error) is not None:
        return False
    if isinstance(error, CredentialRetrievalError):
        return any(words in str(error) for words in _WRONG_OUTPUT)
    if isinstance(error, (BotoCoreError, ClientError)):
        return isinstance(error, _PERMANENT)
    return isinstance(error, (FileNotFoundError, PermissionError, *_OF_PYTHON))


def _describe(error: BaseException, method: str) -> str:
    if method == "custom-process" and isinstance(error, _OF_PYTHON):  # its text may quote the output
        return "the output is not the JSON object that AWS specifies"
    if isinstance(error, LookupError):
        return f"the response has no field {error}"
    return redact(str(error)) or type(error).__name__
