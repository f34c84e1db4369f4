"""What services need besides topics and queues, as this environment has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from smartpipe.envelope.body_encoding import PayloadLocation
from smartpipe.envelope.trusted_locations import TrustedLocations
from smartpipe.settings import ClaimSettings, PayloadSettings
from smartpipe.tags import APPLICATION
from smartpipe.topology.buckets import LIFECYCLE, Bucket, objects_arn
from smartpipe.topology.claims import TTL_ATTRIBUTE, table_in
from smartpipe.topology.resources import TAGS

if TYPE_CHECKING:
    from smartpipe.names import Naming
    from smartpipe.topology.resources import Attributes


class TableAndBucket(NamedTuple):
    """A table and a bucket that are part of the topology.

    Args:
        claims_table: The DynamoDB table that idempotent handlers claim in, if it is one.
        bucket: Where large bodies wait, if they do.
        readable: Where consumers may read bodies from.
        packs: Whether publishers compress, or put into S3, some of the bodies; no filter sees into these.
    """

    claims_table: str | None = None
    bucket: Bucket | None = None
    packs: bool = False
    readable: TrustedLocations = TrustedLocations()

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``SMARTPIPE_IDEMPOTENCY_URL``, ``SMARTPIPE_CLAIM_CHECK_*`` and ``SMARTPIPE_COMPRESSION``.

        Raises:
            ConfigError: Faulty settings.
        """
        store_url, settings = ClaimSettings.load().idempotency_url, PayloadSettings.load()
        at = PayloadLocation.parse(settings.claim_check_url) if settings.claim_check_url else None
        bucket = Bucket(at.bucket, at.prefix, settings.claim_check_days, at.owner) if at and at.scheme == "s3" else None
        return cls(
            table_in(store_url.get_secret_value() if store_url else None),
            bucket,
            at is not None or settings.compression is not None,
            TrustedLocations.from_environment(),
        )

    def tables(self, naming: Naming) -> dict[str, Attributes]:
        """Return the tables that are wanted, by ARN."""
        name = self.claims_table
        return {} if name is None else {naming.table_arn(name): {"TimeToLive": TTL_ATTRIBUTE, TAGS: _tags(naming)}}

    def buckets(self, naming: Naming) -> dict[str, Attributes]:
        """Return the buckets that are wanted, by ARN."""
        bucket = self.bucket
        if bucket is None or bucket.owner not in (None, naming.account_id):
            return {}
        return {naming.bucket_arn(bucket.name): {LIFECYCLE: bucket.expiry, TAGS: _tags(naming)}}

    def readable_objects(self, partition: str) -> list[str]:
        """Return the ARN patterns of the objects that consumers may read."""
        written = [self.bucket.objects_arn(partition)] if self.bucket else []
        others = [objects_arn(partition, at.bucket, at.prefix) for at in self.readable.locations if at.scheme == "s3"]
        return list(dict.fromkeys([*written, *others]))


def _tags(naming: Naming) -> dict[str, str]:
    """Return the tags of a shared resource. A prefix among them would be overwritten by every environment's apply."""
    return {APPLICATION: naming.application}


NO_COMPANIONS = TableAndBucket()
