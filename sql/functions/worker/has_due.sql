-- Returns whether a notification of a project that is not paused is due.
create or replace function notify_worker.has_due()
returns boolean
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select exists (select from due_projects(clock_timestamp()))
$$;
