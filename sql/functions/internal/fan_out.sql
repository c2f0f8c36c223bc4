-- Gives each of these notifications, which the caller has locked, its deliveries: one per live device of its receiver, or one to
-- its address. A receiver without a live device ends it as unreachable.
create or replace function notify_worker.fan_out(notification_ids bigint[])
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with expanded as materialized (
        select add_deliveries(fan_out.notification_ids) as id
    )
    update notifications as notification
    set state = 'unreachable',
        settled_at = clock_timestamp(),
        settled_reason = 'the receiver has no live device'
    where notification.id = any (fan_out.notification_ids)
        and notification.state = 'pending'
        and notification.id not in (select id from expanded)
$$;
