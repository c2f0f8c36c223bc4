-- Returns whether the lease of this notification, which has lapsed and which the caller has locked, may be ended: not while its
-- holder is just recording, which the caller holds off until its commit.
create or replace function notify_worker.try_lock_lapsed_lease(notification_id bigint)
returns boolean
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select try_lock_worker(leased_by::integer)
    from notifications
    where id = try_lock_lapsed_lease.notification_id
$$;
