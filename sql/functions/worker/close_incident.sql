-- Closes the incidents of this scope after a probe succeeded: makes due what they postponed and wakes a worker. Leaves alone
-- what an operator began and what ends at a set time. Waits for no operator: an incident that an open `resume` has locked is
-- left to it, or to the next probe.
create or replace function notify_worker.close_incident(project text, scope text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    waited_until timestamptz;
begin
    perform lock_project(close_incident.project);
    for waited_until in
        update stored_incidents as incident
        set ended_at = clock_timestamp()
        from lock_incidents(close_incident.project, close_incident.scope) as probed
        where incident.id = probed.id
            and probed.next_probe_at is not null
        returning probed.next_probe_at
    loop
        perform resume_postponed(close_incident.project, waited_until);
    end loop;
    if found then
        perform wake_worker();
    end if;
end
$$;
