-- Takes what a worker has claimed from its allowance of that project.
create or replace function notify_worker.spend(project text, worker_id integer, messages bigint)
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    insert into stored_allowances (project, worker_id, left_over, climbed, spent_at)
    select spend.project, spend.worker_id, left_over - spend.messages, climbed, clock_timestamp()
    from allowance(spend.project, spend.worker_id)
    on conflict on constraint stored_allowances_pkey do update
    set left_over = excluded.left_over,
        climbed = excluded.climbed,
        spent_at = excluded.spent_at
$$;
comment on function notify_worker.spend is 'Takes what a worker has claimed from its allowance of that project.';
