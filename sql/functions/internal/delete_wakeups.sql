-- Deletes the wake-ups that wait, up to 500: the claim that follows answers them all. Returns how many.
create or replace function notify_worker.delete_wakeups()
returns bigint
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with waiting as (
        select id
        from procrastinate_jobs
        where status = 'todo'
            and queue_name = 'notify_worker'
            and task_name = 'notify_worker.drain'
            and (scheduled_at is null or scheduled_at <= clock_timestamp())
        order by priority desc, id
        limit 500
        for update skip locked
    ), deleted as (
        delete from procrastinate_jobs
        using waiting
        where procrastinate_jobs.id = waiting.id
        returning procrastinate_jobs.id
    )
    select count(*) from deleted
$$;
