-- Says in how many seconds this worker may claim again, where something is due and only its allowance is used up. Null: it is not
-- that. It waits for half of what the bucket holds: a claim for each single message would cost more than the message.
create or replace function notify_worker.allowed_in(worker_id integer)
returns double precision
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select min(greatest(0.005, (greatest(1, allowance.fills_at / 8) - allowance.left_over) / allowance.fills_at))
    from projects_due(clock_timestamp()) as due (project)
    cross join lateral allowance(due.project, allowed_in.worker_id) as allowance
    where allowance.left_over < 1
$$;
comment on function notify_worker.allowed_in is 'Says in how many seconds this worker may claim again, where only its allowance is used up.';
