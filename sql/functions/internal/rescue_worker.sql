-- Ends the leases of a dead worker, so that what it held is due again; deliveries without an outcome stand in the history as
-- unknown. Returns how many notifications were rescued. Returns null, and does nothing, if the worker is recording, holds its
-- lock again, or has sent another heartbeat.
create or replace function notify_worker.rescue_worker(worker_id integer, last_heartbeat_at timestamptz)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    worker_lease_length interval;
    leased_ids bigint[];
begin
    if not try_lock_worker(rescue_worker.worker_id) or not exists (
        select from stale_workers() as stale
        where stale.worker_id = rescue_worker.worker_id
    ) then
        return null;
    end if;

    update stored_workers as worker
    set ended_at = clock_timestamp()
    where worker.id = rescue_worker.worker_id
        and worker.ended_at is null
        and worker.last_heartbeat_at = rescue_worker.last_heartbeat_at
    returning worker.lease_length into worker_lease_length;
    if not found then
        return null;
    end if;

    leased_ids := array(
        select id
        from notifications
        where state = 'pending'
            and project in (select pending_projects())
            and lane in (0, 1)
            and due_at <= clock_timestamp() + worker_lease_length    -- so that the index is used: its leases end by then
            and leased_by = rescue_worker.worker_id
        order by id
        for update skip locked      -- a locked one is due again when its lease ends
    );
    perform end_leases(leased_ids);
    return cardinality(leased_ids);
end
$$;
