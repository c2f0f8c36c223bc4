-- Records that requests of these deliveries are about to start, each under the lease at the same position. Returns the
-- deliveries that may start: still held under that lease, and not locked. After a crash, only marked deliveries may have
-- reached FCM.
create or replace function notify_worker.mark_started(delivery_ids bigint[], leases uuid[])
returns setof bigint
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select commit_durably();
    with mine as (
        select delivery.id, notification.lease
        from unnest(mark_started.delivery_ids, mark_started.leases) as asked (delivery_id, lease)
        join stored_deliveries as delivery
            on delivery.id = asked.delivery_id
        join notifications as notification
            on notification.id = delivery.notification_id
            and notification.lease = asked.lease
        where in_flight(delivery, notification)
            and notification.due_at > clock_timestamp()
        order by delivery.id
        for update of delivery skip locked
    )
    update stored_deliveries as delivery
    set started_under = mine.lease
    from mine
    where delivery.id = mine.id
    returning delivery.id
$$;
