-- Ends every pause and breaker of a project, whoever began it, and rings. Refuses a project that is not there (undefined_object).
create or replace function notify_worker.resume(project text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    update projects
    set paused_until = null,
        paused_because = null
    where name = resume.project;
    if not found then
        raise exception using
            errcode = 'undefined_object',
            message = format('there is no project "%s"', resume.project)
                || nearest(resume.project, (select array_agg(name) from projects));
    end if;

    update stored_incidents as incident
    set ended_at = least(incident.until, now())     -- one that ended by itself ended then
    where incident.project = resume.project
        and incident.ended_at is null;
    perform ring();
end
$$;
comment on function notify_worker.resume is 'Ends every pause and breaker of a project, whoever began it, and rings.';
