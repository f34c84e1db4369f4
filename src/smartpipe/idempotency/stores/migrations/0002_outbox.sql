-- The transactional outbox. `smartpipe store migrate` runs this file; so may you, after 0001_claims.sql:
--   psql --single-transaction -v ON_ERROR_STOP=1 -f 0002_outbox.sql

SELECT pg_advisory_xact_lock(7308334157265692531);  -- two migrations at once: one waits

CREATE TABLE IF NOT EXISTS smartpipe_outbox (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id         text NOT NULL,
    -- What must stay in order with others: destination and group of a FIFO one; of others, the event alone.
    lane             integer NOT NULL,
    ordered_group    text,
    destination      text NOT NULL,            -- topic:NAME or queue:NAME, as declared
    body             text NOT NULL,
    size_bytes       integer NOT NULL,
    attributes       jsonb NOT NULL,           -- by name: [data type, value]
    group_id         text,
    deduplication_id text,
    delay_seconds    integer NOT NULL DEFAULT 0,
    payload          text,                     -- what the relay puts into S3 first, where the body points to it
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts         integer NOT NULL DEFAULT 0,
    next_try_at      timestamptz NOT NULL DEFAULT '-infinity',
    published_at     timestamptz,
    parked_at        timestamptz,
    error            text
);

-- What waits, in the order in which it is published.
CREATE INDEX IF NOT EXISTS smartpipe_outbox_waiting
    ON smartpipe_outbox (lane, id) WHERE published_at IS NULL AND parked_at IS NULL;
-- For the clean-up.
CREATE INDEX IF NOT EXISTS smartpipe_outbox_published ON smartpipe_outbox (published_at) WHERE published_at IS NOT NULL;

-- A relay locks lanes, not rows: whoever has a lane publishes what is in it, in order.
CREATE TABLE IF NOT EXISTS smartpipe_outbox_lanes (lane integer PRIMARY KEY);
INSERT INTO smartpipe_outbox_lanes SELECT generate_series(0, 63) ON CONFLICT DO NOTHING;

-- Wakes relays at the commit, whoever inserted, in whatever language.
CREATE OR REPLACE FUNCTION smartpipe_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('smartpipe_outbox', '');
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER smartpipe_outbox_notify AFTER INSERT ON smartpipe_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION smartpipe_outbox_notify();

INSERT INTO smartpipe_migrations (name) VALUES ('0002_outbox') ON CONFLICT DO NOTHING;
