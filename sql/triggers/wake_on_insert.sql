-- A statement that commits notifications has a worker's ear: either a worker is awake and waits for this transaction, or
-- the statement defers one procrastinate job, the bell, in the same transaction. One bell a statement, never a row.
-- The setting notify_worker.wakeup: auto (the default), always (every statement defers its job), off (poll only; for
-- two-phase commit, which can't NOTIFY). Security definer: whoever may INSERT may ring.
create or replace function notify_worker.wake_on_insert()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    -- The documented `select last_value` costs twice as much here. Null (never set, or a crash) rings too: the safe side.
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
