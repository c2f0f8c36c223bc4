-- Forgets a person: retires their devices, cancels their open notifications (what a worker holds now may still be sent), and
-- erases content, params and addresses. Rows and counts stay. Returns how many notifications were erased.
create or replace function notify_worker.forget_receiver(receiver_id text)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    notification_ids bigint[];
begin
    update devices as device
    set retired_at = coalesce(device.retired_at, now()),
        retired_reason = 'the receiver was forgotten',
        address = 'forgotten:' || device.id
    where device.receiver_id = forget_receiver.receiver_id;

    select array_agg(notification.id order by notification.id) into notification_ids
    from notifications as notification
    where notification.receiver_id = forget_receiver.receiver_id;

    perform cancel(notification.id)
    from notifications as notification
    where notification.id = any (notification_ids)
        and notification.state in ('pending', 'held')
    order by notification.id;

    update stored_deliveries as delivery
    set address = 'forgotten:' || delivery.id
    where delivery.notification_id = any (notification_ids);

    update notifications as notification
    set title = null,
        body = null,
        image = null,
        params = null,
        data = null,
        message = null,
        settled_reason = 'the receiver was forgotten'
    where notification.id = any (notification_ids);
    return coalesce(cardinality(notification_ids), 0);
end
$$;
comment on function notify_worker.forget_receiver is
    'Forgets a person: retires devices, cancels open notifications, erases content, params and addresses. Returns how many notifications.';
