-- Returns whether the leases of a worker may be ended: not while it is recording, and it then waits for the caller's commit. A
-- worker without a row in stored_worker_locks records nothing any more.
create or replace function notify_worker.try_lock_worker(worker_id integer)
returns boolean
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    perform
    from stored_worker_locks as lock
    where lock.worker_id = try_lock_worker.worker_id
    for update skip locked;
    return found or not exists (
        select from stored_worker_locks as lock
        where lock.worker_id = try_lock_worker.worker_id
    );
end
$$;
