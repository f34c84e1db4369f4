"""The encoding of bodies: which are compressed, and which are stored in S3. Pure; publishers and the outbox use it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from smartpipe.envelope.compression import ENCODING_ATTRIBUTE, check_compression, compress, decompress
from smartpipe.envelope.pointer import OLD_SIZE_ATTRIBUTE, SIZE_ATTRIBUTE, write_pointer
from smartpipe.errors import ConfigError
from smartpipe.keys import compose_bounded
from smartpipe.limits import MAX_MESSAGE_BYTES
from smartpipe.message import Attribute, Payload, size_bytes
from smartpipe.settings import PayloadSettings
from smartpipe.urls import describe_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.message import OutgoingMessage

RESERVED_ATTRIBUTES = frozenset({ENCODING_ATTRIBUTE, SIZE_ATTRIBUTE, OLD_SIZE_ATTRIBUTE})
"""A message with one of these attributes has an encoded body."""
MAX_PREFIX_LENGTH = 200
"""The lifecycle rule is named after the prefix, and S3 limits names of rules to 255 characters."""
MAX_NAME_LENGTH = 500
"""The maximum length of a key after the prefix. S3 limits keys to 1,024 bytes."""
BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
ARN = rf"{BUCKET}|arn:[a-z0-9-]+:s3[a-z0-9-]*:[a-z0-9-]*:[0-9]{{12}}:accesspoint[/:][A-Za-z0-9.-]+"
"""The name of a bucket, or the ARN of an access point, whose name may follow a slash."""


@dataclass(frozen=True, slots=True)
class PayloadLocation:
    """A bucket, and the prefix of its keys, where bodies are stored.

    Args:
        scheme: ``s3``; or ``memory`` for tests, which keeps bodies in the memory of the process.
        prefix: Goes before each key; ends with a slash, or is empty.
        owner: The account that must own the bucket; None: that of ``SMARTPIPE_ACCOUNT_ID``, or of the credentials.
    """

    scheme: str
    bucket: str
    prefix: str
    owner: str | None = None

    @classmethod
    def parse(cls, url: str, *, setting: str = "SMARTPIPE_CLAIM_CHECK_URL", bucket: str = BUCKET) -> Self:
        """Parse ``s3://BUCKET/PREFIX?owner=ACCOUNT``, in which prefix and owner are optional.

        Args:
            setting: The setting that contains the URL, for the error message.
            bucket: The regular expression of a bucket.

        Raises:
            ConfigError: The URL has another form.
        """
        match = re.fullmatch(rf"(s3|memory)://({bucket})(/[!-~]*?)?(?:\?owner=([0-9]{{12}}))?", url)
        if match is None or "?owner=" in (match[3] or ""):
            raise ConfigError(
                f"{setting}={describe_url(url)}: write it as s3://my-bucket or s3://my-bucket/folder; for a bucket of "
                "another account, as s3://my-bucket/folder?owner=123456789012"
            )
        prefix = (match[3] or "").strip("/")
        if len(prefix) > MAX_PREFIX_LENGTH:
            raise ConfigError(
                f"{setting}={url}: its path has {len(prefix)} characters, and at most {MAX_PREFIX_LENGTH} fit into the "
                "names of S3 keys and lifecycle rules; shorten it"
            )
        owner = match[4] or (match[2].split(":")[4] if match[2].startswith("arn:") else None)
        return cls(match[1], match[2], f"{prefix}/" if prefix else "", owner)

    @property
    def url(self) -> str:
        """The location as a URL, without the owner."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class BodyEncoding:
    """How the publishers of this environment encode large bodies, and the limits of its consumers.

    Args:
        claim_check: The location for bodies that are too large; None: events with such bodies are refused.
        claim_check_bytes: Bodies of messages above this size are too large; None: those above the limit of the topic
            or queue.
        compression: ``gzip`` or ``zstd``; None: nothing is compressed.
        compression_bytes: Messages of at least this size are compressed.
        payload_limit_bytes: The longest body that consumers read from S3.
        decompressed_limit_bytes: The longest body that consumers decompress a message to.
        limit_objects: The maximum number of objects and arrays in a body.
    """

    claim_check: PayloadLocation | None = None
    claim_check_bytes: int | None = None
    compression: str | None = None
    compression_bytes: int = 0
    payload_limit_bytes: int = 0
    decompressed_limit_bytes: int = 4_194_304
    limit_objects: int = 65_536
    untouched_bytes: int = field(init=False)
    """Messages up to this size are not encoded, unless they exceed the limit of their topic or queue."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``SMARTPIPE_CLAIM_CHECK_URL`` and the other settings of payloads.

        Raises:
            ConfigError: A setting is wrong, or a package that it needs is not installed.
        """
        settings = PayloadSettings.load()
        if settings.compression is not None:
            check_compression(settings.compression)
        return cls(
            None if settings.claim_check_url is None else PayloadLocation.parse(settings.claim_check_url),
            settings.claim_check_bytes,
            settings.compression,
            settings.compression_bytes,
            settings.payload_limit_bytes,
            settings.decompressed_limit_bytes,
            settings.payload_limit_objects,
        )

    def __post_init__(self) -> None:
        """Calculate once the size that every message is compared with."""
        compressed_from = self.compression_bytes if self.compression else MAX_MESSAGE_BYTES
        stored_above = self.claim_check_bytes if self.claim_check else None
        object.__setattr__(self, "untouched_bytes", min(compressed_from - 1, stored_above or MAX_MESSAGE_BYTES))

    def encode(
        self, message: OutgoingMessage, event_id: str, *, limit_bytes: int, free_attributes: int
    ) -> OutgoingMessage:
        """Return *message* with its body compressed, replaced by a pointer to S3, both, or unchanged.

        The key in S3 consists of the event's id and the body's SHA-256. If the message is sent again, the same object
        is written again. No other body overwrites it: neither one that another service publishes under this id, nor
        one from the handler's next attempt.

        Args:
            limit_bytes: The limit of its topic or queue.
            free_attributes: The number of attributes that can be added to the message.
        """
        threshold = min(self.claim_check_bytes or limit_bytes, limit_bytes)
        if self.compression and free_attributes and self.compression_bytes <= message.size_bytes <= MAX_MESSAGE_BYTES:
            smaller = self._compress(message, self.compression)
            # Keep the last free attribute for the pointer, unless compression makes the pointer unnecessary.
            if smaller.size_bytes < message.size_bytes and (free_attributes > 1 or smaller.size_bytes <= threshold):
                message, free_attributes = smaller, free_attributes - 1
        too_large = message.size_bytes > threshold
        if self.claim_check and free_attributes and too_large and message.size_bytes <= self.payload_limit_bytes:
            return _offload(message, self.claim_check, event_id)
        return message

    def _compress(self, message: OutgoingMessage, compression: str) -> OutgoingMessage:
        return _replace_body(
            message, compress(message.body, compression), ENCODING_ATTRIBUTE, Attribute("String", compression)
        )


NO_ENCODING = BodyEncoding()


def _offload(message: OutgoingMessage, location: PayloadLocation, event_id: str) -> OutgoingMessage:
    data = message.body.encode()
    key = location.prefix + compose_bounded(event_id, sha256(data).hexdigest(), max_length=MAX_NAME_LENGTH)
    size = Attribute("Number", str(len(data)))
    pointer = _replace_body(message, write_pointer(location.bucket, key), SIZE_ATTRIBUTE, size)
    return pointer._replace(payload=Payload(location.bucket, key, message.body, location.owner))


def _replace_body(message: OutgoingMessage, body: str, name: str, value: Attribute) -> OutgoingMessage:
    attributes: Mapping[str, Attribute] = {**message.attributes, name: value}
    return message._replace(body=body, attributes=attributes, size_bytes=size_bytes(body, attributes))


def decompress_body(body: str, attributes: Mapping[str, Attribute], limit_bytes: int) -> str:
    """Return *body*, decompressed if its attributes say that it is compressed. Raises the errors of ``decompress``."""
    encoding = attributes.get(ENCODING_ATTRIBUTE)
    return body if encoding is None else decompress(body, str(encoding.value), limit_bytes)
