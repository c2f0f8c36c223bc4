-- Lists the projects with due notifications that are not paused, and those whose probe is due.
create or replace function notify_worker.due_projects(due_by timestamptz)
returns setof text
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select pending.project
    from pending_projects() as pending (project)
    where not exists (
            select from open_incidents as open
            where open.project = pending.project
                and open.scope = 'project'
                and open.blocked_until > due_projects.due_by
        )
        and exists (
            select
            from (values (0::smallint), (1::smallint)) as lane (number)
            cross join lateral (
                select from notifications as notification
                where notification.state = 'pending'
                    and notification.project = pending.project
                    and notification.lane = lane.number
                    and notification.due_at <= due_projects.due_by
                order by notification.due_at    -- so that one row is read from the index
                limit 1
            ) as due
        )
$$;
