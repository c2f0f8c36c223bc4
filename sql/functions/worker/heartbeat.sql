-- Records that a worker is alive, under each id that it has or had. Returns the ids that are still its own; it was rescued under one
-- that is missing.
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
