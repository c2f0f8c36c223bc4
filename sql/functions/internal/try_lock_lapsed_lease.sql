-- Returns whether the lapsed lease of this notification may be ended: not while its worker is recording, and the worker then
-- waits for the caller's commit. The caller holds the notification's row lock.
create or replace function notify_worker.try_lock_lapsed_lease(notification_id bigint)
returns boolean
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select try_lock_worker(leased_by::integer)
    from notifications
    where id = try_lock_lapsed_lease.notification_id
$$;
