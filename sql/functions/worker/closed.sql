-- Lists what of a project is not to be sent just now: the scopes of its open incidents.
create or replace function notify_worker.closed(project notify_worker.projects)
returns text[]
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select array(
        select 'project'
        where project.paused_until > clock_timestamp()
        union
        select incident.scope
        from stored_incidents as incident
        where incident.project = closed.project.name
            and incident.ended_at is null
            and (incident.probes is not null or incident.until > clock_timestamp())
    )
$$;
comment on function notify_worker.closed is 'Lists what of a project is not to be sent just now: the scopes of its open incidents.';
