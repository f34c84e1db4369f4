"""Payloads in S3."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from botocore.exceptions import (
    EndpointProviderError,
    UnsupportedS3AccesspointConfigurationError,
    UnsupportedS3ArnError,
    UnsupportedS3ConfigurationError,
)

from smartpipe.envelope.object_store import payload_missing, payload_too_long
from smartpipe.errors import PayloadError
from smartpipe.settings import AwsSettings
from smartpipe.transports.aws.addresses import ACCOUNT
from smartpipe.transports.aws.entries import put_object_request
from smartpipe.transports.aws.errors import DENIED, SKEWED, classify, is_skew
from smartpipe.transports.aws.session import AwsSession

if TYPE_CHECKING:
    from smartpipe.errors import TransportError
    from smartpipe.message import Payload

CHUNK_BYTES = 262_144
_OF_THE_PROCESS = (DENIED | SKEWED | {"AccountProblem", "NoCredentials", "NoRegion", "NotSignedUp", "SSLError"}) - {
    "AccessDenied"
}
"""Refusals that say nothing about the object: every call of this process would fail, so the message waits."""
_INVALID_NAMES = (
    EndpointProviderError,
    UnsupportedS3AccesspointConfigurationError,
    UnsupportedS3ArnError,
    UnsupportedS3ConfigurationError,
)
"""botocore's exceptions for the name of a bucket or access point. It raises them before it connects."""


class S3ObjectStore:
    """S3, or a compatible service at ``AWS_ENDPOINT_URL``. Region and credentials come from the variables of AWS.

    Every call names the account that must own the bucket (``ExpectedBucketOwner``): that of the payload, else
    ``SMARTPIPE_ACCOUNT_ID``, else the account of the credentials. If botocore does not know the last one, the store
    calls STS once.

    Raises:
        ConfigError: As AwsSession, or a setting has an error.
    """

    def __init__(self) -> None:
        settings = AwsSettings.load()
        self._session = AwsSession(settings)
        self._account_id = settings.account_id
        self._opening = asyncio.Lock()

    async def put(self, payload: Payload) -> None:
        """Call PutObject."""
        client, account_id = await self._open()
        try:
            await client.put_object(**put_object_request(payload, account_id))
        except Exception as error:
            raise classify(error, action="s3:PutObject", target=payload.url) from error

    async def get(self, payload: Payload, limit_bytes: int) -> str:
        """Call GetObject. At most *limit_bytes* + 1 of the body are read, even if Content-Length is wrong.

        S3 answers ``AccessDenied`` for a missing object if the caller may not list the bucket, and for a bucket of
        another account. So these are treated alike, and like every other refusal that S3 will repeat.
        """
        client, account_id = await self._open()
        owner = payload.owner or account_id
        try:
            response = await client.get_object(Bucket=payload.bucket, Key=payload.key, ExpectedBucketOwner=owner)
            async with response["Body"] as stream:
                if int(response.get("ContentLength") or 0) > limit_bytes:
                    raise payload_too_long(payload, limit_bytes)  # noqa: TRY301 - the stream has to be closed
                data = await _read(stream, limit_bytes)
            if len(data) > limit_bytes:
                raise payload_too_long(payload, limit_bytes)  # noqa: TRY301
            return data.decode()
        except PayloadError:
            raise
        except UnicodeDecodeError as error:
            raise payload_missing(payload, f"it is not text in UTF-8: {error.reason}") from None
        except Exception as error:
            raise _classify_get(error, payload, owner) from error

    async def aclose(self) -> None:
        """Close the client. The store cannot be used after it."""
        await self._session.aclose()

    async def _open(self) -> tuple[Any, str]:
        """Return the client, and the account that owns buckets unless a payload names another.

        Raises:
            TransportError: The call of STS for the account failed. ``SMARTPIPE_ACCOUNT_ID`` makes it unnecessary.
        """
        client = await self._session.client("s3")
        if self._account_id is None:
            async with self._opening:
                if self._account_id is None:
                    self._account_id = await self._find_account()
        return client, self._account_id

    async def _find_account(self) -> str:
        try:
            found: Any = await self._session.find_credentials()
            if found is not None and found.frozen.account_id:
                return str(found.frozen.account_id)
            sts = await self._session.client("sts")
            return str((await sts.get_caller_identity())["Account"])
        except Exception as error:
            raise classify(error, action="sts:GetCallerIdentity", target=ACCOUNT) from error


async def _read(stream: Any, limit_bytes: int) -> bytes:
    data = bytearray()
    while len(data) <= limit_bytes:
        chunk = await stream.read(min(CHUNK_BYTES, limit_bytes + 1 - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _classify_get(error: Exception, payload: Payload, owner: str) -> PayloadError | TransportError:
    """Return a PayloadError for a refusal that S3 will repeat. Other errors are outages of S3 or of this process."""
    if isinstance(error, _INVALID_NAMES):
        return payload_missing(payload, str(error))
    classified = classify(error, action="s3:GetObject", target=payload.url)
    response = getattr(error, "response", {})
    if classified.retryable or classified.code in _OF_THE_PROCESS or is_skew(response):
        return classified
    if classified.code == "AccessDenied":
        return payload_missing(
            payload, f"{classified}; the bucket must belong to account {owner} (name another one by ?owner= in its URL)"
        )
    return payload_missing(payload, str(classified))
