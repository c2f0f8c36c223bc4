-- Ends the leases of these notifications: first applies what the history holds for them, then records each delivery without an
-- outcome as unknown, since FCM may have it. It is due again at once; or held, if its sender asked for that and a request was
-- about to start. Neither counts against max_attempts. The caller holds the row locks.
create or replace function notify_worker.end_leases(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    if coalesce(cardinality(notification_ids), 0) = 0 then
        return;
    end if;
    perform apply_history(notification_ids);

    insert into stored_attempts
        (delivery_id, notification_id, number, lease, worker, started_at, verdict, error_code, error, retry_at, counts)
    select
        delivery.id,
        notification.id,
        delivery.last_attempt_number + 1,
        notification.lease,
        coalesce(worker.name, notification.leased_by::text),
        notification.leased_at,
        'unknown',
        'WORKER_GONE',
        'the worker was gone before it recorded an outcome',
        case when notification.on_unknown = 'resend' or delivery.started_under is distinct from notification.lease then clock_timestamp() end,
        false
    from notifications as notification
    join stored_deliveries as delivery
        on delivery.notification_id = notification.id
    left join stored_workers as worker
        on worker.id = notification.leased_by
    where notification.id = any (notification_ids)
        and in_flight(delivery, notification);

    if found then
        perform apply_history(notification_ids);
    end if;
    perform settle(notification_ids);
end
$$;
