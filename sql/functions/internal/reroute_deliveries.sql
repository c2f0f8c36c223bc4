-- Handles the open deliveries of these notifications whose device was retired, deleted, or moved to another receiver: a
-- delivery to a replaced device goes to its successor, and any other ends as unregistered. So a device's new owner never gets
-- what was meant for the previous one. The caller holds the row locks of the notifications.
create or replace function notify_worker.reroute_deliveries(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    with rerouted as (     -- once per successor, even if it replaced two devices
        select distinct on (waiting.notification_id, successor.id)
            waiting.id as delivery_id,
            successor.id as device_id,
            successor.kind,
            successor.address,
            successor.platform
        from notifications as notification
        join stored_deliveries as waiting
            on waiting.notification_id = notification.id
            and waiting.state = 'pending'
        join devices as device
            on device.id = waiting.device_id
            and device.retired_at is not null
        join devices as successor
            on successor.id = device.replaced_by
            and reaches(successor, notification.receiver_id)
        where notification.id = any (notification_ids)
            and notification.state = 'pending'
            and not exists (
                select from stored_deliveries as other
                where other.notification_id = notification.id
                    and other.device_id = successor.id
            )
        order by waiting.notification_id, successor.id, waiting.id
    )
    update stored_deliveries as delivery
    set device_id = rerouted.device_id,
        kind = rerouted.kind,
        address = rerouted.address,
        platform = rerouted.platform
    from rerouted
    where delivery.id = rerouted.delivery_id;

    update stored_deliveries as delivery
    set state = 'failed',
        last_verdict = 'unregistered',
        last_error_code = null,
        last_error = coalesce(
            (
                select case
                    when device.retired_at is null then 'the device belongs to another receiver now'
                    else 'the device was retired: ' || coalesce(device.retired_reason, 'no reason given')
                end
                from devices as device
                where device.id = delivery.device_id
            ),
            'the device was deleted'
        ),
        settled_at = clock_timestamp()
    from notifications as notification
    where notification.id = any (notification_ids)
        and notification.state = 'pending'
        and delivery.notification_id = notification.id
        and delivery.state = 'pending'
        and delivery.device_id is not null
        and not exists (
            select from devices as device
            where device.id = delivery.device_id
                and reaches(device, notification.receiver_id)
        );
    if found then
        perform settle(notification_ids);
    end if;
end
$$;
