-- Looks after the open deliveries of these notifications, which the caller has locked, whose device was retired or is somebody
-- else's by now: what waits for a device that was replaced goes to the one that followed it; anything else ends as
-- unregistered. What was meant for a device's former owner does not reach the new one.
create or replace function notify_worker.reroute_deliveries(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    with follows as (
        -- One each: a device that followed two others is told once.
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
            and successor.retired_at is null
            and successor.receiver_id = notification.receiver_id
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
    set device_id = follows.device_id,
        kind = follows.kind,
        address = follows.address,
        platform = follows.platform
    from follows
    where delivery.id = follows.delivery_id;

    update stored_deliveries as delivery
    set state = 'failed',
        last_verdict = 'unregistered',
        last_error_code = null,
        last_error = case
            when device.retired_at is not null then 'the device was retired: ' || coalesce(device.retired_reason, 'no reason given')
            when device.id is not null then 'the device belongs to another receiver by now'
            else 'the device was deleted'
        end,
        settled_at = clock_timestamp()
    from notifications as notification
    join stored_deliveries as open
        on open.notification_id = notification.id
        and open.state = 'pending'
        and open.device_id is not null
    left join devices as device
        on device.id = open.device_id
    where notification.id = any (notification_ids)
        and notification.state = 'pending'
        and delivery.id = open.id
        and (
            device.id is null
            or device.retired_at is not null
            or device.receiver_id is distinct from notification.receiver_id
        );
    if found then
        perform settle(notification_ids);
    end if;
end
$$;
