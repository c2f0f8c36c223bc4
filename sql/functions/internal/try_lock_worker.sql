-- Returns whether the leases of a worker may be ended: not while it is just recording, which the caller holds off until its commit.
-- A worker without a lock records nothing any more.
create or replace function notify_worker.try_lock_worker(worker_id integer)
returns boolean
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    perform
    from stored_worker_locks as its
    where its.worker_id = try_lock_worker.worker_id
    for update skip locked;
    return found or not exists (
        select from stored_worker_locks as its
        where its.worker_id = try_lock_worker.worker_id
    );
end
$$;
