-- The transactional outbox. `smartpipe store migrate` runs this file. You can also run it yourself, after
-- 0001_claims.sql:
--   psql --single-transaction -v ON_ERROR_STOP=1 -f 0002_outbox.sql

SELECT pg_advisory_xact_lock(7308334157265692531);  -- of two concurrent migrations, one waits

CREATE TABLE IF NOT EXISTS smartpipe_outbox (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id         text NOT NULL,
    -- Events of one group are published in order: destination and group id on FIFO, NULL elsewhere. A group has one lane.
    lane             integer NOT NULL,
    ordered_group    text,
    destination      text NOT NULL,            -- topic:NAME or queue:NAME, as declared
    body             text NOT NULL,
    size_bytes       integer NOT NULL,
    attributes       jsonb NOT NULL,           -- by name: [data type, value]
    group_id         text,
    deduplication_id text,
    delay_seconds    integer NOT NULL DEFAULT 0,
    payload          text,                     -- if the body points to S3: the text that the relay writes there first
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts         integer NOT NULL DEFAULT 0,
    next_try_at      timestamptz NOT NULL DEFAULT '-infinity',
    published_at     timestamptz,
    parked_at        timestamptz,
    error            text
);

-- For events that wait, in the order in which they are published.
CREATE INDEX IF NOT EXISTS smartpipe_outbox_waiting
    ON smartpipe_outbox (lane, id) WHERE published_at IS NULL AND parked_at IS NULL;
-- For the clean-up.
CREATE INDEX IF NOT EXISTS smartpipe_outbox_published ON smartpipe_outbox (published_at) WHERE published_at IS NOT NULL;

-- A relay locks lanes, not rows. The relay that has locked a lane publishes its events in order.
CREATE TABLE IF NOT EXISTS smartpipe_outbox_lanes (lane integer PRIMARY KEY);
INSERT INTO smartpipe_outbox_lanes SELECT generate_series(0, 63) ON CONFLICT DO NOTHING;

-- Wakes relays at the commit, after an insert by any program in any language.
CREATE OR REPLACE FUNCTION smartpipe_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('smartpipe_outbox', '');
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER smartpipe_outbox_notify AFTER INSERT ON smartpipe_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION smartpipe_outbox_notify();

INSERT INTO smartpipe_migrations (name) VALUES ('0002_outbox') ON CONFLICT DO NOTHING;
