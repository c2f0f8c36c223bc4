-- Ends every pause and breaker of a project, whoever began it, and rings. Refuses a project that is not there (undefined_object).
create or replace function notify_worker.resume(project text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    perform check_project(resume.project);
    update projects
    set paused_until = null,
        paused_because = null
    where name = resume.project;

    update stored_incidents as incident
    set ended_at = least(incident.until, now())     -- one that ended by itself ended then
    where incident.project = resume.project
        and incident.ended_at is null;
    perform ring();
end
$$;
comment on function notify_worker.resume is 'Ends every pause and breaker of a project, whoever began it, and rings.';
