-- A worker says that it lives, under each id that it has or had. Returns those that still are its own; one that is missing was
-- found dead meanwhile, and what it held was put back in line.
create or replace function notify_worker.still_here(worker_ids integer[])
returns setof integer
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    update stored_workers
    set seen_at = clock_timestamp()
    where id = any (still_here.worker_ids)
        and ended_at is null
    returning id
$$;
comment on function notify_worker.still_here is 'A worker says that it lives, under each id that it has or had. Returns those that still are its own.';
