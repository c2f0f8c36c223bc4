-- Ends every pause and breaker of a project, whoever began it, and rings. Refuses a project that is not there (undefined_object).
create or replace function notify_worker.resume(project text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    perform check_project(resume.project);
    perform from projects where name = resume.project for update;   -- as begin_incident, and in its order
    perform from stored_incidents as incident
    where incident.project = resume.project
        and incident.ended_at is null
    for update;     -- what a claim is just now putting off is brought forward too
    perform bring_forward(resume.project, incident.until)
    from stored_incidents as incident
    where incident.project = resume.project
        and incident.until < 'infinity'
        and incident.ended_at is null;

    update stored_incidents as incident
    set ended_at = case when incident.probes is null then least(incident.until, now()) else now() end    -- one that ended by itself ended then
    where incident.project = resume.project
        and incident.ended_at is null;

    update projects
    set paused_until = null,
        paused_because = null
    where name = resume.project;
    perform ring();
end
$$;
comment on function notify_worker.resume is 'Ends every pause and breaker of a project, whoever began it, and rings.';
