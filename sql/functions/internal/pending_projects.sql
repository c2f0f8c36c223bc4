-- Lists the projects that have pending notifications, each by one step through the index, whatever their number: every one that
-- there is, and of names that are no project's a thousand at most. Anybody who inserts can make up names.
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
            order by notification.project   -- so that the index is read
            limit 1
        )
$$;
