-- A worker leaves, with nothing in its hands.
create or replace function notify_worker.leave(worker_id integer)
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    update stored_workers
    set ended_at = clock_timestamp()
    where id = leave.worker_id
        and ended_at is null;
    select pg_advisory_unlock(presence_key(), leave.worker_id)
$$;
comment on function notify_worker.leave is 'A worker leaves, with nothing in its hands.';
