-- Clears up the jobs that dead processes left as doing: deletes wake-ups and rescues, which are made anew anyway, and defers
-- other tasks of ours again. A process of procrastinate's counts as dead after two minutes without a heartbeat. Returns how
-- many jobs there were.
create or replace function notify_worker.clear_stalled_jobs()
returns bigint
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    stalled bigint[] := array(
        select job.id
        from procrastinate_jobs as job
        left join procrastinate_workers as process
            on process.id = job.worker_id
        where job.status = 'doing'
            and job.queue_name = 'notify_worker'
            and (process.id is null or process.last_heartbeat < now() - interval '2 minutes')
        for update of job skip locked
    );
begin
    delete from procrastinate_jobs
    where id = any (stalled)
        and task_name in ('notify_worker.drain', 'notify_worker.requeue_orphans');
    perform procrastinate_retry_job_v2(id, now(), null, null, null)
    from procrastinate_jobs
    where id = any (stalled);
    return cardinality(stalled);
end
$$;
