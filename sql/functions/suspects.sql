-- Lists the workers that may be dead: they have not left, and no session holds their lock. Dead is who is listed again, with
-- the same seen_at, 3 s later.
create or replace function notify_worker.suspects()
returns table (worker_id integer, seen_at timestamptz)
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select worker.id, worker.seen_at
    from stored_workers as worker
    where worker.ended_at is null
        and not exists (
            select from pg_locks
            where locktype = 'advisory'
                and database = (select oid from pg_database where datname = current_database())
                and classid = presence_key()::oid
                and objid = worker.id::oid
                and objsubid = 2
        )
$$;
comment on function notify_worker.suspects is 'Lists the workers that may be dead: they have not left, and no session holds their lock.';
