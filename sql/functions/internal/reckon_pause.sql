-- Writes down until when a project sends nothing, and why: by the latest of its open incidents of scope project.
create or replace function notify_worker.reckon_pause(project text)
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    update projects
    set paused_until = latest.until,
        paused_because = latest.because
    from (values (1)) as always
    left join lateral (
        select incident.until, incident.because
        from stored_incidents as incident
        where incident.project = reckon_pause.project
            and incident.scope = 'project'
            and incident.ended_at is null
            and (incident.probes is not null or incident.until > clock_timestamp())
        order by incident.until desc, incident.id
        limit 1
    ) as latest on true
    where projects.name = reckon_pause.project
$$;
comment on function notify_worker.reckon_pause is 'Writes down until when a project sends nothing, by its open incidents.';
