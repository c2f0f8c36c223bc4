-- Settles the open deliveries of these notifications that a late outcome in the history says were sent. The caller holds the
-- row locks, and the notifications are unleased. `record` skips locked rows, so every function that decides what happens to a
-- notification next calls this first. An outcome from before the last retry is ignored: that retry knew of it.
create or replace function notify_worker.apply_late(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    update stored_deliveries as delivery
    set state = 'sent',
        last_verdict = 'sent',
        last_error_code = null,
        last_error = null,
        provider_message_id = attempt.provider_message_id,
        settled_at = clock_timestamp()
    from stored_attempts as attempt
    where delivery.notification_id = any (notification_ids)
        and delivery.state in ('pending', 'held')
        and delivery.last_attempt_number > 0
        and attempt.delivery_id = delivery.id
        and attempt.verdict = 'sent'
        and attempt.late
        and attempt.recorded_at >= coalesce(delivery.retried_at, delivery.created_at);
    if found then
        perform settle(notification_ids);
    end if;
end
$$;
