-- Says for the next 200 ms that a worker is awake and looks: statements need not ring. Written only when less than half
-- of that is left, and reset where it lies seconds ahead (a clock that was set back). An idle worker never calls this.
create or replace function notify_worker.mark_awake()
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select setval('notify_worker.awake_until', (now.milliseconds + 200)::bigint)
    from (select date_part('epoch', clock_timestamp()) * 1000 as milliseconds) as now
    where coalesce(pg_sequence_last_value('notify_worker.awake_until') - now.milliseconds, 0) not between 100 and 300
$$;
