-- Keeps the history's partitions three months ahead. A partition is created apart and then attached, so that no writer waits;
-- if the parent table is locked for more than 2 s it fails, and the next call tries again. Returns how many it created.
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
    created integer := 0;
begin
    perform from installation for update;   -- so that two calls at the turn of a month take turns
    for ahead in 0..3 loop
        month := date_trunc('month', now()) + make_interval(months => ahead);
        partition := 'stored_attempts_' || to_char(month, 'YYYY_MM');
        if to_regclass('notify_worker.' || partition) is null then
            execute format('create table notify_worker.%I (like notify_worker.stored_attempts including all)', partition);
            execute format(
                'alter table notify_worker.stored_attempts attach partition notify_worker.%I for values from (%L) to (%L)',
                partition, month, month + interval '1 month'
            );
            created := created + 1;
        end if;
    end loop;
    return created;
end
$$;
