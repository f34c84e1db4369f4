-- Keys of claims that name environment, service, queue and handler. `smartpipe store migrate` runs this file; so may you,
-- after 0001_claims.sql:
--   psql --single-transaction -v ON_ERROR_STOP=1 -f 0003_keys_of_claims.sql
-- Claims of earlier versions name no service and no queue, so they cannot be rewritten. While some are still remembered
-- this stops; to delete them, and accept that their effects may happen again, run before it, in the same transaction:
--   SELECT set_config('smartpipe.forget_old_claims', 'yes', true);

SELECT pg_advisory_xact_lock(7308334157265692531);  -- two migrations at once: one waits

DO $$
DECLARE
    remembered bigint;
    last_until timestamptz;
BEGIN
    LOCK TABLE smartpipe_claims IN ACCESS EXCLUSIVE MODE;  -- so that no earlier worker claims between look and constraint
    SELECT count(*), max(expires_at) INTO remembered, last_until FROM smartpipe_claims
    WHERE key !~ '^[A-Za-z0-9._!-]*[/=]' AND expires_at > clock_timestamp()
      AND (state = 'completed' OR (state = 'held' AND lease_until > clock_timestamp()));
    IF remembered > 0 AND coalesce(current_setting('smartpipe.forget_old_claims', true), '') <> 'yes' THEN
        RAISE EXCEPTION '% claims of an earlier version are remembered here, the last one until % UTC. They name no '
            'service and no queue, so this version cannot use them: if one of their events is delivered again, its '
            'effect happens again. Stop the workers, wait until their queues are empty, and run smartpipe store migrate '
            '--forget-old-claims', remembered, to_char(last_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI');
    END IF;
    DELETE FROM smartpipe_claims WHERE key !~ '^[A-Za-z0-9._!-]*[/=]';
END
$$;

-- A worker of an earlier version is refused with this name, and handles nothing, until it is replaced.
ALTER TABLE smartpipe_claims DROP CONSTRAINT IF EXISTS smartpipe_claims_need_a_newer_worker;
ALTER TABLE smartpipe_claims ADD CONSTRAINT smartpipe_claims_need_a_newer_worker
    CHECK (key ~ '^[A-Za-z0-9._!-]*[/=]');

INSERT INTO smartpipe_migrations (name) VALUES ('0003_keys_of_claims') ON CONFLICT DO NOTHING;
