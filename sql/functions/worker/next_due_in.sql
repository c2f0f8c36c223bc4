-- Returns in how many seconds the next notification becomes due, without those that are due now and those of paused projects.
-- Null if there is none.
create or replace function notify_worker.next_due_in()
returns double precision
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select date_part('epoch', min(next.due_at)) - date_part('epoch', clock_timestamp())
    from pending_projects() as pending (project)
    cross join (values (0::smallint), (1::smallint)) as lane (number)
    cross join lateral (
        select notification.due_at
        from notifications as notification
        where notification.state = 'pending'
            and notification.project = pending.project
            and notification.lane = lane.number
            and notification.due_at > clock_timestamp()
        order by notification.due_at
        limit 1
    ) as next
    where not exists (
        select from open_incidents as open
        where open.project = pending.project
            and open.scope = 'project'
            and open.blocked_until > clock_timestamp()
    )
$$;
