-- Returns whether another session holds the outbox in ROW EXCLUSIVE mode. An INSERT takes that lock before its trigger reads
-- the awake mark, and releases it after its commit is visible. So a producer that read "awake" before the mark expired is seen
-- either here or by the poll that follows. A worker asks before it sleeps.
create or replace function notify_worker.has_open_writers()
returns boolean
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select exists (
        select from pg_locks
        where locktype = 'relation'
            and database = (select oid from pg_database where datname = current_database())
            and relation = 'notify_worker.notifications'::regclass
            and mode = 'RowExclusiveLock'
            and granted
            and pid is distinct from pg_backend_pid()   -- a prepared transaction has no pid
    )
$$;
