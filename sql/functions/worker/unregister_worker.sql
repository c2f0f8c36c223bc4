-- Unregisters a worker under these ids, the present one or previous ones: everything that was claimed under them is recorded. So
-- nothing is recorded under them any more, and their locks can go; one that somebody has just taken stays, and harms nobody.
create or replace function notify_worker.unregister_worker(worker_ids integer[])
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    update stored_workers
    set ended_at = clock_timestamp()
    where id = any (unregister_worker.worker_ids)
        and ended_at is null;

    delete from stored_worker_locks
    where worker_id in (
        select worker_id
        from stored_worker_locks
        where worker_id = any (unregister_worker.worker_ids)
        for update skip locked
    )
$$;
