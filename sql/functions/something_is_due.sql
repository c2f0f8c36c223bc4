-- Says whether a notification of a project that is not paused is due.
create or replace function notify_worker.something_is_due()
returns boolean
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select exists (
        select
        from projects_in_line() as line (project)
        cross join (values (0::smallint), (1::smallint)) as lane (number)
        where not exists (
                select from projects
                where projects.name = line.project
                    and projects.paused_until > clock_timestamp()
            )
            and exists (
                select from notifications as notification
                where notification.state = 'pending'
                    and notification.project = line.project
                    and notification.lane = lane.number
                    and notification.due_at <= clock_timestamp()
                order by notification.due_at    -- so that the index is read, and one row of it
                limit 1
            )
    )
$$;
comment on function notify_worker.something_is_due is 'Says whether a notification of a project that is not paused is due.';
