-- Returns the scopes of a project that its open incidents block.
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
