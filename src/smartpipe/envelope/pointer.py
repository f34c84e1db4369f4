"""Reads and writes bodies that point to a payload in S3, in the format of AWS's Extended Client Libraries. Pure.

Source: awslabs/payload-offloading-java-common-lib-for-aws, ``PayloadS3Pointer``. The attribute, with its older name, is
from awslabs/amazon-sqs-java-extended-client-lib, ``SQSExtendedClientConstants``.
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
"""The reserved attribute: the size of the payload, in bytes. It marks a message as a pointer."""
OLD_SIZE_ATTRIBUTE = "SQSLargePayloadSize"
MAX_KEY_BYTES = 1_024
"""Source: Amazon S3, "Naming Amazon S3 objects"."""
MAX_POINTER_LENGTH = 8_192
"""Enough for a key of 1,024 bytes that are all escaped in JSON."""
MAX_ERROR_LENGTH = 200
_CLASS = "software.amazon.payloadoffloading.PayloadS3Pointer"
_OLD_CLASS = "com.amazon.sqs.javamessaging.MessageS3Pointer"


def write_pointer(bucket: str, key: str) -> str:
    """Return the body that points to the object."""
    return json.dumps([_CLASS, {"s3BucketName": bucket, "s3Key": key}], separators=(",", ":"))


def is_pointer(attributes: Mapping[str, Attribute]) -> bool:
    """Return whether the attributes mark the body as a pointer to S3."""
    return SIZE_ATTRIBUTE in attributes or OLD_SIZE_ATTRIBUTE in attributes


def read_pointer(pointer: str) -> Payload:
    """Return the payload that *pointer* points to, without its text.

    Raises:
        DecodeError: It is not a valid pointer.
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
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # a lone surrogate raises UnicodeError, as well
        reason = repr(error)[:MAX_ERROR_LENGTH]
        detail = f"the attribute {SIZE_ATTRIBUTE} says that the body points to S3, but it does not: {reason}"
        raise DecodeError("not-a-pointer", detail) from None
    return Payload(bucket, key)
