-- Drops the months of the history that ended longer ago than `older_than`. Returns how many it dropped. Waits at most 2 s for
-- readers of the history; then it fails, and can be called again.
create or replace function notify_worker.drop_old_partitions(older_than interval)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
set lock_timeout = '2s'
set timezone = 'UTC'
as $$
declare
    partition text;
    dropped integer := 0;
begin
    for partition in
        select child.relname
        from pg_inherits
        join pg_class as child
            on child.oid = pg_inherits.inhrelid
        where pg_inherits.inhparent = 'notify_worker.stored_attempts'::regclass
            and to_date(right(child.relname, 7), 'YYYY_MM') + interval '1 month' < now() - older_than
        order by child.relname
    loop
        execute format('alter table notify_worker.stored_attempts detach partition notify_worker.%I', partition);
        execute format('drop table notify_worker.%I', partition);
        dropped := dropped + 1;
    end loop;
    return dropped;
end
$$;
