-- Applies the attempts that the history holds under the present leases of these notifications to their deliveries in flight.
-- This is the one place where a verdict becomes a state. The caller holds the row locks of the notifications.
create or replace function notify_worker.apply_history(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    oldest timestamptz := (
        select min(leased_at) - interval '1 minute'     -- a minute in case the clock was set back
        from notifications
        where id = any (notification_ids)
    );
begin
    update stored_deliveries as delivery
    set state = becomes.state,
        attempts = delivery.attempts + becomes.counted,
        last_attempt_number = attempt.number,
        due_at = case
            when attempt.retry_at is null then delivery.due_at
            else greatest(
                least(
                    attempt.retry_at,
                    (
                        select expiry(notification, project.expires_after)      -- it becomes due then, and ends as expired
                        from projects as project
                        where project.name = notification.project
                    )
                ),
                notification.leased_at + interval '1 microsecond'
            )
        end,
        last_verdict = attempt.verdict,
        last_error_code = attempt.error_code,
        last_error = attempt.error,
        provider_message_id = attempt.provider_message_id,
        settled_at = case
            when becomes.state not in ('pending', 'held') then greatest(attempt.recorded_at, attempt.finished_at)
        end
    from notifications as notification,
        stored_attempts as attempt,
        lateral (
            select
                case
                    when attempt.verdict = 'sent' then 'sent'
                    when attempt.verdict in ('failed', 'unregistered') then 'failed'
                    when attempt.retry_at is not null then 'pending'
                    when attempt.verdict = 'unknown' and notification.on_unknown = 'hold' then 'held'
                    else 'failed'
                end as state,
                attempt.counts::integer as counted
        ) as becomes
    where notification.id = any (notification_ids)
        and delivery.notification_id = notification.id
        and in_flight(delivery, notification)
        and attempt.delivery_id = delivery.id
        and attempt.lease = notification.lease
        and attempt.recorded_at >= oldest
        and not attempt.late;
end
$$;
