-- Forgets a person: nothing is sent to them again; their devices are retired, what waits is cancelled (what a worker holds at
-- this moment may still leave), words, params and addresses are blanked. Rows and counts stay. Returns how many
-- notifications were blanked.
create or replace function notify_worker.forget_receiver(receiver_id text)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    theirs bigint[];
begin
    update devices as device
    set retired_at = coalesce(device.retired_at, now()),
        retired_reason = 'the receiver was forgotten',
        address = 'forgotten:' || device.id
    where device.receiver_id = forget_receiver.receiver_id;

    select array_agg(notification.id order by notification.id) into theirs
    from notifications as notification
    where notification.receiver_id = forget_receiver.receiver_id;

    perform cancel(notification.id)
    from notifications as notification
    where notification.id = any (theirs)
        and notification.state in ('pending', 'held')
    order by notification.id;

    update stored_deliveries as delivery
    set address = 'forgotten:' || delivery.id
    where delivery.notification_id = any (theirs);

    update notifications as notification
    set title = null,
        body = null,
        image = null,
        params = null,
        data = null,
        message = null,
        settled_reason = 'the receiver was forgotten'
    where notification.id = any (theirs);
    return coalesce(cardinality(theirs), 0);
end
$$;
comment on function notify_worker.forget_receiver is
    'Forgets a person: devices retired, what waits cancelled, words, params and addresses blanked. Returns how many notifications.';
