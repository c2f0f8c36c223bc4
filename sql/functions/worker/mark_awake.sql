-- Marks a worker as awake and polling for the next 200 ms, so that statements need no wake-up. Written only if less than 100 ms
-- are left, and reset if it lies more than 300 ms ahead because a clock was set back. An idle worker never calls this.
create or replace function notify_worker.mark_awake()
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select setval('notify_worker.awake_until', (now.milliseconds + 200)::bigint)
    from (select date_part('epoch', clock_timestamp()) * 1000 as milliseconds) as now
    where coalesce(pg_sequence_last_value('notify_worker.awake_until') - now.milliseconds, 0) not between 100 and 300
$$;
