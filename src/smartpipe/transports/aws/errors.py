"""What an AWS error means. Pure: every spelling of every broker becomes one code and one advice."""

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

from smartpipe.errors import SmartpipeError, TransportError
from smartpipe.exhaustion import causes, exhausted_resource, shortage_code
from smartpipe.message import Failure
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
# No botocore retry mode knows all of these; measured against a scripted server, 1.43.
THROTTLES = frozenset({
    "KMS.ThrottlingException", "KMSThrottling", "KMSThrottled", "KmsThrottled", "LimitExceededException", "OverLimit",
    "PriorRequestNotComplete", "ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled",
    "RequestThrottledException", "SlowDown", "Throttled", "ThrottledException", "Throttling", "ThrottlingException",
    "TooManyRequestsException",
})  # fmt: skip
UNAVAILABLE = frozenset({
    "InternalError", "InternalFailure", "InternalServerError", "RequestTimeout", "RequestTimeoutException",
    "ServiceUnavailable", "ServiceUnavailableException",
})  # fmt: skip
# New credentials may arrive with the next refresh, so the call may succeed later.
EXPIRED = frozenset({"ExpiredToken", "RequestExpired"})
UNKNOWN = frozenset({"InvalidClientTokenId", "UnrecognizedClientException"})
STALE = EXPIRED | UNKNOWN
"""Refused for the credentials themselves, and not for what they may do: others may be accepted."""
DENIED = UNKNOWN | {"AccessDenied", "SignatureDoesNotMatch"}
SKEWED = frozenset({"InvalidSignatureException", "RequestTimeTooSkewed"})
# SNS and STS have one code for a wrong secret and a wrong clock, and tell them apart in words only.
_SKEW_IN_WORDS = ("Signature expired", "Signature not yet current")
MISSING = frozenset({"QueueDoesNotExist", "NotFound"})
_REFUSED = "CERTIFICATE_VERIFY_FAILED"


def normalise(code: str) -> str:
    """Return *code* without its legacy prefix and under its one name."""
    code = code.rpartition("#")[2].removeprefix(_LEGACY_PREFIX)
    return _ALIASES.get(code, code)


def code_of(answer: Mapping[str, Any]) -> str:
    """Return the one name of what went wrong in a parsed answer, ``Unknown`` where it has none."""
    fault = answer.get("Error", {})
    return normalise(str(fault.get("QueryErrorCode") or fault.get("Code") or "Unknown"))


def entry_failure(index: int, entry: Mapping[str, Any]) -> Failure:
    """Read one element of a batch answer's ``Failed`` list."""
    code = normalise(str(entry.get("Code", "Unknown")))
    retryable = not entry.get("SenderFault", False) or code in THROTTLES or code in UNAVAILABLE
    return Failure(index, code, str(entry.get("Message") or code), retryable)


def classify(error: Exception, *, action: str, target: str) -> TransportError:
    """Turn any exception of a client call into a TransportError that says what to do.

    Args:
        action: The IAM action of the call, as in ``sqs:ReceiveMessage``.
        target: The topic or queue it was for.

    Raises:
        SmartpipeError: *error* itself, when it is smartpipe's own.
    """
    if isinstance(error, SmartpipeError):
        raise error
    if isinstance(error, ClientError):
        return _from_answer(error, action, target)
    if isinstance(error, NoCredentialsError):
        advice = "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        return TransportError("NoCredentials", advice, retryable=False)
    if isinstance(error, NoRegionError):
        return TransportError("NoRegion", "no AWS region; set AWS_REGION", retryable=False)
    if isinstance(error, ParamValidationError):
        return TransportError("InvalidParameter", f"{action} on {target}: {error}", retryable=False)
    detail = f"{action} on {target}: {redact(str(error)) or type(error).__name__}"
    if isinstance(error, SSLError):
        # Of a certificate that is refused, the next try will think no better; other faults of TLS may be the line's.
        return TransportError("SSLError", f"{detail}; {_tls_mend(detail)}", retryable=_REFUSED not in detail)
    shortage = shortage_code(error)
    if shortage is not None:
        return TransportError(shortage, f"{detail}; {_shortage(error, shortage)}", retryable=True)
    if isinstance(error, EndpointConnectionError):
        detail += f"; {_unreachable(error)}"
    if isinstance(error, (BotoCoreError, OSError, TimeoutError)):  # connection faults, in botocore's words or Python's
        return TransportError(type(error).__name__, detail, retryable=True)
    return TransportError(type(error).__name__, f"{detail} (an answer that could not be read)", retryable=True)


def _shortage(error: BaseException, code: str) -> str:
    """Say which resource ran out and, for file descriptors, how many there are."""
    said = f"this process has run out of {exhausted_resource(error)}"
    if code != "EMFILE":
        return said
    import resource  # which Windows does not have, where one may publish

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = f"{soft:,}" if soft == hard else f"{soft:,}, at most {hard:,}"
    return f"{said}: its limit is {limits} (ulimit -n); raise it, or find the connections or files that stay open"


def _unreachable(error: BaseException) -> str:
    """Say why there is no connection, as far as the operating system says it."""
    unknown = next((one for one in causes(error) if isinstance(one, socket.gaierror)), None)
    if unknown is None:
        return "does AWS_ENDPOINT_URL, or the network, lead there?"
    return (
        f"the host's name cannot be resolved ({unknown.strerror or unknown}): check this machine's DNS, and that the "
        "region and AWS_ENDPOINT_URL are spelled correctly"
    )


def _tls_mend(detail: str) -> str:
    """Say what helps against a fault of TLS, which OpenSSL tells in words only."""
    if _REFUSED not in detail:
        return "does what AWS_ENDPOINT_URL names speak TLS?"
    if "mismatch" in detail:
        return "the certificate is for another name: does AWS_ENDPOINT_URL, or the network, lead to the right host?"
    if "has expired" in detail or "not yet valid" in detail:
        return f"have it renewed, or set this machine's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return "if its authority is to be trusted, name a file with it in AWS_CA_BUNDLE, or as ca_bundle of the AWS profile"


def _from_answer(error: ClientError, action: str, target: str) -> TransportError:
    answer: Mapping[str, Any] = error.response
    code = code_of(answer)
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{action} on {target}: {answer.get('Error', {}).get('Message') or code}"
    if code in THROTTLES or code in UNAVAILABLE or status >= 500 or status == 429:  # noqa: PLR2004
        return TransportError(code, said, retryable=True)
    if code in EXPIRED:
        return TransportError(code, f"{said}; the credentials have expired, waiting for new ones", retryable=True)
    if code in MISSING:
        advice = f"{target} does not exist in this account, region and prefix; run `smartpipe topology apply`"
        return TransportError(code, advice, retryable=False)
    if is_skew(answer):
        return TransportError(code, f"{said}; {_clocks(answer)}", retryable=False)
    if code in DENIED:
        advice = f"{said}; the credentials in use need the action {action} on {target}"
        return TransportError(code, advice, retryable=False)
    return TransportError(code, said, retryable=False)


def is_skew(answer: Mapping[str, Any]) -> bool:
    """Whether a parsed answer complains of the clock, as far as AWS tells that from a wrong secret."""
    message = str(answer.get("Error", {}).get("Message"))
    return code_of(answer) in SKEWED or any(words in message for words in _SKEW_IN_WORDS)


def _clocks(answer: Mapping[str, Any]) -> str:
    """Put this machine's clock beside AWS's: SigV4 tolerates five minutes between them."""
    here = datetime.now(UTC)
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not date:
        return f"check this machine's clock, it says {here:%Y-%m-%d %H:%M:%S} UTC"
    there = parsedate_to_datetime(date)
    return (
        f"this machine's clock says {here:%Y-%m-%d %H:%M:%S} UTC and AWS's {there:%Y-%m-%d %H:%M:%S} UTC: "
        "set the clock if they are minutes apart"
    )
