-- Makes a notification due again in the caller's transaction, with a fresh budget of attempts: its failed, expired, cancelled
-- and held deliveries, and one for each device registered since. Sent deliveries and retired devices are left out. Lifts a
-- cancellation, and clears an expires_at that has passed. Wakes a worker. Returns how many deliveries are due again; 0 if there
-- is nothing to retry, or if it has not been fanned out yet. Refuses a leased notification (object_in_use).
create or replace function notify_worker.retry(notification_id bigint)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    return retry_deliveries(retry.notification_id, null);
end
$$;
comment on function notify_worker.retry(bigint) is
    'Makes a notification due again with a fresh budget of attempts. Returns how many deliveries are due again.';

create or replace function notify_worker.retry(event_id text)
returns integer
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select coalesce(
        (select retry(notification.id) from notifications as notification where notification.event_id = retry.event_id),
        0
    )
$$;
comment on function notify_worker.retry(text) is 'Retries the notification of an event.';
