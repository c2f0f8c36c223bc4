-- Wakes a worker when a statement that inserts notifications commits: unless a worker is awake and waits for this transaction, the
-- statement defers one procrastinate job, the wake-up, in the same transaction. One wake-up a statement, never one a row.
-- The setting notify_worker.wakeup: auto (the default), always (every statement defers a job), off (workers only poll; for
-- two-phase commit, which cannot NOTIFY). Security definer, so that every role that may INSERT may send a wake-up.
create or replace function notify_worker.wake_on_insert()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    -- The documented `select last_value` costs twice as much here. Null (never set, or a crash) counts as not awake.
    if pg_sequence_last_value('notify_worker.awake_until') > date_part('epoch', clock_timestamp()) * 1000
        and current_setting('notify_worker.wakeup', true) is distinct from 'always'
    then
        return null;
    end if;
    if current_setting('notify_worker.wakeup', true) is distinct from 'off' then
        perform wake_worker(current_setting('notify_worker.wakeup', true) = 'always');
    end if;
    return null;
end
$$;
