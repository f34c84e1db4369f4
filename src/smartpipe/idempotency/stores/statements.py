"""The SQL of the PostgreSQL store.

Every statement that writes locks its rows in the order of their keys, so that concurrent batches cannot deadlock. It
compares each row, after locking it, with one reading of the server's clock.
"""

from __future__ import annotations

import json
from base64 import b64encode

# A refused claim writes its row unchanged, because only then does RETURNING have the locked row and so the reason. A
# snapshot from before the lock could lack it. https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT
# now() is when the statement arrived: if a new row had to wait for a lock, its lease is shorter by that time.
CLAIM = """
INSERT INTO smartpipe_claims AS c (key, token, state, attempt, lease_until, expires_at)
SELECT w.key, w.token, 'held', 1, now() + w.lease * interval '1 s', now() + (w.lease + w.ttl) * interval '1 s'
FROM unnest($1::text[], $2::text[], $3::float8[], $4::float8[]) AS w (key, token, lease, ttl)
ORDER BY w.key COLLATE "C"
ON CONFLICT (key) DO UPDATE
SET (token, state, attempt, lease_until, expires_at) = (
    SELECT
        CASE WHEN free THEN excluded.token ELSE c.token END,
        CASE WHEN free THEN 'held' ELSE c.state END,
        CASE WHEN forgotten THEN 1 WHEN free THEN least(c.attempt, 2147483646) + 1 ELSE c.attempt END,
        CASE WHEN free THEN clock + (excluded.lease_until - now()) ELSE c.lease_until END,
        CASE WHEN free THEN clock + (excluded.expires_at - now()) ELSE c.expires_at END
    FROM (
        SELECT
            clock,
            c.expires_at <= clock AS forgotten,
            c.expires_at <= clock OR c.state NOT IN ('held', 'completed')
                OR (c.state = 'held' AND c.lease_until <= clock) AS free
        FROM (SELECT clock_timestamp() AS clock) AS reading
    ) AS verdict
)
RETURNING key, token, state, attempt, extract(epoch FROM lease_until - clock_timestamp())::float8 AS seconds
"""

# The second ANY makes a plan that was made while the table was empty use the index too.
_CHANGE = """
WITH locked AS (
    SELECT key FROM smartpipe_claims WHERE key = ANY ($1::text[]) ORDER BY key FOR NO KEY UPDATE
)
UPDATE smartpipe_claims AS c
SET {changes}
FROM locked JOIN unnest($1::text[], $2::text[], $3::float8[], $4::float8[]) AS w (key, token, lease, ttl) USING (key)
WHERE c.key = locked.key AND c.key = ANY ($1::text[]) AND c.token = w.token
  AND c.state IN ('held', '{already}') AND c.expires_at > clock_timestamp()
RETURNING c.key, c.token
"""
_WHILE_HELD = "CASE c.state WHEN 'held' THEN clock_timestamp() + {seconds} * interval '1 s' ELSE c.{column} END"
_REMEMBER = "expires_at = " + _WHILE_HELD.format(seconds="w.ttl", column="expires_at")

RENEW = _CHANGE.format(
    changes=f"lease_until = {_WHILE_HELD.format(seconds='w.lease', column='lease_until')}, "
    f"expires_at = {_WHILE_HELD.format(seconds='(w.lease + w.ttl)', column='expires_at')}",
    already="completed",
)
COMPLETE = _CHANGE.format(changes=f"state = 'completed', {_REMEMBER}", already="completed")
RELEASE = _CHANGE.format(changes=f"state = 'released', {_REMEMBER}", already="released")

# These two run on the caller's connection, of any driver and with any codecs. So they have one value: JSON in Base64.
_IN_DOCUMENT = (
    "json_to_record(CAST(convert_from(decode({document}, 'base64'), 'UTF8') AS json)) "
    "AS w (key text, token text, ttl float8)"
)


def complete_in_statement(document: str) -> str:
    """Return the statement that completes one claim. *document* is an SQL expression, see ``claim_document``."""
    return f"""
UPDATE smartpipe_claims AS c
SET state = 'completed', {_REMEMBER}
FROM {_IN_DOCUMENT.format(document=document)}
WHERE c.key = w.key AND c.token = w.token
  AND c.state IN ('held', 'completed') AND c.expires_at > clock_timestamp()
"""  # noqa: S608 - constants, and a placeholder or Base64


def find_statement(document: str) -> str:
    """Return the statement that finds the record of one claim, held by any holder."""
    return f"SELECT 1 FROM smartpipe_claims AS c JOIN {_IN_DOCUMENT.format(document=document)} USING (key)"  # noqa: S608


def claim_document(key: str, token: str, ttl_seconds: float) -> str:
    """Return the value for the two statements above."""
    values = {"key": key, "token": token, "ttl": ttl_seconds}
    return b64encode(json.dumps(values, ensure_ascii=False).encode()).decode()


READ = """
SELECT key, state, extract(epoch FROM lease_until - clock_timestamp())::float8 AS seconds
FROM smartpipe_claims WHERE key = ANY ($1::text[]) AND expires_at > clock_timestamp()
"""

FORGET = """
WITH locked AS (SELECT key FROM smartpipe_claims WHERE key = ANY ($1::text[]) ORDER BY key FOR UPDATE)
DELETE FROM smartpipe_claims AS c USING locked WHERE c.key = locked.key
"""

# SKIP LOCKED spares a row that is being claimed again at this moment.
PURGE = """
WITH expired AS (
    SELECT key FROM smartpipe_claims WHERE expires_at <= clock_timestamp()
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
DELETE FROM smartpipe_claims AS c USING expired WHERE c.key = expired.key RETURNING c.key
"""
