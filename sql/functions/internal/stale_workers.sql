-- Lists the stale workers, which may be dead: still registered, and nobody holds their advisory lock. A worker that cannot hold
-- a lock is stale after 2 s without a heartbeat. A stale worker is dead once it has sent no heartbeat for its grace period;
-- `dead_in` says in how many seconds that is (0 or less: it is dead).
-- The grace period, in seconds, starts when the worker was first found stale, because a living worker that lost its session
-- needs that time to register again. It is 3 s if only that session was lost. It is half a lease if all sessions may have been
-- lost since the last heartbeat, by a restart, crash or promotion of the server, or with the caller's own connection
-- (`reconnected_ago`: seconds since the caller replaced a lost session); and also for a worker that never held a lock. In half
-- a lease every request has ended. It then starts at that loss, if that was later.
create or replace function notify_worker.stale_workers(reconnected_ago double precision default null)
returns table (
    worker_id integer,
    last_heartbeat_at timestamptz,
    grace_period double precision,
    dead_in double precision
)
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select
        worker.id,
        worker.last_heartbeat_at,
        grace.period,
        grace.period + date_part(
            'epoch',
            greatest(coalesce(worker.stale_since, clock_timestamp()), all_sessions.lost_at) - clock_timestamp()
        )
    from stored_workers as worker
    cross join (
        select greatest(
            pg_postmaster_start_time(),
            (select stats_reset from pg_stat_bgwriter),     -- a crash resets them but not the start time
            pg_last_xact_replay_timestamp(),
            clock_timestamp() - make_interval(secs => stale_workers.reconnected_ago)
        ) as lost_at
    ) as all_sessions
    cross join lateral (
        select case
            when worker.holds_lock and worker.last_heartbeat_at > all_sessions.lost_at then 3
            else date_part('epoch', worker.lease_length) / 2
        end as period
    ) as grace
    where worker.ended_at is null
        and (worker.holds_lock or worker.last_heartbeat_at < clock_timestamp() - interval '2 seconds')
        and not exists (
            select from pg_locks
            where locktype = 'advisory'
                and database = (select oid from pg_database where datname = current_database())
                and classid = presence_lock_class()::oid
                and objid = worker.id::oid
                and objsubid = 2
        )
$$;
