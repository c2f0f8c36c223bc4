-- Rescues the notifications of dead workers, and wakes a worker if any are due again. Returns how many workers were dead, how
-- many notifications are due again, and in how many seconds the next stale worker may be dead (null: there is none).
-- `reconnected_ago`: seconds since the caller replaced a lost session.
create or replace function notify_worker.rescue_dead_workers(
    reconnected_ago double precision default null,
    out workers integer,
    out notifications integer,
    out again_in double precision
)
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    began_at timestamptz := clock_timestamp();
    dead record;
    requeued integer;
begin
    workers := 0;
    notifications := 0;
    for dead in
        select worker_id, last_heartbeat_at
        from stale_workers(rescue_dead_workers.reconnected_ago)
        where dead_in <= 0
        order by worker_id
    loop
        exit when clock_timestamp() > began_at + interval '2 seconds';      -- the next call continues: a statement has a time limit
        requeued := rescue_worker(dead.worker_id, dead.last_heartbeat_at);
        workers := workers + (requeued is not null)::integer;
        notifications := notifications + coalesce(requeued, 0);
    end loop;
    if notifications > 0 then
        perform wake_worker();
    end if;

    -- Comes last and skips locked rows, so that no heartbeat waits for the rescue above.
    update stored_workers
    set stale_since = case when stale_since is null then clock_timestamp() end
    where id in (
        select id
        from stored_workers
        where ended_at is null
            and (stale_since is null) = (id in (select worker_id from stale_workers()))
        for update skip locked
    );

    select min(greatest(dead_in, 0)) into again_in
    from stale_workers(rescue_dead_workers.reconnected_ago);
end
$$;
