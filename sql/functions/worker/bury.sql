-- A worker is dead: what it held is due again, and what it held and did not record stands in the history as unknown. Does
-- nothing where its lock is held again or seen_at has moved. Returns how many notifications were put back in line.
create or replace function notify_worker.bury(worker_id integer, seen_at timestamptz)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    longest interval;
    held bigint[];
begin
    if not exists (
        select from suspects() as suspect
        where suspect.worker_id = bury.worker_id and suspect.seen_at = bury.seen_at
    ) or not pg_try_advisory_xact_lock(recording_key(), bury.worker_id) then
        return 0;
    end if;

    update stored_workers
    set ended_at = clock_timestamp()
    where id = bury.worker_id and ended_at is null
    returning lease_length into longest;
    if not found then
        return 0;
    end if;

    delete from stored_allowances as allowance where allowance.worker_id = bury.worker_id;

    select array_agg(id) into held
    from (
        select id
        from notifications
        where state = 'pending'
            and project in (select projects_in_line())
            and lane in (0, 1)
            and due_at <= clock_timestamp() + longest   -- its leases end by then: the index serves this
            and leased_by = bury.worker_id
        order by id
        for update skip locked                          -- what is locked comes back when its lease ends
    ) as its;
    perform take_over(held);
    return coalesce(cardinality(held), 0);
end
$$;
comment on function notify_worker.bury is 'A worker is dead: what it held is due again, and what it did not record stands in the history as unknown.';
