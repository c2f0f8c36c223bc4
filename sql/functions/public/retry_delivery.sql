-- Makes one delivery due again, as `retry` does for a whole notification. Returns 1, or 0 if there is nothing to retry.
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
comment on function notify_worker.retry_delivery is 'Makes one delivery due again. Returns 1, or 0 if there is nothing to retry.';
