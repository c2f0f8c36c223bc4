-- Lists the scopes of a project that are not to be sent now: those of its open incidents.
create or replace function notify_worker.blocked_scopes(project text)
returns text[]
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select array(
        select distinct open.scope
        from open_incidents as open
        where open.project = blocked_scopes.project
    )
$$;
