-- Unregisters a worker under these ids, its present and previous ones, once all outcomes are recorded. So its locks can go; one
-- that another transaction holds just now stays, which does no harm.
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
