-- Returns how many messages a second all workers together may send for a project: its max_per_second, or FCM's default quota.
-- After FCM's quota was exceeded, half of the previous rate, doubling each minute.
create or replace function notify_worker.project_rate(project notify_worker.projects)
returns double precision
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select least(
        coalesce(project.max_per_second, 10000),
        (
            select
                incident.project_rate * power(2, least(60, greatest(0,
                    date_part('epoch', clock_timestamp() - least(incident.ends_at, incident.ended_at)) / 60)))
            from stored_incidents as incident
            where incident.project = project.name
                and incident.project_rate is not null
            order by incident.id desc
            limit 1
        )
    )
$$;
