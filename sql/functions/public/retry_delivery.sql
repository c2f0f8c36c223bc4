-- Puts one delivery back in line, as `retry` does with all of a notification. Returns 1, or 0 where there is nothing to retry.
create or replace function notify_worker.retry_delivery(delivery_id bigint)
returns integer
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select coalesce(
        (
            select retry_deliveries(delivery.notification_id, delivery.id)
            from stored_deliveries as delivery
            where delivery.id = retry_delivery.delivery_id
        ),
        0
    )
$$;
comment on function notify_worker.retry_delivery is 'Puts one delivery back in line. Returns 1, or 0 where there is nothing to retry.';
