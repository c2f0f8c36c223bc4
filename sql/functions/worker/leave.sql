-- A worker leaves, under each id that it has or had, with nothing in its hands.
create or replace function notify_worker.leave(worker_ids integer[])
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    delete from stored_allowances where worker_id = any (leave.worker_ids);

    update stored_workers
    set ended_at = clock_timestamp()
    where id = any (leave.worker_ids)
        and ended_at is null
$$;
comment on function notify_worker.leave is 'A worker leaves, under each id that it has or had, with nothing in its hands.';
