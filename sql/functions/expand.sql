-- Gives each of these notifications, which the caller has locked, its deliveries: one per live device of its receiver, or one to
-- its address. A receiver without a live device ends it as unreachable.
create or replace function notify_worker.expand(notification_ids bigint[])
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with expanded as (
        insert into stored_deliveries (notification_id, device_id, kind, address, platform, due_at)
        select
            notification.id,
            device.id,
            coalesce(device.kind, notification.kind),
            coalesce(device.address, notification.address),
            device.platform,
            notification.due_at
        from notifications as notification
        join projects as project
            on project.name = notification.project
        left join devices as device
            on device.receiver_id = notification.receiver_id
            and device.project = notification.project
            and device.retired_at is null
            and device.seen_at > clock_timestamp() - project.stale_after
        where notification.id = any (expand.notification_ids)
            and notification.state = 'pending'
            and (device.id is not null or notification.receiver_id is null)
        returning notification_id
    )
    update notifications as notification
    set state = 'unreachable',
        settled_at = clock_timestamp(),
        settled_because = 'the receiver has no live device'
    where notification.id = any (expand.notification_ids)
        and notification.state = 'pending'
        and notification.id not in (select notification_id from expanded)
$$;
comment on function notify_worker.expand is 'Gives notifications their deliveries: one per live device of the receiver, or one to the address.';
