"""The relay's SQL.

Source: PostgreSQL, "Explicit Locking" and the locking clause of SELECT. SKIP LOCKED is for queue-like tables with
several consumers. Under READ COMMITTED, each statement sees all rows that were committed before it began.
"""

from __future__ import annotations

from smartpipe.limits import MAX_MESSAGE_BYTES
from smartpipe.outbox.rows import LANES, MAX_PAYLOAD_BYTES

_WAITING = "published_at IS NULL AND parked_at IS NULL"

# The lanes stay locked until the end of the transaction. The next statement sees which rows another relay published.
LOCK_LANES = f"""
SELECT lane FROM smartpipe_outbox_lanes AS lanes
WHERE EXISTS (
    SELECT FROM smartpipe_outbox AS rows
    WHERE rows.lane = lanes.lane AND {_WAITING} AND next_try_at <= clock_timestamp()
)
ORDER BY random() LIMIT $1 FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - constants

# No row overtakes one of its group that waits for a retry. Sizes are measured, because size_bytes may have any value.
# A value that is too long to be published is not fetched, or cut to a length that is still too long: its row is parked.
WAITING_ROWS = f"""
SELECT * FROM (
SELECT *, sum(bytes) OVER (ORDER BY id) - bytes AS bytes_before
FROM (
SELECT id, left(event_id, 256) AS event_id, left(ordered_group, 2000) AS ordered_group,
       left(destination, 2000) AS destination,
       CASE WHEN octet_length(body) <= {MAX_MESSAGE_BYTES} THEN body END AS body, octet_length(body) AS body_bytes,
       CASE WHEN octet_length(attributes::text) <= {MAX_MESSAGE_BYTES} THEN attributes::text END AS attributes,
       left(group_id, 200) AS group_id, left(deduplication_id, 200) AS deduplication_id, delay_seconds, attempts,
       CASE WHEN octet_length(payload) <= {MAX_PAYLOAD_BYTES} THEN payload END AS payload,
       coalesce(octet_length(payload), 0) AS payload_bytes,
       least(octet_length(body), {MAX_MESSAGE_BYTES})::bigint + coalesce(octet_length(payload), 0) AS bytes
FROM smartpipe_outbox AS rows
WHERE lane = ANY($1::integer[]) AND {_WAITING} AND next_try_at <= clock_timestamp()
  AND destination <> ALL($4::text[])
  AND NOT EXISTS (
    SELECT FROM smartpipe_outbox AS before
    WHERE before.lane = rows.lane AND before.ordered_group = rows.ordered_group AND before.id < rows.id
      AND before.published_at IS NULL AND before.parked_at IS NULL AND before.next_try_at > clock_timestamp()
  )
ORDER BY id LIMIT $2
) AS first ) AS sized WHERE bytes_before < $3 ORDER BY id
"""  # noqa: S608 - constants

# No relay ever locks a lane outside this range, so these rows would wait forever, unnoticed.
PARK_UNREACHABLE = f"""
UPDATE smartpipe_outbox
SET parked_at = clock_timestamp(), error = 'UnreadableRow: lane ' || lane || ' is not one of 0 to {LANES - 1}'
WHERE lane NOT BETWEEN 0 AND {LANES - 1} AND {_WAITING}
RETURNING event_id
"""  # noqa: S608 - constants

MARK_PUBLISHED = "UPDATE smartpipe_outbox SET published_at = clock_timestamp() WHERE id = ANY($1::bigint[])"

MARK_FAILED = """
UPDATE smartpipe_outbox AS rows
SET attempts = failed.attempts,
    error = failed.error,
    next_try_at = clock_timestamp() + failed.seconds * interval '1 second',
    parked_at = CASE WHEN failed.parked THEN clock_timestamp() END
FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::double precision[], $5::boolean[])
     AS failed (id, attempts, error, seconds, parked)
WHERE rows.id = failed.id
"""

CLEAN_UP = """
DELETE FROM smartpipe_outbox WHERE id IN (
    SELECT id FROM smartpipe_outbox
    WHERE published_at < clock_timestamp() - $1 * interval '1 second' LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

READ_BACKLOG = f"""
SELECT count(*) FILTER (WHERE parked_at IS NULL) AS waiting,
       count(*) FILTER (WHERE parked_at IS NOT NULL) AS parked,
       coalesce(extract(epoch FROM clock_timestamp()
                - min(created_at) FILTER (WHERE {_WAITING} AND isfinite(created_at))), 0)::float AS lag
FROM smartpipe_outbox WHERE published_at IS NULL
"""  # noqa: S608 - constants
