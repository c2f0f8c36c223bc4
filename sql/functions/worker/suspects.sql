-- Lists the workers that may be dead: they have not left, and no session holds their lock. Dead is who is listed again, with the
-- same seen_at, after `patience`, in seconds: 3 for one that has shown itself since this server started (or crashed, or was
-- promoted), and since the caller's own session was lost and replaced, if that was (`reconnected_ago`, in seconds). Of any other
-- nobody knows but that all locks were freed at once, and of one that can't hold a lock at all neither: then it is half a lease,
-- in which every request has ended.
create or replace function notify_worker.suspects(reconnected_ago double precision default null)
returns table (worker_id integer, seen_at timestamptz, patience double precision)
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select
        worker.id,
        worker.seen_at,
        case
            when worker.locks and worker.seen_at > greatest(
                pg_postmaster_start_time(),
                (select stats_reset from pg_stat_bgwriter),     -- a crash resets them, and it leaves the start time as it was
                pg_last_xact_replay_timestamp(),
                clock_timestamp() - make_interval(secs => suspects.reconnected_ago)
            ) then 3
            else date_part('epoch', worker.lease_length) / 2
        end
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
comment on function notify_worker.suspects is 'Lists the workers that may be dead, and for how many seconds that has to stay so until they are.';
