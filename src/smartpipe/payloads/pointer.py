"""The body that stands for another one in S3, as AWS's Extended Client Libraries write and read it. Pure.

Source: awslabs/payload-offloading-java-common-lib-for-aws, ``PayloadS3Pointer``; the attribute is that of
awslabs/amazon-sqs-java-extended-client-lib, ``SQSExtendedClientConstants``, with its older name.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from smartpipe.errors import DecodeError
from smartpipe.message import Payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.message import Attribute

SIZE_ATTRIBUTE = "ExtendedPayloadSize"
"""The reserved attribute: the size in bytes of what is in S3. It is what marks a pointer."""
OLD_SIZE_ATTRIBUTE = "SQSLargePayloadSize"
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
        class_, fields = json.loads(pointer)
        if class_ not in {_CLASS, _OLD_CLASS}:
            raise ValueError(f"{class_!r} is none of its classes")  # noqa: TRY301 - told with the others
        bucket, key = fields["s3BucketName"], fields["s3Key"]
        if not (isinstance(bucket, str) and isinstance(key, str) and bucket and key):
            raise ValueError("bucket or key is missing")  # noqa: TRY301
    except (ValueError, TypeError, KeyError) as error:
        detail = f"the attribute {SIZE_ATTRIBUTE} says that the body points to S3, and it does not: {error!r}"
        raise DecodeError("not-a-pointer", detail) from None
    return Payload(bucket, key)
