-- Releases deliveries that were claimed under this lease and not sent; without a list, all that are in flight. They are due
-- again at once, and nothing is counted.
create or replace function notify_worker.release(lease uuid, delivery_ids bigint[] default null)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    released bigint[] := coalesce(delivery_ids, array(
        select delivery.id
        from notifications as notification
        join stored_deliveries as delivery
            on delivery.notification_id = notification.id
        where notification.state = 'pending'
            and notification.project in (select pending_projects())
            and notification.lane in (0, 1)
            and notification.due_at <= clock_timestamp() + interval '1 hour'    -- no lease is longer, so the index is used
            and notification.lease = release.lease
            and in_flight(delivery, notification)
    ));
    leased_ids bigint[];
begin
    leased_ids := array(
        select notification.id
        from notifications as notification
        where notification.lease = release.lease
            and notification.id in (select notification_id from stored_deliveries where id = any (released))
        order by notification.id
        for update skip locked
    );

    update stored_deliveries as delivery
    set due_at = greatest(clock_timestamp(), notification.leased_at + interval '1 microsecond')
    from notifications as notification
    where delivery.id = any (released)
        and in_flight(delivery, notification)
        and notification.id = delivery.notification_id
        and notification.id = any (leased_ids);
    perform settle(leased_ids);
end
$$;
