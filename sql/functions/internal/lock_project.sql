-- Makes workers that open or close incidents of a project take turns until the transaction ends. Waits at most half a second
-- (lock_not_available), since the worker has other work to do. Locks a row of our own: anyone with rights on `projects` may
-- keep the project's row locked.
create or replace function notify_worker.lock_project(project text)
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
set lock_timeout = '500ms'
as $$
    insert into stored_project_locks (project)
    values (lock_project.project)
    on conflict on constraint stored_project_locks_pkey do nothing;
    select from stored_project_locks as lock
    where lock.project = lock_project.project
    for update
$$;
