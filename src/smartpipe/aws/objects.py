"""Payloads in S3."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from smartpipe.aws.client import put_request, region_of
from smartpipe.aws.clients import open_client, open_session
from smartpipe.aws.credentials import refresh_when_refused
from smartpipe.aws.faults import classify
from smartpipe.payloads.objects import missing, too_long

if TYPE_CHECKING:
    from smartpipe.message import Payload


_MISSING = frozenset({"AccessDenied", "InvalidObjectState", "NoSuchKey", "NotFound"})


class S3Objects:
    """S3, or whatever speaks like it at ``AWS_ENDPOINT_URL``; region and credentials are AWS's own variables.

    Raises:
        ConfigError: No region, a CA bundle that cannot be read, or a variable of AWS's that no header may hold.
    """

    def __init__(self) -> None:
        self._session = open_session()
        refresh_when_refused(self._session)
        self._region = region_of(self._session)
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._client: Any = None

    async def put(self, payload: Payload) -> None:
        """Call PutObject."""
        client = await self._open()
        try:
            await client.put_object(**put_request(payload))
        except Exception as error:
            raise classify(error, action="s3:PutObject", target=payload.url) from error

    async def get(self, payload: Payload, limit_bytes: int) -> str:
        """Call GetObject.

        A missing object is ``AccessDenied`` to whoever may not list the bucket, so the two are treated alike.
        """
        client = await self._open()
        try:
            answer = await client.get_object(Bucket=payload.bucket, Key=payload.key)
            async with answer["Body"] as stream:
                if int(answer.get("ContentLength", 0)) > limit_bytes:
                    raise too_long(payload, limit_bytes)  # noqa: TRY301 - the stream is to be closed
                data: bytes = await stream.read()
            return data.decode()
        except UnicodeDecodeError as error:
            raise missing(payload, f"it is no text in UTF-8: {error.reason}") from None
        except Exception as error:
            fault = classify(error, action="s3:GetObject", target=payload.url)
            if fault.code in _MISSING:
                raise missing(payload, str(fault)) from error
            raise fault from error  # the surroundings are at fault, not the message

    async def aclose(self) -> None:
        """Close the client."""
        self._client = None
        await self._stack.aclose()

    async def _open(self) -> Any:
        async with self._opening:
            if self._client is None:
                self._client = await open_client(self._stack, self._session, "s3", self._region)
            return self._client
