-- A probe got through: what waited for it goes on, and a worker is rung for. Touches nothing that an operator began, or that has a
-- time of its own.
create or replace function notify_worker.end_incident(project text, scope text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
set lock_timeout = '500ms'      -- who has the project's row may keep it for long: a worker that tells has more to do
as $$
declare
    waited_until timestamptz;
begin
    perform from projects where name = end_incident.project for update;   -- as begin_incident, and in its order
    update stored_incidents as incident
    set ended_at = clock_timestamp()
    where incident.project = end_incident.project
        and incident.scope = end_incident.scope
        and incident.by = 'worker'
        and incident.probes is not null
        and incident.ended_at is null
    returning incident.until into waited_until;
    if not found then
        return;
    end if;
    perform bring_forward(end_incident.project, waited_until);
    perform reckon_pause(end_incident.project);
    perform ring();
end
$$;
comment on function notify_worker.end_incident is 'A probe got through: what waited for it goes on.';
