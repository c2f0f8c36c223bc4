-- Ends the leases of these notifications, which the caller has locked: applies what the history holds for them; records what it does
-- not hold as unknown (it may never have left), due at once, or held where its sender asked for that and a request of it was
-- about to begin. That counts against nothing.
create or replace function notify_worker.end_leases(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    if notification_ids is null then
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
        'the worker was gone before it could say what became of this',
        case when notification.on_unknown = 'resend' or delivery.started_under is distinct from notification.lease then clock_timestamp() end,
        false
    from notifications as notification
    join stored_deliveries as delivery
        on delivery.notification_id = notification.id
    left join stored_workers as worker
        on worker.id = notification.leased_by
    where notification.id = any (notification_ids)
        and notification.lease is not null
        and delivery.state = 'pending'
        and delivery.due_at <= notification.leased_at;

    if found then
        perform apply_history(notification_ids);
    end if;
    perform settle(notification_ids);
end
$$;
