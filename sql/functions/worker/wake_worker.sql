-- Wakes a worker when this transaction commits: defers one job of task notify_worker.drain, unless one waits already and
-- `even_if_one_waits` is false. Returns whether it did.
create or replace function notify_worker.wake_worker(even_if_one_waits boolean default false)
returns boolean
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    if even_if_one_waits is not true and exists (
        select from procrastinate_jobs
        where status = 'todo'
            and queue_name = 'notify_worker'
            and task_name = 'notify_worker.drain'
            and (scheduled_at is null or scheduled_at <= clock_timestamp())
        order by priority desc, id      -- so that the index of todo jobs is used
        limit 1
    ) then
        return false;
    end if;
    perform procrastinate_defer_jobs_v1(
        array[row('notify_worker', 'notify_worker.drain', 0, null, null, '{}', null)::procrastinate_job_to_defer_v1]
    );
    return true;
end
$$;
