-- Says whether a notification is due and nobody holds it.
create or replace function notify_worker.something_is_due()
returns boolean
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select exists (
        select from notifications where state = 'pending' and lane = 0 and due_at <= clock_timestamp()
    ) or exists (
        select from notifications where state = 'pending' and lane = 1 and due_at <= clock_timestamp()
    )
$$;
comment on function notify_worker.something_is_due is 'Says whether a notification is due and nobody holds it.';
