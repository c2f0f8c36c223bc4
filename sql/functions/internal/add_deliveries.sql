-- Adds a delivery to each of these notifications for every live device of its receiver that has none yet, or one to its
-- address. The caller holds the row locks. Returns the notification of each delivery that was added.
create or replace function notify_worker.add_deliveries(notification_ids bigint[])
returns setof bigint
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    insert into stored_deliveries (notification_id, device_id, kind, address, platform, due_at)
    select
        notification.id,
        device.id,
        coalesce(device.kind, notification.kind),
        coalesce(device.address, notification.address),
        device.platform,
        case when notification.fanned_out_at is null then notification.due_at else clock_timestamp() end
    from notifications as notification
    join projects as project
        on project.name = notification.project
    left join devices as device
        on device.receiver_id = notification.receiver_id
        and device.project = notification.project
        and device.retired_at is null
        and device.seen_at > clock_timestamp() - project.stale_after
    where notification.id = any (add_deliveries.notification_ids)
        and notification.state = 'pending'
        and case
            when notification.receiver_id is null then notification.fanned_out_at is null
            else device.id is not null
        end
    on conflict (notification_id, device_id) do nothing
    returning notification_id
$$;
