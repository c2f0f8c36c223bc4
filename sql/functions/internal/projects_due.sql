-- Lists the projects that are not paused and have something due.
create or replace function notify_worker.projects_due(due_by timestamptz)
returns setof text
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select line.project
    from projects_in_line() as line (project)
    where not exists (
            select from projects
            where projects.name = line.project
                and projects.paused_until > projects_due.due_by
        )
        and exists (
            select
            from (values (0::smallint), (1::smallint)) as lane (number)
            cross join lateral (
                select from notifications as notification
                where notification.state = 'pending'
                    and notification.project = line.project
                    and notification.lane = lane.number
                    and notification.due_at <= projects_due.due_by
                order by notification.due_at    -- so that the index is read, and one row of it
                limit 1
            ) as due
        )
$$;
comment on function notify_worker.projects_due is 'Lists the projects that are not paused and have something due.';
