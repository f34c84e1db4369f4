"""Payloads in S3."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
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
from smartpipe.transports.aws.client import put_request, region_of
from smartpipe.transports.aws.clients import open_client, open_session
from smartpipe.transports.aws.credentials import refresh_when_refused
from smartpipe.transports.aws.errors import DENIED, SKEWED, classify, is_skew

if TYPE_CHECKING:
    from smartpipe.errors import TransportError
    from smartpipe.message import Payload

CHUNK_BYTES = 262_144
_OF_THE_PROCESS = (DENIED | SKEWED | {"AccountProblem", "NoCredentials", "NoRegion", "NotSignedUp", "SSLError"}) - {
    "AccessDenied"
}
"""Refusals that say nothing about the object: no call of this process would succeed, so the message waits."""
_NEVER_READ = (
    EndpointProviderError,
    UnsupportedS3AccesspointConfigurationError,
    UnsupportedS3ArnError,
    UnsupportedS3ConfigurationError,
)
"""botocore's exceptions for the name of a bucket or access point, raised before it connects to anything."""


class S3ObjectStore:
    """S3, or whatever speaks like it at ``AWS_ENDPOINT_URL``; region and credentials are AWS's own variables.

    Every call names the account that the bucket has to belong to (``ExpectedBucketOwner``): that of the payload, else
    ``SMARTPIPE_ACCOUNT_ID``, else the account of the credentials, which STS is asked for once if botocore does not
    know it.

    Raises:
        ConfigError: No region, a CA bundle that cannot be read, or a variable of AWS's that no header may hold.
    """

    def __init__(self) -> None:
        self._session = open_session()
        refresh_when_refused(self._session)
        self._region = region_of(self._session)
        self._account_id = AwsSettings.load().account_id
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._client: Any = None

    async def put(self, payload: Payload) -> None:
        """Call PutObject."""
        client, account_id = await self._open()
        try:
            await client.put_object(**put_request(payload, account_id))
        except Exception as error:
            raise classify(error, action="s3:PutObject", target=payload.url) from error

    async def get(self, payload: Payload, limit_bytes: int) -> str:
        """Call GetObject, and read no more than *limit_bytes* and one of the body, whatever length it is said to have.

        S3 answers ``AccessDenied`` for a missing object if the caller may not list the bucket, and for a bucket of
        another account. So these are treated alike, and like every other refusal that S3 will repeat.
        """
        client, account_id = await self._open()
        owner = payload.owner or account_id
        try:
            answer = await client.get_object(Bucket=payload.bucket, Key=payload.key, ExpectedBucketOwner=owner)
            async with answer["Body"] as stream:
                if int(answer.get("ContentLength") or 0) > limit_bytes:
                    raise payload_too_long(payload, limit_bytes)  # noqa: TRY301 - the stream is to be closed
                data = await _read(stream, limit_bytes)
            if len(data) > limit_bytes:
                raise payload_too_long(payload, limit_bytes)  # noqa: TRY301
            return data.decode()
        except PayloadError:
            raise
        except UnicodeDecodeError as error:
            raise payload_missing(payload, f"it is no text in UTF-8: {error.reason}") from None
        except Exception as error:
            raise _fault(error, payload, owner) from error

    async def aclose(self) -> None:
        """Close the client."""
        self._client = None
        await self._stack.aclose()

    async def _open(self) -> tuple[Any, str]:
        """Return the client, and the account that owns buckets unless a payload says otherwise.

        Raises:
            TransportError: STS could not be asked for the account; ``SMARTPIPE_ACCOUNT_ID`` spares the question.
        """
        async with self._opening:
            if self._client is None:
                self._client = await open_client(self._stack, self._session, "s3", self._region)
            if self._account_id is None:
                self._account_id = await self._account_of_credentials()
            return self._client, self._account_id

    async def _account_of_credentials(self) -> str:
        known: Any = await self._session.get_credentials()
        try:
            frozen = await known.get_frozen_credentials() if known else None
            if frozen is not None and frozen.account_id:
                return str(frozen.account_id)
            async with AsyncExitStack() as stack:
                sts = await open_client(stack, self._session, "sts", self._region)
                return str((await sts.get_caller_identity())["Account"])
        except Exception as error:
            target = "the credentials' account (SMARTPIPE_ACCOUNT_ID would spare the question)"
            raise classify(error, action="sts:GetCallerIdentity", target=target) from error


async def _read(stream: Any, limit_bytes: int) -> bytes:
    data = bytearray()
    while len(data) <= limit_bytes:
        chunk = await stream.read(min(CHUNK_BYTES, limit_bytes + 1 - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _fault(error: Exception, payload: Payload, owner: str) -> PayloadError | TransportError:
    """Return a PayloadError for a refusal that S3 will repeat; the rest is an outage of S3 or of this process."""
    if isinstance(error, _NEVER_READ):
        return payload_missing(payload, str(error))
    fault = classify(error, action="s3:GetObject", target=payload.url)
    answer = getattr(error, "response", {})
    if fault.retryable or fault.code in _OF_THE_PROCESS or is_skew(answer):
        return fault
    if fault.code == "AccessDenied":
        return payload_missing(
            payload, f"{fault}; the bucket has to belong to account {owner} (?owner= of its URL says another)"
        )
    return payload_missing(payload, str(fault))
