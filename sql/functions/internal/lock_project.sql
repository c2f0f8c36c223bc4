-- Makes workers that open or close incidents of a project take turns, until the transaction ends. Waits half a second at most
-- (lock_not_available): a worker that reports an incident has more to do. The row is ours, and not the project's own, which
-- anybody with rights on `projects` may keep locked.
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
