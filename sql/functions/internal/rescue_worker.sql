-- Makes due again what a dead worker held; what it held and did not record stands in the history as unknown. Returns how many
-- notifications; null, and nothing is done, where the worker is just recording, holds its lock again or has sent another heartbeat.
create or replace function notify_worker.rescue_worker(worker_id integer, last_heartbeat_at timestamptz)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    longest interval;
    held bigint[];
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
    returning worker.lease_length into longest;
    if not found then
        return null;
    end if;

    select array_agg(id) into held
    from (
        select id
        from notifications
        where state = 'pending'
            and project in (select pending_projects())
            and lane in (0, 1)
            and due_at <= clock_timestamp() + longest   -- its leases end by then: the index serves this
            and leased_by = rescue_worker.worker_id
        order by id
        for update skip locked                          -- what is locked comes back when its lease ends
    ) as its;
    perform end_leases(held);
    return coalesce(cardinality(held), 0);
end
$$;
