-- Lists the projects that have pending notifications, with one index step per project: all projects that exist, and up to a
-- thousand names that do not, since producers can insert any name.
create or replace function notify_worker.pending_projects()
returns setof text
language sql
stable
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with recursive step (project) as (
        (select project from notifications where state = 'pending' order by project limit 1)
        union all
        select (
            select notification.project
            from notifications as notification
            where notification.state = 'pending'
                and notification.project > step.project
            order by notification.project
            limit 1
        )
        from step
        where step.project is not null
    ), first as materialized (
        select project from step where project is not null limit 1000
    )
    select project from first
    union
    select name
    from projects
    where (select count(*) from first) = 1000
        and exists (
            select from notifications as notification
            where notification.state = 'pending'
                and notification.project = projects.name
            order by notification.project   -- so that the index is used
            limit 1
        )
$$;
