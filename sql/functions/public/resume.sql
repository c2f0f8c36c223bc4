-- Closes every open incident of a project, whoever opened it, and wakes a worker. Refuses a project that does not exist
-- (undefined_object).
create or replace function notify_worker.resume(project text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    perform check_project(resume.project);
    perform from stored_incidents as incident
    where incident.id in (select open.id from open_incidents as open where open.project = resume.project)
    order by incident.id
    for update of incident;     -- so that what a claim is postponing right now is resumed too
    perform resume_postponed(resume.project, open.blocked_until)
    from open_incidents as open
    where open.project = resume.project
        and open.blocked_until < 'infinity';

    update stored_incidents as incident
    set ended_at = clock_timestamp()
    where incident.id in (select open.id from open_incidents as open where open.project = resume.project);
    perform wake_worker();
end
$$;
comment on function notify_worker.resume is 'Closes every open incident of a project, whoever opened it, and wakes a worker.';
