"""Which bodies are compressed, and which wait in S3. Pure; both publishers and the outbox use it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from smartpipe.envelope.compression import ENCODING_ATTRIBUTE, check_encoding, compress, decompress
from smartpipe.envelope.pointer import OLD_SIZE_ATTRIBUTE, SIZE_ATTRIBUTE, pointer_to
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
MAX_PREFIX_LENGTH = 200
"""The lifecycle rule is called after it, and S3's names of rules end at 255 characters."""
MAX_NAME_LENGTH = 500
"""Of what follows the prefix; S3's keys end at 1,024 bytes."""
BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
ARN = rf"{BUCKET}|arn:[a-z0-9-]+:s3[a-z0-9-]*:[a-z0-9-]*:[0-9]{{12}}:accesspoint[/:][A-Za-z0-9.-]+"
"""A bucket's name, or the ARN of an access point, whose name may come after a slash."""


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """Where large bodies wait.

    Args:
        scheme: ``s3``; or ``memory`` for tests, which is gone with the process.
        prefix: Goes before each key; ends with a slash, or is empty.
        owner: The account that the bucket has to belong to; None: that of ``SMARTPIPE_ACCOUNT_ID``, or of the
            credentials.
    """

    scheme: str
    bucket: str
    prefix: str
    owner: str | None = None

    @classmethod
    def at(cls, url: str, *, setting: str = "SMARTPIPE_CLAIM_CHECK_URL", bucket: str = BUCKET) -> Self:
        """Read ``s3://BUCKET/PREFIX?owner=ACCOUNT``, of which prefix and owner may be missing.

        Args:
            setting: Where it is from, for the error.
            bucket: The regular expression of a bucket.

        Raises:
            ConfigError: It is something else.
        """
        match = re.fullmatch(rf"(s3|memory)://({bucket})(/[!-~]*?)?(?:\?owner=([0-9]{{12}}))?", url)
        if match is None or "?owner=" in (match[3] or ""):
            raise ConfigError(
                f"{setting}={describe_url(url)}: it must be like s3://my-bucket or s3://my-bucket/folder; of another "
                "account, like s3://my-bucket/folder?owner=123456789012"
            )
        prefix = (match[3] or "").strip("/")
        if len(prefix) > MAX_PREFIX_LENGTH:
            raise ConfigError(
                f"{setting}={url}: its path has {len(prefix)} characters, and at most {MAX_PREFIX_LENGTH} fit into the "
                "names of S3's keys and rules; shorten it"
            )
        owner = match[4] or (match[2].split(":")[4] if match[2].startswith("arn:") else None)
        return cls(match[1], match[2], f"{prefix}/" if prefix else "", owner)

    @property
    def url(self) -> str:
        """Where it is, as it is set."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class BodyEncoding:
    """How this environment's publishers make bodies fit.

    Args:
        claim_check: Where bodies wait that are too large; None: they are refused.
        claim_check_bytes: What is too large; None: what the topic or queue does not take.
        encoding: ``gzip`` or ``zstd``; None: nothing is compressed.
        compression_bytes: From which size on.
        payload_limit_bytes: The longest body that consumers read from S3.
        decompressed_limit_bytes: The longest body that consumers decompress a message to.
        limit_objects: How many objects and arrays a body may have.
    """

    claim_check: ClaimCheck | None = None
    claim_check_bytes: int | None = None
    encoding: str | None = None
    compression_bytes: int = 0
    payload_limit_bytes: int = 0
    decompressed_limit_bytes: int = 4_194_304
    limit_objects: int = 65_536
    untouched_bytes: int = field(init=False)
    """No message up to this size is packed, but for one that its topic does not take."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``SMARTPIPE_CLAIM_CHECK_URL`` and the other settings of payloads.

        Raises:
            ConfigError: Faulty settings, or a package that is not installed.
        """
        settings = PayloadSettings.load()
        if settings.compression is not None:
            check_encoding(settings.compression)
        return cls(
            None if settings.claim_check_url is None else ClaimCheck.at(settings.claim_check_url),
            settings.claim_check_bytes,
            settings.compression,
            settings.compression_bytes,
            settings.payload_limit_bytes,
            settings.decompressed_limit_bytes,
            settings.payload_limit_objects,
        )

    def __post_init__(self) -> None:
        """Work out once what every event is compared with."""
        compressed_from = self.compression_bytes if self.encoding else MAX_MESSAGE_BYTES
        checked_above = self.claim_check_bytes if self.claim_check else None
        object.__setattr__(self, "untouched_bytes", min(compressed_from - 1, checked_above or MAX_MESSAGE_BYTES))

    def pack(self, message: OutgoingMessage, event_id: str, *, limit_bytes: int, room: int) -> OutgoingMessage:
        """Return *message* as it travels.

        The key in S3 is the event's id and the body's SHA-256. Sending the message again writes the same object
        again, and no other body takes its place: not one that another service published under this id, nor one
        that a handler's next attempt did.

        Args:
            limit_bytes: What its topic or queue takes.
            room: How many more attributes it may have.
        """
        threshold = min(self.claim_check_bytes or limit_bytes, limit_bytes)
        if self.encoding and room and self.compression_bytes <= message.size_bytes <= MAX_MESSAGE_BYTES:
            smaller = self._compressed(message)
            # The last attribute is worth more to the claim check, where compressing does not spare that.
            if smaller.size_bytes < message.size_bytes and (room > 1 or smaller.size_bytes <= threshold):
                message, room = smaller, room - 1
        too_large = message.size_bytes > threshold
        if self.claim_check and room and too_large and message.size_bytes <= self.payload_limit_bytes:
            return _checked(message, self.claim_check, event_id)
        return message

    def _compressed(self, message: OutgoingMessage) -> OutgoingMessage:
        encoding = self.encoding or ""
        return _with(message, compress(message.body, encoding), ENCODING_ATTRIBUTE, Attribute("String", encoding))


NO_ENCODING = BodyEncoding()


def _checked(message: OutgoingMessage, at: ClaimCheck, event_id: str) -> OutgoingMessage:
    data = message.body.encode()
    key = at.prefix + compose_bounded(event_id, sha256(data).hexdigest(), max_length=MAX_NAME_LENGTH)
    size = Attribute("Number", str(len(data)))
    pointing = _with(message, pointer_to(at.bucket, key), SIZE_ATTRIBUTE, size)
    return pointing._replace(payload=Payload(at.bucket, key, message.body, at.owner))


def _with(message: OutgoingMessage, body: str, name: str, value: Attribute) -> OutgoingMessage:
    attributes: Mapping[str, Attribute] = {**message.attributes, name: value}
    return message._replace(body=body, attributes=attributes, size_bytes=size_bytes(body, attributes))


def decompress_body(body: str, attributes: Mapping[str, Attribute], limit_bytes: int) -> str:
    """Return *body* decompressed, if its attributes say that it is compressed; it fails as ``decompress``."""
    encoding = attributes.get(ENCODING_ATTRIBUTE)
    return body if encoding is None else decompress(body, str(encoding.value), limit_bytes)


def is_encoded(attributes: Mapping[str, Attribute]) -> bool:
    """Return whether a body with these attributes stands for another."""
    return not RESERVED_ATTRIBUTES.isdisjoint(attributes)
