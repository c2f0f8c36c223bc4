-- Makes a notification due again as `retry` promises: all of it, or if `only_delivery` is not null, that delivery as
-- `retry_delivery` promises.
create or replace function notify_worker.retry_deliveries(notification_id bigint, only_delivery bigint)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    notification notifications;
    again integer;
    added integer := 0;
begin
    select * into notification
    from notifications
    where id = retry_deliveries.notification_id
    for update;
    if not found or notification.settled_reason = 'the receiver was forgotten' then
        return 0;
    end if;
    if notification.lease is not null then
        raise exception using
            errcode = 'object_in_use',
            message = format('notification %s is leased by a worker', notification.id),
            hint = 'Retry it once the worker has recorded it: usually within seconds, at the latest when the lease ends.';
    end if;
    perform apply_late(array[notification.id]);
    select * into notification from notifications where id = notification.id;

    update stored_deliveries as delivery
    set state = 'pending',
        attempts = 0,
        due_at = clock_timestamp(),
        retried_at = clock_timestamp(),
        settled_at = null
    where delivery.notification_id = notification.id
        and (only_delivery is null or delivery.id = only_delivery)
        and delivery.state in ('failed', 'expired', 'cancelled', 'held')
        and (
            delivery.device_id is null
            or exists (
                select from devices as device
                where device.id = delivery.device_id
                    and reaches(device, notification.receiver_id)
            )
        );
    get diagnostics again = row_count;

    if only_delivery is null and notification.fanned_out_at is not null and notification.receiver_id is not null then
        update notifications set state = 'pending' where id = notification.id;
        select count(*) into added from add_deliveries(array[notification.id]);
    end if;
    if again + added = 0 and (notification.fanned_out_at is not null or notification.state = 'pending') then
        update notifications set state = notification.state where id = notification.id;
        return 0;
    end if;

    update notifications
    set state = 'pending',
        due_at = least(clock_timestamp(), case when notification.state = 'pending' then due_at end),
        expires_at = case when expires_at > clock_timestamp() then expires_at end,
        retried_at = clock_timestamp(),
        cancelled_at = null,
        settled_at = null,
        settled_reason = null
    where id = notification.id;
    perform wake_worker();
    return again + added;
end
$$;
