-- Keeps the history's partitions three months ahead. A new one is made aside and then attached, so that nobody who writes waits;
-- where the parent is busy for long, the next call tries again. Returns how many it made.
create or replace function notify_worker.create_partitions()
returns integer
language plpgsql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
set lock_timeout = '2s'
set timezone = 'UTC'
as $$
declare
    month timestamptz;
    partition text;
    made integer := 0;
begin
    perform from installation for update;   -- two at the turn of a month, one after the other
    for ahead in 0..3 loop
        month := date_trunc('month', now()) + make_interval(months => ahead);
        partition := 'stored_attempts_' || to_char(month, 'YYYY_MM');
        if to_regclass('notify_worker.' || partition) is null then
            execute format('create table notify_worker.%I (like notify_worker.stored_attempts including all)', partition);
            execute format(
                'alter table notify_worker.stored_attempts attach partition notify_worker.%I for values from (%L) to (%L)',
                partition, month, month + interval '1 month'
            );
            made := made + 1;
        end if;
    end loop;
    return made;
end
$$;
