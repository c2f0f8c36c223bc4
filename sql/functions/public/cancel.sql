-- Takes a wish back, in the caller's transaction. True: nothing of it was leased or sent, and it will not arrive. False: what a
-- worker holds ends as it ends, within its lease, and nothing is started after it; or it was sent, held or settled before; or
-- there is no such notification. What is held ends as cancelled too.
create or replace function notify_worker.cancel(notification_id bigint)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    notification notifications;
    nothing_left boolean;
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

    select notification.state = 'pending' and notification.lease is null and not exists (
        select from stored_deliveries as delivery
        where delivery.notification_id = notification.id
            and (
                delivery.state = 'sent'
                or exists (     -- of an earlier try as well: whatever came after it, FCM may have that one
                    select from stored_attempts as attempt
                    where attempt.delivery_id = delivery.id
                        and attempt.verdict in ('sent', 'unknown')
                )
            )
    ) into nothing_left;

    update notifications
    set cancelled_at = clock_timestamp()
    where id = notification.id;

    if notification.fanned_out_at is null then
        update notifications
        set state = 'cancelled',
            settled_at = clock_timestamp(),
            settled_reason = 'it was cancelled by a call'
        where id = notification.id;
        return true;
    end if;

    update stored_deliveries as delivery
    set state = 'cancelled',
        settled_at = clock_timestamp()
    where delivery.notification_id = notification.id
        and delivery.state = 'held';
    perform settle(array[notification.id]);
    return nothing_left;
end
$$;
comment on function notify_worker.cancel(bigint) is
    'Takes a wish back. True: nothing of it was leased or sent, and it will not arrive. False: what a worker holds ends as it ends.';

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
comment on function notify_worker.cancel(text) is 'Takes the wish of an event back, as cancel does by its number.';
