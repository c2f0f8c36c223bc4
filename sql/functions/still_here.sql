-- A worker says that it lives. False: it has been found dead meanwhile, and what it held was put back in line.
create or replace function notify_worker.still_here(worker_id integer)
returns boolean
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with seen as (
        update stored_workers
        set seen_at = clock_timestamp()
        where id = still_here.worker_id
            and ended_at is null
        returning id
    )
    select exists (select from seen)
$$;
comment on function notify_worker.still_here is 'A worker says that it lives. False: it has been found dead meanwhile.';
