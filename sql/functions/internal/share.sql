-- Says how many messages a second one worker may send of a project: the project's rate, shared by all who are here. Null: there
-- is no such project.
create or replace function notify_worker.share(project text)
returns double precision
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select per_second(of_project) / greatest(1, (
        select count(*)
        from stored_workers
        where ended_at is null
            and seen_at > clock_timestamp() - interval '5 seconds'
    ))
    from projects as of_project
    where of_project.name = share.project
$$;
comment on function notify_worker.share is 'Says how many messages a second one worker may send of a project.';
