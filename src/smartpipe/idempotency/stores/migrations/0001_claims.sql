-- The claims of smartpipe's idempotency store. `smartpipe store migrate` runs this file. You can also run it yourself:
--   psql --single-transaction -v ON_ERROR_STOP=1 -f 0001_claims.sql
-- You can run it again. Tables are created in the first schema of the search_path.

SELECT pg_advisory_xact_lock(7308334157265692531);  -- of two concurrent migrations, one waits

CREATE TABLE IF NOT EXISTS smartpipe_migrations (
    name       text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS smartpipe_claims (
    key         text COLLATE "C" PRIMARY KEY,
    token       text NOT NULL,
    state       text NOT NULL CHECK (state IN ('held', 'completed', 'released')),
    attempt     integer NOT NULL,
    lease_until timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL
);

-- For the purge of expired claims.
CREATE INDEX IF NOT EXISTS smartpipe_claims_expires_at ON smartpipe_claims (expires_at);

INSERT INTO smartpipe_migrations (name) VALUES ('0001_claims') ON CONFLICT DO NOTHING;
