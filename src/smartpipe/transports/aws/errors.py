"""Classifies AWS errors: each spelling of each broker becomes one code and one piece of advice. Pure."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    SSLError,
)

from smartpipe.errors import THROTTLES, ConfigError, SmartpipeError, TransportError
from smartpipe.exhaustion import causes, exhausted_resource, shortage_code
from smartpipe.message import Failure
from smartpipe.transports.aws.credential_errors import find_credential_failure
from smartpipe.urls import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

_LEGACY_PREFIX = "AWS.SimpleQueueService."
_ALIASES = {
    "NonExistentQueue": "QueueDoesNotExist",
    "NotFoundException": "NotFound",
    "NoSuchBucket": "NotFound",
    "InvalidAccessKeyId": "InvalidClientTokenId",  # S3's
    "InvalidToken": "InvalidClientTokenId",  # S3's
    "ResourceNotFoundException": "NotFound",  # DynamoDB's
    "AccessDeniedException": "AccessDenied",
    "AuthorizationError": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "InvalidSignature": "InvalidSignatureException",
}
UNAVAILABLE = frozenset({
    "InternalError", "InternalFailure", "InternalServerError", "RequestTimeout", "RequestTimeoutException",
    "ServiceUnavailable", "ServiceUnavailableException",
})  # fmt: skip
# The next refresh may bring new credentials, so the call may succeed later.
EXPIRED = frozenset({"ExpiredToken", "RequestExpired"})
UNKNOWN = frozenset({"InvalidClientTokenId", "UnrecognizedClientException"})
STALE = EXPIRED | UNKNOWN
"""AWS refuses the credentials themselves, and not their permissions. Other credentials may be accepted."""
DENIED = UNKNOWN | {"AccessDenied", "SignatureDoesNotMatch"}
SKEWED = frozenset({"InvalidSignatureException", "RequestTimeTooSkewed"})
# SNS and STS have one code for a wrong secret and a wrong clock. Only the messages differ.
_SKEW_MESSAGES = ("Signature expired", "Signature not yet current")
MISSING = frozenset({"QueueDoesNotExist", "NotFound"})
# The request itself is wrong. Some brokers report these as their own fault: with SenderFault false, or with status 500.
INVALID = frozenset({
    "BatchEntryIdsNotDistinct", "BatchRequestTooLong", "EmptyBatchRequest", "InvalidAttributeName",
    "InvalidAttributeValue", "InvalidBatchEntryId", "InvalidIdFormat", "InvalidMessageContents", "InvalidParameter",
    "InvalidParameterCombination", "InvalidParameterValue", "MessageNotInflight", "MessageTooLong",
    "MissingParameter", "ParameterValueInvalid", "ReceiptHandleIsInvalid", "TooManyEntriesInBatchRequest",
    "UnsupportedOperation", "ValidationError", "ValidationException",
})  # fmt: skip
_CERTIFICATE_REFUSED = "CERTIFICATE_VERIFY_FAILED"


def normalise(code: str) -> str:
    """Return *code* without its legacy prefix, and in the one spelling that smartpipe uses."""
    code = code.rpartition("#")[2].removeprefix(_LEGACY_PREFIX)
    return _ALIASES.get(code, code)


def code_of(response: Mapping[str, Any]) -> str:
    """Return the normalised error code of a parsed response; ``Unknown`` if it has none."""
    error = response.get("Error", {})
    return normalise(str(error.get("QueryErrorCode") or error.get("Code") or "Unknown"))


def read_failure(index: int, entry: Mapping[str, Any]) -> Failure:
    """Return one element of a batch response's ``Failed`` list as a failure.

    The code decides. Only if it is neither a known temporary error nor a known mistake, ``SenderFault`` does.
    """
    code = normalise(str(entry.get("Code", "Unknown")))
    sender_fault = str(entry.get("SenderFault", False)).lower() == "true"
    retryable = code in THROTTLES or code in UNAVAILABLE or not (sender_fault or code in INVALID)
    return Failure(index, code, str(entry.get("Message") or code), retryable)


def classify(error: Exception, *, action: str, target: str) -> TransportError:
    """Turn any exception of a client call into a TransportError with advice.

    Args:
        action: The IAM action of the call, such as ``sqs:ReceiveMessage``.
        target: The topic or queue of the call.

    Raises:
        SmartpipeError: *error* itself, if it is one.
        ConfigError: A credential provider failed in a way that only a change of the configuration can repair.
    """
    if isinstance(error, SmartpipeError):
        raise error
    failure = find_credential_failure(error)
    if failure is not None:
        if isinstance(failure, ConfigError):
            raise failure from error
        return failure
    if isinstance(error, ClientError):
        return _classify_response(error, action, target)
    if isinstance(error, NoCredentialsError):
        advice = "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        return TransportError("NoCredentials", advice, retryable=False)
    if isinstance(error, NoRegionError):
        return TransportError("NoRegion", "no AWS region; set AWS_REGION", retryable=False)
    if isinstance(error, ParamValidationError):
        return TransportError("InvalidParameter", f"{action} on {target}: {error}", retryable=False)
    detail = f"{action} on {target}: {redact(str(error)) or type(error).__name__}"
    if isinstance(error, SSLError):
        # A certificate that was refused will be refused again. Other TLS errors may be caused by the network.
        retryable = _CERTIFICATE_REFUSED not in detail
        return TransportError("SSLError", f"{detail}; {_tls_advice(detail)}", retryable=retryable)
    shortage = shortage_code(error)
    if shortage is not None:
        return TransportError(shortage, f"{detail}; {_shortage_advice(error, shortage)}", retryable=True)
    if isinstance(error, EndpointConnectionError):
        detail += f"; {_connection_advice(error)}"
    if isinstance(error, (BotoCoreError, OSError, TimeoutError)):  # connection errors, of botocore or Python
        return TransportError(type(error).__name__, detail, retryable=True)
    return TransportError(type(error).__name__, f"{detail} (the response could not be read)", retryable=True)


def _shortage_advice(error: BaseException, code: str) -> str:
    """Return which resource ran out and, for file descriptors, their limit."""
    shortage = f"this process has run out of {exhausted_resource(error)}"
    if code != "EMFILE":
        return shortage
    import resource  # Windows does not have it, and publishers may run there

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = f"{soft:,}" if soft == hard else f"{soft:,}, at most {hard:,}"
    return f"{shortage}: its limit is {limits} (ulimit -n); raise it, or find the connections or files that stay open"


def _connection_advice(error: BaseException) -> str:
    """Return the reason why the connection failed, if the operating system gives one."""
    unknown = next((one for one in causes(error) if isinstance(one, socket.gaierror)), None)
    if unknown is None:
        return "is AWS_ENDPOINT_URL correct, and does the network allow connections to it?"
    return (
        f"the host's name cannot be resolved ({unknown.strerror or unknown}): check this machine's DNS, and that the "
        "region and AWS_ENDPOINT_URL are spelled correctly"
    )


def _tls_advice(detail: str) -> str:
    """Return advice about a TLS error. OpenSSL describes it only in words."""
    if _CERTIFICATE_REFUSED not in detail:
        return "does the server at AWS_ENDPOINT_URL speak TLS?"
    if "mismatch" in detail:
        return "the certificate is for another name: does AWS_ENDPOINT_URL, or the network, lead to the right host?"
    if "has expired" in detail or "not yet valid" in detail:
        return f"have it renewed, or set this machine's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return "if you trust its authority, name a file with it in AWS_CA_BUNDLE, or as ca_bundle of the AWS profile"


def _classify_response(error: ClientError, action: str, target: str) -> TransportError:
    response: Mapping[str, Any] = error.response
    code = code_of(response)
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    detail = f"{action} on {target}: {response.get('Error', {}).get('Message') or code}"
    if code in THROTTLES or code in UNAVAILABLE or (status >= 500 and code not in INVALID) or status == 429:  # noqa: PLR2004
        return TransportError(code, detail, retryable=True)
    if code in EXPIRED:
        return TransportError(code, f"{detail}; the credentials have expired, waiting for new ones", retryable=True)
    if code in MISSING:
        advice = f"{target} does not exist in this account, region and prefix; run `smartpipe topology apply`"
        return TransportError(code, advice, retryable=False)
    if is_skew(response):
        return TransportError(code, f"{detail}; {_clock_advice(response)}", retryable=False)
    if code in DENIED:
        advice = f"{detail}; the credentials in use need the action {action} on {target}"
        return TransportError(code, advice, retryable=False)
    return TransportError(code, detail, retryable=False)


def is_skew(response: Mapping[str, Any]) -> bool:
    """Return whether a parsed response refuses the signature's time. AWS does not always say so."""
    message = str(response.get("Error", {}).get("Message"))
    return code_of(response) in SKEWED or any(words in message for words in _SKEW_MESSAGES)


def _clock_advice(response: Mapping[str, Any]) -> str:
    """Return this machine's time and AWS's. SigV4 tolerates a difference of five minutes."""
    here = datetime.now(UTC)
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not date:
        return f"check this machine's clock, it says {here:%Y-%m-%d %H:%M:%S} UTC"
    there = parsedate_to_datetime(date)
    return (
        f"this machine's clock says {here:%Y-%m-%d %H:%M:%S} UTC, and AWS's {there:%Y-%m-%d %H:%M:%S} UTC: "
        "set the clock if they are minutes apart"
    )
