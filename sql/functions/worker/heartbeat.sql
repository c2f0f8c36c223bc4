-- Records that a worker is alive, under its present id and all previous ones. Returns the ids that are still registered; under
-- a missing one it was rescued.
create or replace function notify_worker.heartbeat(worker_ids integer[])
returns setof integer
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    update stored_workers
    set last_heartbeat_at = clock_timestamp(),
        stale_since = null
    where id = any (heartbeat.worker_ids)
        and ended_at is null
    returning id
$$;
