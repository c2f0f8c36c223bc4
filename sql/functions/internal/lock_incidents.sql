-- Locks the open incidents of this scope that workers opened, and lists them. Skips those that another transaction has locked,
-- such as an operator's open `resume`. The caller holds the project's lock (lock_project), for which workers wait.
create or replace function notify_worker.lock_incidents(project text, scope text)
returns setof notify_worker.stored_incidents
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select incident.*
    from stored_incidents as incident
    where incident.by = 'worker'
        and incident.id in (
            select open.id
            from open_incidents as open
            where open.project = lock_incidents.project
                and open.scope = lock_incidents.scope
        )
    for update of incident skip locked
$$;
