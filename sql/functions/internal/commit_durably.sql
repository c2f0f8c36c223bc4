-- Makes the calling transaction commit durably whatever the database's default is, since requests are sent because of it. A
-- claim that commits synchronously also makes the producer's earlier commit durable.
create or replace function notify_worker.commit_durably()
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select set_config('synchronous_commit', 'on', true)
    where current_setting('synchronous_commit') in ('off', 'local')
$$;
