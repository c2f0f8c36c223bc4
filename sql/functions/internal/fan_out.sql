-- Creates the deliveries of these notifications: one per live device of the receiver, or one to the address. A notification
-- whose receiver has no live device ends as unreachable. The caller holds the row locks.
create or replace function notify_worker.fan_out(notification_ids bigint[])
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with reachable as materialized (
        select add_deliveries(fan_out.notification_ids) as id
    )
    update notifications as notification
    set state = 'unreachable',
        settled_at = clock_timestamp(),
        settled_reason = 'the receiver has no live device'
    where notification.id = any (fan_out.notification_ids)
        and notification.state = 'pending'
        and notification.id not in (select id from reachable)
$$;
