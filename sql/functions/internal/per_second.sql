-- Says how many messages a second all workers together may send of a project: its max_per_second, or FCM's default quota; after a
-- 429 the half of what it was, which doubles each minute. (No pinned path, so that it is inlined.)
create or replace function notify_worker.per_second(project notify_worker.projects)
returns double precision
language sql
stable
as $$
    select least(
        coalesce(project.max_per_second, 10000),
        (
            select
                incident.per_second * power(2, least(60, greatest(0,
                    date_part('epoch', clock_timestamp() - least(incident.until, incident.ended_at)) / 60)))
            from notify_worker.stored_incidents as incident
            where incident.project = project.name
                and incident.per_second is not null
            order by incident.id desc
            limit 1
        )
    )
$$;
comment on function notify_worker.per_second is 'Says how many messages a second all workers together may send of a project.';
