-- Keys of claims that contain environment, service, queue and handler. `smartpipe store migrate` runs this file. You can
-- also run it yourself, after 0001_claims.sql:
--   psql --single-transaction -v ON_ERROR_STOP=1 -f 0003_keys_of_claims.sql
-- Claims of earlier versions lack the service and the queue, so they cannot be rewritten. If there are some that have not
-- expired, this fails. To delete them, and accept that their handlers may run again, first run in the same transaction:
--   SELECT set_config('smartpipe.forget_old_claims', 'yes', true);

SELECT pg_advisory_xact_lock(7308334157265692531);  -- of two concurrent migrations, one waits

DO $$
DECLARE
    remembered bigint;
    last_until timestamptz;
BEGIN
    LOCK TABLE smartpipe_claims IN ACCESS EXCLUSIVE MODE;  -- so that no earlier worker claims before the constraint exists
    SELECT count(*), max(expires_at) INTO remembered, last_until FROM smartpipe_claims
    WHERE key !~ '^[A-Za-z0-9._!-]*[/=]' AND expires_at > clock_timestamp()
      AND (state = 'completed' OR (state = 'held' AND lease_until > clock_timestamp()));
    IF remembered > 0 AND coalesce(current_setting('smartpipe.forget_old_claims', true), '') <> 'yes' THEN
        RAISE EXCEPTION 'This database has % claims of an earlier version, the last of which expires at % UTC. They '
            'lack the service and the queue, so this version cannot use them: if one of their events is delivered again, '
            'its handler will run again. Stop the workers, wait until their queues are empty, and run smartpipe store '
            'migrate --forget-old-claims', remembered, to_char(last_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI');
    END IF;
    DELETE FROM smartpipe_claims WHERE key !~ '^[A-Za-z0-9._!-]*[/=]';
END
$$;

-- PostgreSQL refuses claims of a worker of an earlier version with this name, so it handles nothing until it is replaced.
ALTER TABLE smartpipe_claims DROP CONSTRAINT IF EXISTS smartpipe_claims_need_a_newer_worker;
ALTER TABLE smartpipe_claims ADD CONSTRAINT smartpipe_claims_need_a_newer_worker
    CHECK (key ~ '^[A-Za-z0-9._!-]*[/=]');

INSERT INTO smartpipe_migrations (name) VALUES ('0003_keys_of_claims') ON CONFLICT DO NOTHING;
