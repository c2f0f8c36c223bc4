-- Refuses a project that does not exist (undefined_object) and suggests the nearest name.
create or replace function notify_worker.check_project(project text)
returns void
language plpgsql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    if not exists (select from projects where name = check_project.project) then
        raise exception using
            errcode = 'undefined_object',
            message = format('there is no project "%s"', check_project.project)
                || did_you_mean(check_project.project, (select array_agg(name) from projects));
    end if;
end
$$;
