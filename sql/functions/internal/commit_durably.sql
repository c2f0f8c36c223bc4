-- Makes the transaction that calls this commit durably, whatever the database's default is: what follows from it leaves the house.
-- A claim that commits synchronously also makes the producer's commit durable, which came before it.
create or replace function notify_worker.commit_durably()
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select set_config('synchronous_commit', 'on', true)
    where current_setting('synchronous_commit') in ('off', 'local')
$$;
comment on function notify_worker.commit_durably is 'Makes the transaction that calls this commit durably, whatever the database''s default is.';
