-- Derives the state of these notifications, which the caller has locked, from their deliveries, and ends the lease of each that
-- has no delivery out any more. The truth table of states, in its order.
create or replace function notify_worker.settle(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    unreachable bigint[];
begin
    if notification_ids is null then
        return;
    end if;

    -- What was cancelled while a worker held it: nothing is started after that.
    update stored_deliveries as delivery
    set state = 'cancelled',
        settled_at = clock_timestamp()
    from notifications as notification
    where notification.id = any (notification_ids)
        and notification.cancelled_at is not null
        and delivery.notification_id = notification.id
        and delivery.state = 'pending'
        and not (notification.lease is not null and delivery.due_at <= notification.leased_at);

    with derived as (
        select
            delivery.notification_id,
            min(delivery.due_at) filter (where delivery.state = 'pending') as due_at,
            case
                when bool_or(delivery.state = 'pending') then 'pending'
                when bool_or(delivery.state = 'held') then 'held'
                when bool_or(delivery.state = 'sent') then 'sent'
                when bool_or(holder.cancelled_at is not null) then 'cancelled'
                when bool_and(delivery.state = 'failed' and delivery.last_verdict is not distinct from 'unregistered') then 'unreachable'
                when bool_or(delivery.state = 'failed') then 'failed'
                when bool_or(delivery.state = 'expired') then 'expired'
                else 'cancelled'
            end as state
        from stored_deliveries as delivery
        join notifications as holder
            on holder.id = delivery.notification_id
        where delivery.notification_id = any (notification_ids)
        group by delivery.notification_id
        having not bool_or(
            holder.lease is not null and delivery.state = 'pending' and delivery.due_at <= holder.leased_at
        )
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
