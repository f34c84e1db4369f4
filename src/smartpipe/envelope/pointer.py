"""The body that stands for another one in S3, as AWS's Extended Client Libraries write and read it. Pure.

Source: awslabs/payload-offloading-java-common-lib-for-aws, ``PayloadS3Pointer``; the attribute is that of
awslabs/amazon-sqs-java-extended-client-lib, ``SQSExtendedClientConstants``, with its older name.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from smartpipe.characters import CONTROL
from smartpipe.errors import DecodeError
from smartpipe.message import Payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.message import Attribute

SIZE_ATTRIBUTE = "ExtendedPayloadSize"
"""The reserved attribute: the size in bytes of what is in S3. It is what marks a pointer."""
OLD_SIZE_ATTRIBUTE = "SQSLargePayloadSize"
MAX_KEY_BYTES = 1_024
"""Amazon S3, "Naming Amazon S3 objects"."""
MAX_POINTER_LENGTH = 8_192
"""A key of 1,024 bytes, every one of them escaped in JSON, with all that is around it."""
MAX_SAID_LENGTH = 200
_CLASS = "software.amazon.payloadoffloading.PayloadS3Pointer"
_OLD_CLASS = "com.amazon.sqs.javamessaging.MessageS3Pointer"


def pointer_to(bucket: str, key: str) -> str:
    """Return the body that stands for the object."""
    return json.dumps([_CLASS, {"s3BucketName": bucket, "s3Key": key}], separators=(",", ":"))


def is_pointer(attributes: Mapping[str, Attribute]) -> bool:
    """Return whether the attributes say that the body is in S3."""
    return SIZE_ATTRIBUTE in attributes or OLD_SIZE_ATTRIBUTE in attributes


def payload_at(pointer: str) -> Payload:
    """Return where *pointer* points to.

    Raises:
        DecodeError: It is none.
    """
    try:
        if len(pointer) > MAX_POINTER_LENGTH:
            raise ValueError(f"it is longer than {MAX_POINTER_LENGTH:,} characters")  # noqa: TRY301 - with the others
        class_, fields = json.loads(pointer)
        if class_ not in {_CLASS, _OLD_CLASS}:
            raise ValueError("its class is not that of a pointer")  # noqa: TRY301
        bucket, key = fields["s3BucketName"], fields["s3Key"]
        if not (isinstance(bucket, str) and isinstance(key, str) and bucket and key):
            raise ValueError("bucket or key is missing")  # noqa: TRY301
        if len(key.encode()) > MAX_KEY_BYTES or CONTROL.search(bucket + key):
            raise ValueError("the key is too long, or has control characters")  # noqa: TRY301
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # of UnicodeError too: a lone surrogate
        said = repr(error)[:MAX_SAID_LENGTH]
        detail = f"the attribute {SIZE_ATTRIBUTE} says that the body points to S3, and it does not: {said}"
        raise DecodeError("not-a-pointer", detail) from None
    return Payload(bucket, key)
