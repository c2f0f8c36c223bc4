-- Pauses a project until `resume`; no probe ends this. Requests in flight are finished, and waiting deliveries lose no
-- attempts. Refuses a project that does not exist (undefined_object).
create or replace function notify_worker.pause(project text, reason text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    perform check_project(pause.project);
    insert into stored_incidents (project, by, reason)
    values (pause.project, 'operator', pause.reason);
end
$$;
comment on function notify_worker.pause is 'Pauses a project until resume; no probe ends this.';
