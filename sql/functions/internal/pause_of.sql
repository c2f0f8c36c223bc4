-- Says until when a project is paused, in words, and why. No row: it is not.
create or replace function notify_worker.pause_of(project text)
returns table (until text, because text)
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select
        case
            when incident.probes is not null
                then 'a probe gets through, the next one at ' || date_trunc('second', greatest(incident.until, now()))
            when projects.paused_until = 'infinity' then 'somebody resumes it'
            else date_trunc('second', projects.paused_until)::text
        end,
        coalesce(projects.paused_because, incident.because, 'no reason given')
    from projects
    left join stored_incidents as incident
        on incident.project = projects.name
        and incident.scope = 'project'
        and incident.ended_at is null
        and incident.probes is not null
        and incident.until >= coalesce(projects.paused_until, '-infinity')
    where projects.name = pause_of.project
        and (projects.paused_until > now() or incident.id is not null)
    limit 1
$$;
comment on function notify_worker.pause_of is 'Says until when a project is paused, in words, and why. No row: it is not.';
