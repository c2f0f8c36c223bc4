-- Derives the state of these notifications from their deliveries and ends their leases; one with deliveries in flight is left
-- as it is. The order of the cases is the precedence of the states. The caller holds the row locks.
create or replace function notify_worker.settle(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    unreachable bigint[];
begin
    if coalesce(cardinality(notification_ids), 0) = 0 then
        return;
    end if;

    -- A notification that was cancelled while leased: start nothing more of it.
    update stored_deliveries as delivery
    set state = 'cancelled',
        settled_at = clock_timestamp()
    from notifications as notification
    where notification.id = any (notification_ids)
        and notification.cancelled_at is not null
        and delivery.notification_id = notification.id
        and delivery.state = 'pending'
        and not in_flight(delivery, notification);

    with derived as (
        select
            delivery.notification_id,
            min(delivery.due_at) filter (where delivery.state = 'pending') as due_at,
            case
                when bool_or(delivery.state = 'pending') then 'pending'
                when bool_or(delivery.state = 'held') then 'held'
                when bool_or(delivery.state = 'sent') then 'sent'
                when bool_or(notification.cancelled_at is not null) then 'cancelled'
                when bool_and(delivery.state = 'failed' and delivery.last_verdict is not distinct from 'unregistered') then 'unreachable'
                when bool_or(delivery.state = 'failed') then 'failed'
                when bool_or(delivery.state = 'expired') then 'expired'
                else 'cancelled'
            end as state
        from stored_deliveries as delivery
        join notifications as notification
            on notification.id = delivery.notification_id
        where delivery.notification_id = any (notification_ids)
        group by delivery.notification_id
        having not bool_or(in_flight(delivery, notification))
    ), settled as (
        update notifications as notification
        set state = derived.state,
            due_at = coalesce(derived.due_at, notification.due_at),
            lease = null,
            leased_by = null,
            settled_at = case when derived.state not in ('pending', 'held') then clock_timestamp() end
        from derived
        where notification.id = derived.notification_id
        returning notification.id, notification.state
    )
    select array_agg(id) into unreachable from settled where state = 'unreachable';

    if unreachable is not null then
        perform recheck_devices(unreachable);
    end if;
end
$$;
