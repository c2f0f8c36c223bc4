-- Sends nothing of a project until somebody resumes it; no probe lifts this. What is in flight ends as it ends; nothing is
-- counted against what waits. Refuses a project that is not there (undefined_object).
create or replace function notify_worker.pause(project text, because text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    perform check_project(pause.project);
    insert into stored_incidents (project, by, because)
    values (pause.project, 'operator', pause.because);
    perform reckon_pause(pause.project);
end
$$;
comment on function notify_worker.pause is 'Sends nothing of a project until somebody resumes it; no probe lifts this.';
