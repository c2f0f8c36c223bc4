-- Lists the projects that have something due and are not paused, or whose probe is due.
create or replace function notify_worker.due_projects(due_by timestamptz)
returns setof text
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select line.project
    from pending_projects() as line (project)
    where not exists (
            select from open_incidents as open
            where open.project = line.project
                and open.scope = 'project'
                and open.blocked_until > due_projects.due_by
        )
        and exists (
            select
            from (values (0::smallint), (1::smallint)) as lane (number)
            cross join lateral (
                select from notifications as notification
                where notification.state = 'pending'
                    and notification.project = line.project
                    and notification.lane = lane.number
                    and notification.due_at <= due_projects.due_by
                order by notification.due_at    -- so that the index is read, and one row of it
                limit 1
            ) as due
        )
$$;
