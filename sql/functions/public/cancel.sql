-- Cancels a notification in the caller's transaction. Returns true if nothing of it was leased or sent, so it will not arrive.
-- Returns false if a worker holds deliveries of it, which end within their lease while no others start; if it was sent, held or
-- settled before; or if it does not exist. Held deliveries end as cancelled too.
create or replace function notify_worker.cancel(notification_id bigint)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    notification notifications;
    unsent boolean;
begin
    select * into notification
    from notifications
    where id = cancel.notification_id
    for update;
    if notification.lease is null then
        perform apply_late(array[notification.id]);
        select * into notification from notifications where id = notification.id;
    end if;
    if not found or notification.state not in ('pending', 'held') then
        return false;
    end if;

    unsent := notification.state = 'pending' and notification.lease is null and not exists (
        select from stored_deliveries as delivery
        where delivery.notification_id = notification.id
            and (
                delivery.state = 'sent'
                or exists (     -- an earlier attempt counts too: FCM may have that message
                    select from stored_attempts as attempt
                    where attempt.delivery_id = delivery.id
                        and attempt.verdict in ('sent', 'unknown')
                )
            )
    );

    update notifications
    set cancelled_at = clock_timestamp(),
        state = case when fanned_out_at is null then 'cancelled' else state end,
        settled_at = case when fanned_out_at is null then clock_timestamp() else settled_at end,
        settled_reason = case when fanned_out_at is null then 'it was cancelled by a call' else settled_reason end
    where id = notification.id;

    update stored_deliveries as delivery
    set state = 'cancelled',
        settled_at = clock_timestamp()
    where delivery.notification_id = notification.id
        and delivery.state = 'held';
    perform settle(array[notification.id]);
    return unsent;
end
$$;
comment on function notify_worker.cancel(bigint) is
    'Cancels a notification. True: nothing of it was leased or sent, and it will not arrive. False: it was, or is settled or unknown.';

create or replace function notify_worker.cancel(event_id text)
returns boolean
language sql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select coalesce(
        (select cancel(notification.id) from notifications as notification where notification.event_id = cancel.event_id),
        false
    )
$$;
comment on function notify_worker.cancel(text) is 'Cancels the notification of an event.';
